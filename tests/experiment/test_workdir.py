import json
import math

import numpy as np
import pytest

from jaxlab.experiment import workdir


def test_files_appear_whole(tmp_path):
  path = tmp_path / "file"
  workdir.write_atomic(path, lambda file: file.write(b"old"))

  def fail(file):
    file.write(b"half")
    raise RuntimeError

  with pytest.raises(RuntimeError):
    workdir.write_atomic(path, fail)
  assert path.read_bytes() == b"old"


def test_json_keeps_values_and_puts_a_record_on_a_line(tmp_path):
  value = {
    "seeds": 2,
    "config": {"sizes": [1, 2], "name": "ü"},
    "claims": [],
    "records": [{"method": "a", "values": [0.5, math.inf]}, {"method": "b", "values": [1, 2]}],
    "deep": {"table": {"x": {"y": [1]}}},
  }
  workdir.save_json(tmp_path / "file.json", value)
  text = (tmp_path / "file.json").read_text()
  expected = value | {"records": [{"method": "a", "values": [0.5, "inf"]}, value["records"][1]]}
  assert json.loads(text) == expected == workdir.load_json(tmp_path / "file.json")
  lines = [line.strip() for line in text.splitlines()]
  assert '{"method": "b", "values": [1, 2]}' in lines
  assert any(line.startswith('"config": {') and line.endswith("},") for line in lines)


def test_the_first_difference_is_named():
  stored = {"config": {"rate": 0.1, "sizes": [1, 2]}, "seeds": 3}
  assert workdir.first_difference(stored, stored) is None
  asked = {"config": {"rate": 0.1, "sizes": [1, 3]}, "seeds": 3}
  assert workdir.first_difference(stored, asked) == ("config.sizes", [1, 2], [1, 3])
  assert workdir.first_difference(stored, {"config": stored["config"]}) == ("seeds", 3, None)


def test_trees_keep_types_and_structure(tmp_path):
  tree = {"a": [np.float32(0.5), (1, "x")], "b": np.arange(6).reshape(2, 3)}
  with open(tmp_path / "tree.npz", "wb") as file:
    workdir.save_tree(file, tree)
  loaded = workdir.load_tree(tmp_path / "tree.npz")
  assert loaded["a"] == [np.float32(0.5), (1, "x")] and type(loaded["a"][1]) is tuple
  np.testing.assert_array_equal(loaded["b"], tree["b"])
