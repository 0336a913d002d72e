import gzip
import json

import pytest

from jaxlab import data
from jaxlab.data import records

ROWS = [{"prompt": "p", "split": "train"}, {"prompt": "é", "split": "val"}, {"prompt": "r"}]


def written(tmp_path, content, name="data.jsonl"):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def lines(*rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def contents(path, **options):
  return [record.columns for record in data.read_records(path, **options)]


def test_lines_arrays_and_compressed_ones_are_told_apart(tmp_path):
  path = written(tmp_path, b"\n" + lines(*ROWS))
  assert contents(path) == ROWS
  first, *_ = data.read_records(path)
  assert first.line == 2 and first.place == f"{path}, line 2"
  path = written(tmp_path, gzip.compress(lines(*ROWS)))
  assert contents(path) == ROWS
  path = written(tmp_path, json.dumps(ROWS).encode())
  assert contents(path) == ROWS and data.read_records(path)[2].place == f"{path}, row 3"
  assert data.read_records(written(tmp_path, b" \n")) == []


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  turns = [{"role": "user", "content": "p"}]
  rows = [{"prompt": "p", "chosen": turns}, {"prompt": None, "chosen": turns * 2}]
  path = tmp_path / "data.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert contents(path) == rows and data.read_records(path)[1].place == f"{path}, row 2"
  whole = path.read_bytes()
  for content in (whole[:40], whole[:-9] + b"0" * 9, b"PAR1"):
    with pytest.raises(ValueError, match=f"^{path}: "):
      data.read_records(written(tmp_path, content, "data.parquet"))


def test_only_rows_of_a_split(tmp_path):
  path = written(tmp_path, lines(*ROWS))
  assert contents(path, split="val") == ROWS[1:2]
  with pytest.raises(ValueError, match=f"^{path}: no row has split 'test'; there is None, train"):
    data.read_records(path, split="test")


def test_errors(tmp_path):
  with pytest.raises(OSError):
    data.read_records(tmp_path / "missing.jsonl")
  path = written(tmp_path, lines(*ROWS, [1]))
  with pytest.raises(ValueError, match=f"^{path}, line 4: must be an object of columns, got list"):
    data.read_records(path)
  path = written(tmp_path, gzip.compress(lines(*ROWS))[:-20])
  with pytest.raises(ValueError, match=f"^{path} is a damaged gzip file"):
    data.read_records(path)
  path = written(tmp_path, b'{"prompt": ')
  with pytest.raises(ValueError, match=f"^{path}, line 1 is not valid JSON"):
    data.read_records(path)


def test_broken_lines_may_be_left_out(tmp_path):
  faults = []
  path = written(tmp_path, lines(ROWS[0]) + b'{"prompt": \n\n[1]\n' + lines(ROWS[2]))
  found = data.read_records(path, faults=faults)
  assert [(record.line, record.columns) for record in found] == [(1, ROWS[0]), (5, ROWS[2])]
  assert faults[0].startswith(f"{path}, line 2 is not valid JSON: ")
  assert faults[1] == f"{path}, line 4: must be an object of columns, got list."


def test_unusable_groups_are_raised_or_told():
  groups = [[data.FileRecord(i, f"line {i}", {})] for i in range(4)]

  def parse(group):
    if group[0].line % 2:
      raise ValueError(f"{group[0].place}: odd")
    return [group[0].line]

  with pytest.raises(ValueError, match="line 1: odd"):
    records.parse_groups(groups, parse, skip_unusable=False)
  items, faults = records.parse_groups(groups, parse, skip_unusable=True)
  assert items == [0, 2] and faults == ["line 1: odd", "line 3: odd"]
