"""JSON and settings that others wrote: parsed, checked, and named where they cannot be used."""

import contextlib
import json
import numbers
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any


def as_json(name: str, text: str | bytes) -> Any:
  """Parses JSON that others wrote.

  Args:
    name: what is parsed, for the message.
    text: the JSON.

  Returns:
    The value; its texts are valid Unicode.

  Raises:
    ValueError: naming what is parsed, if it is no JSON or nothing that can be worked with: nested
      too deeply, an integer of thousands of digits, half of a surrogate pair.
  """
  try:
    value = json.loads(text)
    if _SURROGATE.search(text if isinstance(text, str) else text.decode("latin-1")):
      json.dumps(value, ensure_ascii=False).encode()
  except json.JSONDecodeError as error:
    at = f"line {error.lineno}, " * (error.lineno > 1) + f"column {error.colno}"
    raise ValueError(f"{name} is not valid JSON: {error.msg} at {at}.") from error
  except (RecursionError, ValueError) as error:
    raise ValueError(f"{name} is not valid JSON: {error}.") from error
  return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Puts a file or directory before what a `ValueError` says of its content.

  Args:
    path: what is read.

  Raises:
    ValueError: the one raised inside, with the path.
  """
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def check_types(settings: Mapping[str, Any], /, **types: type | tuple[type, ...]) -> None:
  """Raises if settings that others wrote are of another type; absent ones and None pass.

  Args:
    settings: a JSON object.
    **types: bool, int, float (which an integer may stand for), str, list or dict, or several of
      them, by the name of the setting.

  Raises:
    ValueError: naming the first such setting, what it must be, and its value.
  """
  for name, wanted in types.items():
    value, wanted = settings.get(name), wanted if isinstance(wanted, tuple) else (wanted,)
    # To Python, true is an integer.
    allowed = [kind for kind in wanted if kind is bool or not isinstance(value, bool)]
    if value is None or any(isinstance(value, _JSON_TYPES[kind][0]) for kind in allowed):
      continue
    words = " or ".join(_JSON_TYPES[kind][1] for kind in wanted)
    raise ValueError(f"{name} must be {words}, got {reprlib.repr(value)}.")


_JSON_TYPES = {
  bool: (bool, "true or false"),
  int: (numbers.Integral, "an integer"),
  float: (numbers.Real, "a number"),
  str: (str, "text"),
  list: ((list, tuple), "a list"),
  dict: (Mapping, "an object"),
}
