import json
import sys

import pytest

from jaxlab.commands.rows import parse_prompt, read_rows, read_usable
from jaxlab.experiment import UsageError

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"}


def written(tmp_path, *rows):
  path = tmp_path / "data.jsonl"
  path.write_text(
    "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
  )
  return path


GOOD = {"prompt": "p", "response": "a"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
FAULTS = [
  ("supervised", '{"prompt": "p", ', "line 2 is not valid JSON: Expecting property name"),
  ("supervised", "[" * 9999, "line 2 is not valid JSON: maximum recursion depth"),
  ("supervised", f'{{"prompt": {"9" * 5000}}}', "line 2 is not valid JSON: Exceeds the limit"),
  ("supervised", '{"prompt": "\\udc00"}', "line 2 is not valid JSON: 'utf-8' codec can't encode"),
  ("supervised", "[1]", "line 2: must be an object of columns, got list"),
  ("supervised", {"prompt": "p"}, "line 2: column 'response' is missing; there are prompt"),
  ("supervised", {"response": "p"}, "line 2: column 'prompt' is missing; there are response"),
  ("supervised", {"prompt": "", "response": "a"}, "line 2: column 'prompt' is empty"),
  ("supervised", {"prompt": "p", "response": ""}, "line 2: column 'response' is empty"),
  ("supervised", {"prompt": "p", "response": 3}, "line 2: column 'response' must be text or"),
  ("supervised", {"prompt": [USER], "response": "a"}, "line 2: columns 'prompt' and 'response'"),
  ("supervised", {"messages": [USER]}, "line 2: column 'messages' has no turn of the assistant"),
  ("supervised", {"messages": [USER, "x"]}, "line 2: column 'messages', message 1 must have role"),
  ("supervised", {"messages": [BOT | {"content": ""}]}, "line 2: column 'messages' has an empty"),
  (
    "supervised",
    {"messages": {"role": ["assistant"], "content": []}},
    "line 2: column 'messages' m",
  ),
  (
    "supervised",
    {"messages": {"role": "user"}},
    "line 2: column 'messages' must be text, messages",
  ),
  ("pairs", {"prompt": "p", "chosen": "a"}, "line 2: column 'rejected' is missing"),
  ("pairs", {"chosen": "a", "rejected": "b"}, "line 2: columns 'chosen' and 'rejected' must begin"),
  ("pairs", {"chosen": "a b", "rejected": "a b"}, "line 2: columns 'chosen' and 'rejected' must"),
  ("pairs", {"chosen": "ab", "rejected": [USER, BOT]}, "line 2: columns 'chosen' and 'rejected'"),
  ("pairs", {"chosen": [USER, BOT], "rejected": [USER, BOT]}, "line 2: columns 'chosen' and"),
  ("prompts", {"question": "p"}, "line 2: column 'prompt' is missing; there are question"),
  ("prompts", {"prompt": 3}, "line 2: column 'prompt' must be text or messages, got int"),
  ("unpaired", {"prompt": "p", "response": "a"}, "line 2: column 'label' is missing"),
  ("unpaired", GOOD | {"label": 2}, "line 2: column 'label' must be true or false, 1 or 0"),
  (
    "unpaired",
    GOOD | {"label": "1"},
    "line 2: column 'label' must be true or false, 1 or 0, got '",
  ),
]


@pytest.mark.parametrize("kind, row, message", FAULTS)
def test_what_cannot_be_learnt_from_is_named(tmp_path, kind, row, message):
  path = written(tmp_path, GOOD | PAIR if kind != "unpaired" else PAIR, row)
  with pytest.raises(UsageError) as caught:
    read_rows(path, kind)
  assert str(caught.value).startswith(f"{path}, {message}")


def test_files_that_cannot_be_used(tmp_path):
  with pytest.raises(UsageError, match="missing.jsonl cannot be read"):
    read_rows(tmp_path / "missing.jsonl", "supervised")
  with pytest.raises(UsageError, match="has no rows"):
    read_rows(written(tmp_path, "", " "), "supervised")
  with pytest.raises(UsageError, match="need two prompts"):
    read_rows(written(tmp_path, PAIR), "unpaired")
  (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
  with pytest.raises(UsageError, match="latin.jsonl, line 1 is not valid JSON: .* can't decode"):
    read_rows(tmp_path / "latin.jsonl", "supervised")


def test_a_prompt_keeps_its_columns(tmp_path):
  path = written(tmp_path, {"prompt": "p", "answer": 4}, "", {"prompt": [USER]})
  first, second = read_rows(path, "prompts")
  assert first == (1, f"{path}, line 1", "p", (), True, {"prompt": "p", "answer": 4})
  assert (second.line, second.prompt, second.responses) == (3, [USER], ())


STRENGTH = {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -1}
RATED = [{"prompt": "q", "response": r, "helpfulness": i} for i, r in enumerate("cd")]


def test_public_layouts_of_preferences(tmp_path):
  path = written(tmp_path, STRENGTH, *RATED)
  rows = read_rows(path, "pairs")
  assert [(row.line, row.prompt, row.responses) for row in rows] == [
    (1, "p", ("a", "b")),
    (2, "q", ("d", "c")),
  ]
  rows = read_rows(path, "unpaired")
  assert [(row.line, row.responses[0], row.label) for row in rows] == [
    (1, "a", True),
    (1, "b", False),
    (2, "d", True),
    (2, "c", False),
  ]


def test_unusable_rows_may_be_left_out(tmp_path, capsys):
  tie = STRENGTH | {"preference_strength": 0}
  path = written(tmp_path, STRENGTH, *[tie] * 4)
  with pytest.raises(UsageError, match=f"^{path}, line 2: preference_strength is 0"):
    read_rows(path, "pairs")
  assert [row.line for row in read_rows(path, "pairs", skip_unusable=True)] == [1]
  told = capsys.readouterr().out.splitlines()
  assert told[0] == "rows left out: 4" and told[3].startswith(f"  {path}, line 4: ")
  assert told[4:] == ["  ..."]
  with pytest.raises(UsageError, match="has no rows"):
    read_rows(written(tmp_path, tie), "pairs", skip_unusable=True)


def test_only_rows_of_a_split(tmp_path):
  path = written(tmp_path, GOOD | {"split": "train"}, GOOD | {"split": "val", "response": "v"})
  assert [row.responses for row in read_rows(path, "supervised", split="val")] == [("v",)]
  with pytest.raises(UsageError, match="no row has split 'test'; there is train, val"):
    read_rows(path, "supervised", split="test")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  (tmp_path / "data.parquet").write_bytes(b"PAR1")
  with pytest.raises(UsageError, match=r"pip install 'jaxlab\[parquet\]'"):
    read_rows(tmp_path / "data.parquet", "pairs")


def test_rows_that_can_be_used(tmp_path):
  path = written(tmp_path, {"prompt": "p"}, "{", {"question": "q"}, {"prompt": "r"})
  found, faults = read_usable(path, parse_prompt, flag="--prompts")
  assert [row.line for row in found] == [1, 4]
  assert faults[0].startswith(f"{path}, line 2 is not valid JSON")
  assert faults[1].startswith(f"{path}, line 3: column 'prompt' is missing")
  with pytest.raises(UsageError, match="line 1: column 'prompt' is missing"):
    read_usable(written(tmp_path, {"question": "q"}), parse_prompt, flag="--prompts")
  with pytest.raises(UsageError, match="--prompts=.* has no rows"):
    read_usable(written(tmp_path), parse_prompt, flag="--prompts")
  with pytest.raises(UsageError, match="--prompts=nothing cannot be read"):
    read_usable("nothing", parse_prompt, flag="--prompts")
