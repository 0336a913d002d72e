import numpy as np
import pytest
import sklearn.datasets

from jaxlab import data
from jaxlab.data import series
from jaxlab.data.builders.catalogue import package_directory

# Name -> training and test rows, channels, steps, classes.
SIZES = {
  "basic_motions": (40, 40, 6, 100, 4),
  "japanese_vowels": (270, 370, 12, 29, 9),
  "gun_point": (50, 150, 1, 150, 2),
  "arrow_head": (36, 175, 1, 251, 3),
  "osu_leaf": (200, 242, 1, 427, 6),
  "italy_power_demand": (67, 1029, 1, 24, 2),
  "digit_rows": (1200, 597, 8, 8, 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
  if name != "digit_rows":
    pytest.importorskip("aeon")
  num_train, num_test, channels, steps, classes = SIZES[name]
  loaded = data.load_series(name)
  assert loaded.train_values.shape == (num_train, channels, steps)
  assert loaded.test_values.shape == (num_test, channels, steps)
  assert loaded.train_values.dtype == loaded.test_values.dtype == np.float32
  for labels, lengths, num in (loaded[1:3] + (num_train,), loaded[4:] + (num_test,)):
    assert labels.dtype == lengths.dtype == np.int32
    assert labels.shape == lengths.shape == (num,)
    assert set(labels) == set(range(classes))
    unequal = name == "japanese_vowels"
    assert lengths.min() == (7 if unequal else steps) and lengths.max() <= steps


def test_the_archives_parts_are_those_of_the_package():
  load_from_ts_file = pytest.importorskip("aeon.datasets").load_from_ts_file
  for name, archive in (("japanese_vowels", "JapaneseVowels"), ("basic_motions", "BasicMotions")):
    loaded = data.load_series(name)
    folder = package_directory("aeon") / "datasets" / "data" / archive
    for part, values, labels in (("TRAIN", *loaded[:2]), ("TEST", *loaded[3:5])):
      theirs, classes = load_from_ts_file(str(folder / f"{archive}_{part}.ts"))
      for ours, x in zip(values, theirs):
        np.testing.assert_array_equal(ours[:, : x.shape[1]], x.astype(np.float32))
        assert (ours[:, x.shape[1] :] == 0).all()
      np.testing.assert_array_equal(labels, np.unique(classes, return_inverse=True)[1])


def test_rows_of_digits_are_steps():
  loaded, digits = data.load_series("digit_rows"), sklearn.datasets.load_digits()
  row = np.random.default_rng(0).permutation(1797)[3]
  np.testing.assert_array_equal(loaded.train_values[3, :, 2], digits.images[row, 2] / 16)
  assert loaded.train_labels[3] == digits.target[row]


def test_redrawn_parts():
  pytest.importorskip("aeon")
  archive = data.load_series("japanese_vowels")
  first, again, other = (data.load_series("japanese_vowels", split=seed) for seed in (1, 1, 2))
  for x, y in zip(first, again):
    np.testing.assert_array_equal(x, y)
  assert not np.array_equal(first.train_values, other.train_values)
  rows = [x.tobytes() for x in (*first.train_values, *first.test_values)]
  assert sorted(rows) == sorted(x.tobytes() for x in (*archive.train_values, *archive.test_values))
  assert len(set(rows)) == len(rows)
  assert first.train_values.shape == archive.train_values.shape
  counts = np.bincount(np.concatenate([archive.train_labels, archive.test_labels]))
  share = np.bincount(first.train_labels) - counts * 270 / 640
  assert np.abs(share).max() < 1
  steps = np.arange(29) < first.train_lengths[:, None]
  assert (first.train_values[~np.broadcast_to(steps[:, None], first.train_values.shape)] == 0).all()


def test_unknown_or_missing_sets(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="name.*'gun_point'.*got 'gunpoint'"):
    data.load_series("gunpoint")
  monkeypatch.setattr(series, "package_directory", lambda _: tmp_path)
  with pytest.raises(FileNotFoundError, match="OSULeaf_TRAIN"):
    data.load_series("osu_leaf")
  monkeypatch.setattr(series, "package_directory", lambda _: None)
  with pytest.raises(ImportError, match="series"):
    data.load_series("osu_leaf")
