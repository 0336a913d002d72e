"""Descriptions of data sets, and splits that every seed draws anew."""

import numpy as np
import pytest

from experiments.kit import datasets


def _rows(split):
  return {row.tobytes() for row in split.inputs}


def test_digits_are_disjoint_and_drawn_by_the_seed():
  digits = datasets.describe("digits")
  assert digits.is_image and digits.num_classes == 10
  train, test = digits.splits(300, 200, seed=1)
  assert train.inputs.shape == (300, *digits.shape) and test.labels.shape == (200,)
  assert train.inputs.min() == 0 and train.inputs.max() == 1
  assert not _rows(train) & _rows(test)
  assert _rows(digits.splits(300, 200, seed=2)[0]) != _rows(train)
  assert _rows(digits.splits(300, 200, seed=1)[0]) == _rows(train)
  with pytest.raises(ValueError, match=r"sizes \(1700, 100\) exceed the 1797 rows"):
    digits.splits(1700, 100)


def test_signals_are_standardized_by_the_first_split():
  signals = datasets.describe("mnist1d")
  train, test = signals.splits(30, 10)
  assert not signals.is_image and test.inputs.shape == (10, *signals.shape)
  np.testing.assert_allclose([train.inputs.mean(), train.inputs.std()], [0, 1], atol=1e-4)
  quiet, _ = signals.splits(30, 10, corr_noise_scale=0.0)
  assert not _rows(quiet) & _rows(train)
  assert not _rows(signals.splits(30, 10, seed=1)[0]) & _rows(train)


def test_batches_have_the_shapes_of_splits():
  batch = datasets.describe("cifar100").batch(5)
  assert batch.inputs.shape == (5, 32, 32, 3) and batch.labels.shape == (5,)
  (split,) = datasets.describe("digits").splits(5)
  batch = datasets.describe("digits").batch(5)
  assert [(x.shape, x.dtype) for x in batch] == [(x.shape, x.dtype) for x in split]


def test_images_of_tfds_take_their_last_split_from_the_test_part(monkeypatch):
  rng = np.random.default_rng(0)
  parts = {
    name: datasets.Split(rng.random((n, 32, 32, 3), np.float32) + shift, np.arange(n) % 10)
    for name, n, shift in (("train", 12, 0.0), ("test", 6, 5.0))
  }
  monkeypatch.setattr(datasets, "raw_images", lambda name, part: parts[part])
  train, validation, test = datasets.describe("cifar10").splits(8, 4, 6, seed=3)
  np.testing.assert_allclose(train.inputs.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(train.inputs.std((0, 1, 2)), 1, atol=1e-5)
  assert abs(validation.inputs.mean()) < 1 and test.inputs.mean() > 10
  with pytest.raises(ValueError, match=r"sizes \(7,\) exceed the 6 rows"):
    datasets.describe("cifar10").splits(8, 7)


def test_unknown_names_and_missing_data_are_named(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no data set 'digit': there is mnist1d, digits"):
    datasets.describe("digit")
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    datasets.describe("cifar10").splits(10, 10)


def test_seeds_are_stacked():
  stacked = datasets.stack_seeds(lambda seed: {"x": np.full(2, seed), "y": (seed,)}, range(5, 8))
  np.testing.assert_array_equal(stacked["x"], [[5, 5], [6, 6], [7, 7]])
  np.testing.assert_array_equal(stacked["y"][0], [5, 6, 7])


def test_few_labels_are_balanced_and_apart():
  digits = datasets.describe("digits")
  sizes = {"num_shots": 2, "num_unlabeled": 1000, "num_validation": 200, "num_test": 577}
  parts = datasets.few_labels(digits, 3, **sizes)
  assert [len(part.labels) for part in parts] == [20, 1000, 200, 577]
  np.testing.assert_array_equal(parts.labeled.labels, np.repeat(np.arange(10), 2))
  rows = [_rows(part) for part in parts]
  assert len(set.union(*rows)) == sum(map(len, rows))
  assert _rows(datasets.few_labels(digits, 4, **sizes).labeled) != rows[0]
