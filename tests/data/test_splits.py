import jax
import numpy as np
import pytest

from jaxlab import data


def test_rows_are_disjoint_and_balanced_per_class():
  labels = np.random.default_rng(0).integers(0, 4, 60)
  split = data.few_shot_split(
    jax.random.key(0), labels, num_classes=4, num_shots=3, num_validation_shots=2
  )
  assert split.train.dtype == split.validation.dtype == np.int32
  np.testing.assert_array_equal(labels[split.train], np.repeat(np.arange(4), 3))
  np.testing.assert_array_equal(labels[split.validation], np.repeat(np.arange(4), 2))
  rows = np.concatenate([split.train, split.validation, np.flatnonzero(split.rest)])
  np.testing.assert_array_equal(np.sort(rows), np.arange(60))


def test_split_depends_on_the_key():
  labels = np.arange(100) % 2

  def draw(key):
    return data.few_shot_split(key, labels, num_classes=2, num_shots=5).train

  np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.PRNGKey(1)))
  assert np.any(draw(jax.random.key(1)) != draw(jax.random.key(2)))


def test_every_row_is_equally_likely():
  labels = np.zeros(5, int)
  counts = np.zeros(5)
  for seed in range(500):
    split = data.few_shot_split(
      jax.random.key(seed), labels, num_classes=1, num_shots=1, num_validation_shots=0
    )
    counts[split.train] += 1
    assert len(split.validation) == 0
  assert np.all(np.abs(counts - 100) < 4 * np.sqrt(80))


def test_other_labels_stay_in_the_rest():
  labels = np.array([0, 0, 1, 1, 7, -1])
  split = data.few_shot_split(jax.random.key(0), labels, num_classes=2, num_shots=1)
  np.testing.assert_array_equal(np.flatnonzero(split.rest), [4, 5])


def test_bad_arguments():
  key, labels = jax.random.key(0), np.array([0, 0, 0, 1, 1])
  with pytest.raises(ValueError, match="class 1 has 2 rows, 3 are needed"):
    data.few_shot_split(key, labels, num_classes=2, num_shots=2)
  for name, value in (("num_shots", 0), ("num_classes", 0), ("num_validation_shots", -1)):
    arguments = {"num_classes": 2, "num_shots": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least .*{value}"):
      data.few_shot_split(key, labels, **arguments)
  with pytest.raises(ValueError, match="labels"):
    data.few_shot_split(key, labels.astype(float), num_classes=2, num_shots=1)
