"""Small copies of the published corrupted sets."""

import numpy as np
import pytest
from PIL import Image

from jaxlab import data


@pytest.fixture
def directory(tmp_path):
  """Four images at each of five severities."""
  images = np.arange(20, dtype=np.uint8)[:, None, None, None] + np.zeros((20, 6, 6, 3), np.uint8)
  np.save(tmp_path / "fog.npy", images)
  np.save(tmp_path / "snow.npy", images)
  np.save(tmp_path / "labels.npy", np.tile(np.array([3, 1, 4, 9], np.uint8), 5))
  return tmp_path


def test_reads_one_severity(directory):
  fog = data.load_corrupted_images(directory, kind="fog", severity=2)
  np.testing.assert_array_equal(fog.images[:, 0, 0, 0], [4, 5, 6, 7])
  assert fog.images.dtype == np.uint8 and fog.images.shape == (4, 6, 6, 3)
  np.testing.assert_array_equal(fog.labels, [3, 1, 4, 9])
  assert fog.labels.dtype == np.int32
  assert isinstance(fog.images, np.memmap)


def test_missing_files_are_named(directory, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"kind='frost'.*frost.npy.* are fog, snow\."):
    data.load_corrupted_images(directory, kind="frost", severity=1)
  with pytest.raises(FileNotFoundError, match="kind='labels'"):
    data.load_corrupted_images(directory, kind="labels", severity=1)
  with pytest.raises(FileNotFoundError, match=r"no directory .*absent.*zenodo"):
    data.load_corrupted_images(tmp_path / "absent", kind="fog", severity=1)
  (directory / "labels.npy").unlink()
  with pytest.raises(FileNotFoundError, match=r"labels.npy is missing"):
    data.load_corrupted_images(directory, kind="fog", severity=1)


@pytest.mark.parametrize("severity", [0, 6, 1.5])
def test_severity_is_checked(directory, severity):
  with pytest.raises(ValueError, match=f"severity must be an integer in 1..5, got {severity}"):
    data.load_corrupted_images(directory, kind="fog", severity=severity)
  with pytest.raises(ValueError, match="severity must be"):
    data.load_corrupted_folders(directory, kind="fog", severity=severity)


@pytest.mark.parametrize(
  ("name", "array", "message"),
  [
    ("fog", np.zeros((20, 6, 6, 3), np.float32), r"fog.npy must hold uint8.*holds float32"),
    ("fog", np.zeros((20, 6, 6), np.uint8), r"fog.npy.*shape \(20, 6, 6\)"),
    ("fog", np.zeros((21, 6, 6, 3), np.uint8), r"five severities, but holds shape \(21, 6, 6, 3\)"),
    ("fog", np.zeros((0, 6, 6, 3), np.uint8), "five severities"),
    ("labels", np.zeros(4, np.uint8), "must hold 20 labels .* but holds 4"),
    ("labels", np.zeros(20, np.float32), r"labels.npy .* holds float32"),
  ],
)
def test_malformed_files_raise(directory, name, array, message):
  np.save(directory / f"{name}.npy", array)
  with pytest.raises(ValueError, match=message):
    data.load_corrupted_images(directory, kind="fog", severity=1)


def test_nothing_is_unpickled(directory):
  np.save(directory / "fog.npy", np.array([{"a": 1}], object), allow_pickle=True)
  with pytest.raises(ValueError, match=r"fog.npy is not a plain array"):
    data.load_corrupted_images(directory, kind="fog", severity=1)
  (directory / "fog.npy").write_bytes(b"")
  with pytest.raises(ValueError, match=r"fog.npy is not a plain array"):
    data.load_corrupted_images(directory, kind="fog", severity=1)


def test_folders(tmp_path):
  for label, name in enumerate(("n01", "n02")):
    folder = tmp_path / "fog" / "3" / name
    folder.mkdir(parents=True)
    for i in range(2):
      color = np.full((16, 16, 3), 100 * label + 50 * i, np.uint8)
      Image.fromarray(color).save(folder / f"val_{i}.JPEG")
  source = data.load_corrupted_folders(tmp_path, kind="fog", severity=3)
  assert len(source) == 4
  examples = data.as_arrays(source)
  np.testing.assert_array_equal(examples["label"], [0, 0, 1, 1])
  assert examples["image"].shape == (4, 16, 16, 3) and examples["image"].dtype == np.uint8
  np.testing.assert_allclose(examples["image"].mean((1, 2, 3)), [0, 50, 100, 150], atol=2)
  with pytest.raises(FileNotFoundError, match=r"no folder .*fog/4; in .* are fog/3\."):
    data.load_corrupted_folders(tmp_path, kind="fog", severity=4)
  (tmp_path / "snow" / "1").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match="holds no <class>"):
    data.load_corrupted_folders(tmp_path, kind="snow", severity=1)
