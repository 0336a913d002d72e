"""JSON and settings that others wrote."""

import numpy as np
import pytest

from jaxlab._json import as_json, check_types, naming


@pytest.mark.parametrize(
  "text, problem",
  [
    ("", "Expecting value at column 1."),
    (b"\xff", "'utf-8' codec can't decode"),
    ("[" * 100_000, "maximum recursion depth"),
    ("9" * 5000, "Exceeds the limit"),
    ('"\\uD800"', "'utf-8' codec can't encode"),
    (b'{"\\udfff": 1}', "'utf-8' codec can't encode"),
  ],
)
def test_json_that_cannot_be_worked_with_is_named(text, problem):
  with pytest.raises(ValueError) as error:
    as_json("x.json", text)
  assert str(error.value).startswith(f"x.json is not valid JSON: {problem}")


def test_json_of_any_value():
  assert as_json("x", b'["\\ud83d\\ude00", 1e5, null]') == ["\U0001f600", 1e5, None]
  with pytest.raises(ValueError, match=r" at line 2, column 1\.$"):
    as_json("x", "{\n]")


def test_types_of_settings():
  types = {"flag": bool, "size": int, "rate": float, "name": str, "end": (int, list), "more": dict}
  check_types({}, **types)
  check_types(dict.fromkeys(types), **types)
  good = {
    "flag": True,
    "size": 2,
    "rate": 3,
    "name": "a",
    "end": [1],
    "more": {},
    "other": object(),
  }
  check_types(good, **types)
  check_types({"size": np.int32(2), "rate": np.float32(0.5), "end": (1,)}, **types)
  for name, value, words in (
    ("flag", "false", "flag must be true or false, got 'false'."),
    ("flag", 0, "flag must be true or false, got 0."),
    ("size", True, "size must be an integer, got True."),
    ("size", 2.0, "size must be an integer, got 2.0."),
    ("rate", "1e-4", "rate must be a number, got '1e-4'."),
    ("name", ["a"], "name must be text, got ['a']."),
    ("end", "2", "end must be an integer or a list, got '2'."),
    ("more", [], "more must be an object, got []."),
  ):
    with pytest.raises(ValueError) as error:
      check_types(good | {name: value}, **types)
    assert str(error.value) == words


def test_what_is_said_of_a_file_names_it():
  with pytest.raises(ValueError, match="^dir/x.json: size must be"), naming("dir/x.json"):
    check_types({"size": "2"}, size=int)
  with pytest.raises(KeyError), naming("dir/x.json"):
    raise KeyError
