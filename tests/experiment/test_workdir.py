import json
import math

import numpy as np
import pytest

from jaxlab import training
from jaxlab.experiment import workdir


def test_files_appear_whole(tmp_path):
  path = tmp_path / "file"
  workdir.write_atomic(path, lambda file: file.write(b"old"))

  def fail(file):
    file.write(b"half")
    raise RuntimeError

  with pytest.raises(RuntimeError):
    workdir.write_atomic(path, fail)
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_was_measured_goes_first_and_what_was_asked_stays(tmp_path, monkeypatch):
  names = ("results.json", "figure.png", "extras.npz", "metrics.jsonl", "stages/a/b.npz")
  for name in ("config.json", *names):
    workdir.write_atomic(tmp_path / name, lambda file: file.write(b"old"))
  real, removed = workdir._remove, []
  remove = lambda path: path.exists() and removed.append(path.name) or real(path)  # noqa: E731
  monkeypatch.setattr(workdir, "_remove", remove)
  workdir.clear(tmp_path)
  assert removed == ["results.json", "figure.png", "extras.npz", "metrics.jsonl", "b.npz"]
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_folders_may_be_links_to_another_disk(tmp_path):
  for name in ("other/4/data", "other/notes", "run/config.json"):
    workdir.write_atomic(tmp_path / name, lambda file: file.write(b"old"))
  (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other")
  workdir.clear(tmp_path / "run")
  assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes"]


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


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_damage_is_named(tmp_path, keep):
  tree, json_file = tmp_path / "tree.npz", tmp_path / "file.json"
  workdir.write_atomic(tree, lambda file: workdir.save_tree(file, {"a": np.arange(9)}))
  workdir.save_json(json_file, {"a": [1, 2]})
  for path, load in ((tree, workdir.load_tree), (json_file, workdir.load_json)):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * (len(data) - 2))])
    with pytest.raises(workdir.DamagedFileError, match=f"{path} is damaged"):
      load(path)
    path.write_bytes(bytes([data[0] ^ 0xFF]) + data[1:])
    with pytest.raises(workdir.DamagedFileError, match=f"{path} is damaged"):
      load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
      load(path)


def test_what_another_thing_made_is_refused(tmp_path):
  made_by = {"config": {"rate": 0.1}, "data": training.fingerprint([1, 2])}
  path = tmp_path / "stage.npz"
  with open(path, "wb") as file:
    workdir.save_tree(file, {"a": 1}, made_by=made_by)
  assert workdir.load_tree(path) == workdir.load_tree(path, made_by=made_by) == {"a": 1}
  with pytest.raises(training.MismatchError, match=f'{path} differs: config/data is "[0-9a-f]+" '):
    workdir.load_tree(path, made_by=made_by | {"data": training.fingerprint([1, 3])})
  with open(path, "wb") as file:
    workdir.save_tree(file, {"a": 1})
  with pytest.raises(training.MismatchError, match="config/config/rate is absent"):
    workdir.load_tree(path, made_by=made_by)
