import json

import pytest

from jaxlab.commands import sample_files
from jaxlab.experiment import UsageError


def written(tmp_path, *texts):
  path = tmp_path / "out.jsonl"
  path.write_text("".join(texts))
  return path


LINES = [json.dumps({"line": i}) + "\n" for i in (1, 3, 4)]


@pytest.mark.parametrize(
  "texts, count",
  [((), 0), (LINES[:2], 2), (LINES, 3), ((*LINES[:2], LINES[2][:-1]), 2), (('{"li',), 0)],
)
def test_a_file_goes_on_after_its_last_complete_line(tmp_path, texts, count):
  path = written(tmp_path, *texts)
  assert sample_files.continue_lines("out", path, [1, 3, 4]) == count
  assert path.read_text() == "".join(LINES[:count])
  sample_files.append_lines(path, [{"line": i} for i in (1, 3, 4)[count:]])
  assert path.read_text() == "".join(LINES)
  assert [line["line"] for line in sample_files.read_lines(path)] == [1, 3, 4]


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
  path = tmp_path / "new" / "out.jsonl"
  assert sample_files.continue_lines("out", path, [1]) == 0
  sample_files.append_lines(path, [{"line": 1, "score": float("nan"), "text": "é"}])
  assert path.read_text() == '{"line": 1, "score": "nan", "text": "é"}\n'


@pytest.mark.parametrize(
  "texts, message",
  [
    ((LINES[0], LINES[2]), "line 2 is not what this run wrote there; nothing was changed"),
    ((*LINES, LINES[0]), "line 4 is not what this run wrote there"),
    (("[1]\n",), "line 1 is not what this run wrote there"),
    (("{\n", LINES[0]), "line 1 is not valid JSON"),
  ],
)
def test_lines_of_others_stay_and_are_named(tmp_path, texts, message):
  path = written(tmp_path, *texts)
  with pytest.raises(UsageError, match=f"--out={path}, {message}"):
    sample_files.continue_lines("out", path, [1, 3, 4])
  assert path.read_text() == "".join(texts)


def test_a_file_of_others_is_not_overwritten(tmp_path):
  path = written(tmp_path)
  sample_files.check_new("out", path, begun=True)
  sample_files.check_new("out", tmp_path / "other", begun=False)
  with pytest.raises(UsageError, match="is there already; nothing is overwritten"):
    sample_files.check_new("out", path, begun=False)
