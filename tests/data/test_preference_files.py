import json

import numpy as np
import pytest

from jaxlab import data

USER = {"role": "user", "content": "q"}


def bot(content):
  return {"role": "assistant", "content": content}


def said(text):
  return [USER, bot(text)]


def written(tmp_path, *rows, name="data.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def rating(response, helpfulness, prompt="p", **others):
  ratings = {"helpfulness": helpfulness, "correctness": 3, "coherence": 4, "complexity": 1}
  return {"prompt": prompt, "response": response, **ratings, "verbosity": 2} | others


def completion(response, *ratings, **others):
  aspects = ("helpfulness", "honesty", "truthfulness", "instruction_following")
  annotations = {name: {"Rating": x, "Rationale": "."} for name, x in zip(aspects, ratings)}
  return {"model": "m", "response": response, "annotations": annotations} | others


def ultra(*completions):
  return {"source": "s", "instruction": "q", "models": [], "completions": list(completions)}


def transcript(*turns):
  names = ("Human", "Assistant")
  return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


STRENGTH = {"prompt": "p", "response_1": "a", "response_2": "b", "split": "train"}
SCORED = {"prompt": "q", "chosen": said("a"), "rejected": said("b")}
LAYOUTS = [
  # One row or more -> prompt, chosen, rejected, strength.
  ([{"prompt": "p", "chosen": "a", "rejected": "b"}], ("p", "a", "b", 1)),
  ([SCORED | {"score_chosen": 8.0, "score_rejected": 5.5}], ([USER], [bot("a")], [bot("b")], 2.5)),
  ([STRENGTH | {"preference_strength": -2}], ("p", "a", "b", 2)),
  ([STRENGTH | {"preference_strength": 3}], ("p", "b", "a", 3)),
  ([rating("a", 1), rating("b", 4)], ("p", "b", "a", 3)),
  ([rating("a", 3), rating("b", 4), rating("c", 1)], ("p", "b", "c", 3)),
  (
    [ultra(completion("a", "1", "2"), completion("b", "5", "N/A"), completion("c", "N/A"))],
    ("q", "b", "a", 3.5),
  ),
  (
    [ultra(*(completion(r, overall_score=s) for r, s in (("a", 7), ("b", 8.5), ("c", 9))))],
    ("q", "c", "a", 2),
  ),
  (
    [ultra(*(completion(r, **{"fine-grained_score": s}) for r, s in (("a", 4), ("b", 3))))],
    ("q", "a", "b", 1),
  ),
  (
    [{"chosen": transcript("h", "i", "j", "k l"), "rejected": transcript("h", "i", "j", "k m")}],
    (transcript("h", "i", "j") + "\n\nAssistant:", " k l", " k m", 1),
  ),
]


@pytest.mark.parametrize("rows, expected", LAYOUTS)
def test_public_layouts(tmp_path, rows, expected):
  path = written(tmp_path, {"prompt": "o", "chosen": "x", "rejected": "y"}, *rows)
  _, pair = data.load_preferences(path)
  assert pair == (2, f"{path}, line 2", *expected)


def test_neighbors_of_other_prompts_are_other_pairs(tmp_path):
  rows = [rating("a", 1), rating("b", 2), rating("c", 4, "q"), rating("d", 0, "q")]
  pairs = data.load_preferences(written(tmp_path, *rows))
  assert [(p.line, p.prompt, p.chosen) for p in pairs] == [(1, "p", "b"), (3, "q", "c")]


def test_parquet_holds_nulls_for_what_other_rows_lack(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0},
    {"prompt": None, "chosen": "x a", "rejected": "x b"},
    {"prompt": "r", "chosen": "a", "rejected": None},
  ]
  path = tmp_path / "data.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(rows[:2]), path)
  assert [pair[2:] for pair in data.load_preferences(path)] == [
    ("p", "a", "b", 1.0),
    ("x", " a", " b", 1.0),
  ]
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with pytest.raises(ValueError, match=f"^{path}, row 3: column 'rejected' is missing; there are "):
    data.load_preferences(path)


FAULTS = [
  ([{"prompt": "p", "chosen": "a"}], "column 'rejected' is missing"),
  ([{"prompt": "p", "chosen": None, "rejected": "b"}], "column 'chosen' is missing"),
  ([{"prompt": "p", "chosen": "", "rejected": "b"}], "column 'chosen' is empty"),
  ([SCORED | {"rejected": said("")}], "column 'rejected' has an empty turn of the assistant"),
  (
    [SCORED | {"score_chosen": 5.0, "score_rejected": 5.0}],
    "score_chosen and score_rejected are both 5: neither is preferred",
  ),
  (
    [SCORED | {"score_chosen": 4.0, "score_rejected": 5.0}],
    "score_chosen 4 is below score_rejected 5",
  ),
  (
    [SCORED | {"score_chosen": "high", "score_rejected": 5.0}],
    "score_chosen must be a number, got 'high'",
  ),
  ([STRENGTH], "column 'preference_strength' is missing"),
  ([STRENGTH | {"preference_strength": 0}], "preference_strength is 0: neither response is"),
  ([STRENGTH | {"preference_strength": True}], "preference_strength must be a number, got True"),
  ([STRENGTH | {"preference_strength": 1, "response_2": ""}], "column 'response_2' is empty"),
  ([rating("a", 3), rating("b", 3)], "the responses of lines 2 to 3 are all rated 3: none"),
  ([rating("a", 3), rating("b", 3, "q")], "no neighbor rates another response to its prompt"),
  ([rating("", 3), rating("b", 2)], "column 'response' is empty"),
  ([ultra()], "column 'completions' must hold two rated responses, got 0"),
  ([ultra(completion("a", "2"), completion("b", "N/A"))], "column 'completions' must hold two"),
  ([ultra(completion("a", "2"), completion("b", "2"))], "the responses of completions are all"),
  ([ultra(completion("a", "2"), completion(" ", "1"))], "column 'completions', item 1: has an"),
  ([ultra(completion("a", "2"), "b")], "column 'completions', item 1: must be an object"),
  ([{"instruction": "q", "completions": "a"}], "column 'completions' must be a list"),
  (
    [{"chosen": transcript("h", "i"), "rejected": transcript("h")}],
    "column 'rejected' must end with a turn of the Assistant",
  ),
  (
    [{"chosen": transcript("h", "i"), "rejected": transcript("h", "i", "j")}],
    "column 'rejected' must end with a turn of the Assistant",
  ),
  (
    [{"chosen": transcript("h", ""), "rejected": transcript("h", "i")}],
    "column 'chosen' ends with an empty turn of the Assistant",
  ),
  (
    [{"chosen": transcript("h", "i"), "rejected": transcript("g", "i")}],
    "columns 'chosen' and 'rejected' must be alike up to the last turn",
  ),
]


@pytest.mark.parametrize("rows, message", FAULTS)
def test_pairs_that_say_nothing_are_named_or_left_out(tmp_path, rows, message):
  good = {"prompt": "o", "chosen": "x", "rejected": "y"}
  path = written(tmp_path, good, *rows, good)
  with pytest.raises(ValueError) as caught:
    data.load_preferences(path)
  assert str(caught.value).startswith(f"{path}, line 2: {message}")
  with pytest.warns(UserWarning, match=f"pairs left out: [12], the first: {path}, line 2: "):
    pairs = data.load_preferences(path, skip_unusable=True)
  assert [pair.line for pair in pairs] == [1, 2 + len(rows)]


def test_the_second_of_two_neighbors_is_named_by_its_own_line(tmp_path):
  path = written(tmp_path, rating("a", 3), rating("", 1))
  with pytest.raises(ValueError, match=f"^{path}, line 2: column 'response' is empty"):
    data.load_preferences(path)


def test_splits(tmp_path):
  rows = [
    STRENGTH | {"preference_strength": 1},
    STRENGTH | {"preference_strength": 2, "split": "val"},
  ]
  path = written(tmp_path, *rows)
  assert [pair.strength for pair in data.load_preferences(path, split="val")] == [2]
  with pytest.raises(ValueError, match="no row has split 'test'; there is train, val"):
    data.load_preferences(path, split="test")
  with pytest.raises(ValueError, match="has no pairs"):
    data.load_preferences(written(tmp_path))


def test_ratings(tmp_path):
  path = written(tmp_path, rating("a", 4), rating("b", 0, verbosity=None))
  first, second = data.load_ratings(path)
  assert (first.line, first.prompt, first.response) == (1, "p", "a")
  np.testing.assert_array_equal(first.ratings, [4, 3, 4, 1, 2])
  np.testing.assert_array_equal(second.ratings, [0, 3, 4, 1, np.nan])
  assert second.ratings.dtype == np.float32
  path = written(tmp_path, ultra(completion("a", "1", "2"), completion("b", "5", "N/A")))
  rated = data.load_ratings(path, attributes=("honesty", "helpfulness"))
  assert [(r.line, r.prompt, r.response) for r in rated] == [(1, "q", "a"), (1, "q", "b")]
  np.testing.assert_array_equal([r.ratings for r in rated], [[2, 1], [np.nan, 5]])


def test_ratings_that_cannot_be_used(tmp_path):
  for row, message in (
    (rating("a", "good"), "line 1: helpfulness must be a number, got 'good'"),
    ({"prompt": "p", "helpfulness": 1}, "line 1: column 'response' is missing"),
    ({"prompt": "p", "response": "a"}, "has no ratings of helpfulness, correctness"),
  ):
    with pytest.raises(ValueError, match=message):
      data.load_ratings(written(tmp_path, row))
