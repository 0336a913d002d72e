import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxlab.models.pretrained_files import (
  existing_directory,
  open_tensors,
  read_json,
  save_tensors,
  write_directory,
)

TENSORS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3.0)}


def test_one_file_and_shards(tmp_path):
  one, shards = tmp_path / "one", tmp_path / "shards"
  one.mkdir(), shards.mkdir()
  safetensors.numpy.save_file(TENSORS, one / "model.safetensors")
  for name, x in TENSORS.items():
    safetensors.numpy.save_file({name: x}, shards / f"{name}.safetensors")
  index = {"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}
  (shards / "model.safetensors.index.json").write_text(json.dumps(index))
  for directory in (one, shards):
    with open_tensors(directory) as files:
      assert files.shapes == {"a": (2, 3), "b": (3,)}
      part = files.read("a", (slice(1, 2), slice(0, 2)))
      np.testing.assert_array_equal(part, [[3, 4]])
  (shards / "b.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="lacks b.safetensors"), open_tensors(shards):
    pass


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_largest_weights_are_read(tmp_path, dtype):
  largest = np.array([1, -1], dtype) * ml_dtypes.finfo(dtype).max
  safetensors.numpy.save_file({"a": largest}, tmp_path / "model.safetensors")
  with open_tensors(tmp_path) as files:
    np.testing.assert_array_equal(files.read("a", (slice(None),)), largest)


@pytest.mark.parametrize(
  "weights, words",
  [
    *((np.ones(3, dtype), f"type, got {dtype}") for dtype in ("int8", "uint8", "int32", "bool")),
    (np.float32([1, np.nan, 2]), "NaN or infinite"),
    (np.float16([1, -np.inf, 2]), "NaN or infinite"),
    (np.array([1, np.nan, 2], ml_dtypes.bfloat16), "NaN or infinite"),
    (np.array([1, -np.inf, 2], ml_dtypes.bfloat16), "NaN or infinite"),
    (np.float64([1, np.inf, 2]), "NaN or infinite"),
  ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path, weights, words):
  safetensors.numpy.save_file({"a": weights}, tmp_path / "model.safetensors")
  with open_tensors(tmp_path) as files, pytest.raises(ValueError, match=f"^a .*{words}"):
    files.read("a", (slice(None),))


@pytest.mark.parametrize(
  "files, words",
  [
    ({"pytorch_model.bin": "x"}, "pickled weights, pytorch_model.bin"),
    ({"model.safetensors": "x"}, "is not a safetensors file"),
    ({"model.safetensors.index.json": "{}"}, "lacks weight_map"),
    (
      {"model.safetensors.index.json": '{"weight_map": {"settings": 1}}'},
      "index.json: settings must be text",
    ),
    (
      {"model.safetensors.index.json": '{"weight_map": {"a": "../a.safetensors"}}'},
      "points outside its directory",
    ),
  ],
)
def test_invalid_weights_raise(tmp_path, files, words):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=words), open_tensors(tmp_path):
    pass


def test_no_weights(tmp_path):
  with pytest.raises(FileNotFoundError, match="neither model.safetensors"), open_tensors(tmp_path):
    pass


def test_the_name_of_a_model_says_how_to_fetch_it(tmp_path, monkeypatch):
  for name in ("gpt2", "Qwen/Qwen3-0.6B"):
    with pytest.raises(FileNotFoundError, match=f"`hf download {name} --local-dir DIR`"):
      existing_directory(name)
  with pytest.raises(FileNotFoundError, match=f"there is no directory {tmp_path}/x.$"):
    existing_directory(tmp_path / "x")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert existing_directory("~") == tmp_path


def test_files_that_cannot_be_written_are_the_systems_error(tmp_path):
  save_tensors(tmp_path / "a", TENSORS)
  np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "a")["b"], TENSORS["b"])
  with pytest.raises(OSError, match=f"{tmp_path}/none/a cannot be written: .*No such file"):
    save_tensors(tmp_path / "none" / "a", TENSORS)


def test_json_objects(tmp_path):
  path = tmp_path / "x.json"
  for content, words in (
    ("", "not valid JSON: Expecting value at column 1"),
    ("{", "not valid JSON"),
    ("[1]", "must hold an object, got list"),
    ("[" * 100_000, "not valid JSON: maximum recursion depth"),
    (f'{{"a": {"9" * 5000}}}', "not valid JSON: .* digits"),
    ('{"a": "\\ud800"}', "not valid JSON: .* surrogates not allowed"),
    ("\xff", "not valid JSON: .* can't decode"),
  ):
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=words):
      read_json(path)
  path.write_text('\ufeff{"a": "\\ud83d\\ude00"}', encoding="utf-8")
  assert read_json(path) == {"a": "😀"}


def test_a_directory_is_replaced_as_a_whole_or_not_at_all(tmp_path):
  directory = tmp_path / "new" / "model"
  with write_directory(directory, marker="mark") as new:
    (new / "mark").write_text("1")
    (new / "old").write_text("1")
  with pytest.raises(KeyError), write_directory(directory, marker="mark") as new:
    (new / "mark").write_text("2")
    raise KeyError
  assert (directory / "mark").read_text() == "1"
  with write_directory(directory, marker="mark") as new:
    (new / "mark").write_text("3")
    assert (directory / "mark").read_text() == "1"
  assert [path.name for path in directory.iterdir()] == ["mark"]
  assert (directory / "mark").read_text() == "3"
  assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_other_directories_are_not_replaced(tmp_path):
  (tmp_path / "thesis.tex").write_text("1")
  for target in (tmp_path, tmp_path / "thesis.tex"):
    with (
      pytest.raises(FileExistsError, match="holds other files"),
      write_directory(target, marker="config.json"),
    ):
      pass
  assert (tmp_path / "thesis.tex").read_text() == "1"
  (tmp_path / "empty").mkdir()
  with write_directory(tmp_path / "empty", marker="config.json") as new:
    (new / "x").write_text("1")
  assert (tmp_path / "empty" / "x").exists()
