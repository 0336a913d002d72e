"""Class sizes, noise matrices and noise in a region."""

import jax
import numpy as np
import pytest

from jaxlab import data

NOISE = jax.jit(data.proportional_noise_matrix)


def test_counts_fall_geometrically():
  assert data.long_tailed_counts(500, num_classes=10, imbalance=50)[::9] == [500, 10]
  assert data.long_tailed_counts(100, num_classes=3, imbalance=100) == [100, 10, 1]
  assert data.long_tailed_counts(7, num_classes=4, imbalance=1) == [7] * 4
  for imbalance in (1.5, 3, 7, 10, 100):
    counts = data.long_tailed_counts(300, num_classes=6, imbalance=imbalance)
    assert counts == [int(300 * imbalance ** -(k / 5) + 1e-9) for k in range(6)]
    assert counts[-1] == int(300 / imbalance)


@pytest.mark.parametrize("imbalance", [1, 4, 30])
def test_rows_have_the_counts(imbalance):
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(np.arange(5), (90, 100, 40, 80, 70)))
  rows = data.long_tailed_indices(labels, imbalance=imbalance)
  assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
  counts = np.bincount(labels[rows])
  assert counts.tolist() == data.long_tailed_counts(
    int(counts[0]), num_classes=5, imbalance=imbalance
  )
  # One row more in the first class, and some class would lack rows.
  more = data.long_tailed_counts(int(counts[0]) + 1, num_classes=5, imbalance=imbalance)
  assert (more > np.bincount(labels)).any()
  other = data.long_tailed_indices(labels, imbalance=imbalance, seed=1)
  assert len(other) == len(rows) and (other != rows).any()
  np.testing.assert_array_equal(data.long_tailed_indices(labels, imbalance=imbalance), rows)


def test_proportional_noise():
  counts = np.array([6.0, 3.0, 1.0], np.float32)
  matrix = np.asarray(NOISE(counts, noise_rate=0.5))
  np.testing.assert_allclose(matrix, 0.5 * np.eye(3) + 0.5 * np.tile(counts / 10, (3, 1)))
  np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(NOISE(counts, noise_rate=0.0), np.eye(3))
  equal = np.asarray(NOISE(np.ones(3, np.float32), noise_rate=0.3))
  np.testing.assert_allclose(equal[~np.eye(3, dtype=bool)], 0.1, rtol=1e-6)


def test_noise_matrix_is_applied():
  rng = np.random.default_rng(0)
  matrix = rng.dirichlet(np.ones(4), 4).astype(np.float32)
  matrix[2] = [0, 1, 0, 0]
  labels = rng.integers(0, 4, 40_000)
  given = data.apply_noise_matrix(labels, matrix)
  assert given.dtype == np.int32
  for c in range(4):
    num = np.sum(labels == c)
    shares = np.bincount(given[labels == c], minlength=4) / num
    assert (abs(shares - matrix[c]) <= 4 * np.sqrt(matrix[c] * (1 - matrix[c]) / num) + 1e-6).all()
  np.testing.assert_array_equal(data.apply_noise_matrix(labels, matrix), given)
  assert (data.apply_noise_matrix(labels, matrix, seed=1) != given).any()
  np.testing.assert_array_equal(data.apply_noise_matrix(labels, np.eye(4)), labels)


def test_region_is_the_upper_end_of_the_first_component():
  rng = np.random.default_rng(0)
  axis = np.array([0.6, -0.8])
  inputs = rng.normal(size=(300, 1)) * 5 * axis + 0.1 * rng.normal(size=(300, 2))
  labels = rng.integers(0, 3, 300)
  noisy = data.region_noise(inputs, labels, source=1, target=2, fraction=0.25)
  place = inputs @ -axis  # The largest loading is made positive.
  rows = np.flatnonzero(labels == 1)
  count = round(0.25 * len(rows))
  assert noisy.is_flipped.sum() == count
  assert (noisy.labels[noisy.is_flipped] == 2).all() and (labels[noisy.is_flipped] == 1).all()
  np.testing.assert_array_equal(noisy.labels[~noisy.is_flipped], labels[~noisy.is_flipped])
  assert place[noisy.is_flipped].min() > place[rows[~noisy.is_flipped[rows]]].max() - 0.5


def test_region_of_a_distance_is_both_ends_and_ties_are_drawn():
  distance = abs(np.linspace(-2, 2, 101))[:, None]
  noisy = data.region_noise(distance, np.zeros(101, int), source=0, target=1, fraction=0.4)
  expected = distance[:, 0] > 1.21
  np.testing.assert_array_equal(noisy.is_flipped, expected)
  equal = np.repeat([[0.0], [1.0]], 50, axis=0)
  first, again, other = (
    data.region_noise(equal, np.zeros(100, int), source=0, target=1, fraction=0.2, seed=seed)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.is_flipped, again.is_flipped)
  assert (first.is_flipped != other.is_flipped).any()
  for noisy in first, other:
    assert noisy.is_flipped[50:].sum() == 20 and not noisy.is_flipped[:50].any()


def test_errors():
  labels = np.array([0, 1, 3])
  region = {"source": 0, "target": 1, "fraction": 0.5}
  for call, text in (
    (lambda: data.long_tailed_counts(5, num_classes=1, imbalance=2), "num_classes .* 2, got 1"),
    (lambda: data.long_tailed_counts(0, num_classes=2, imbalance=2), "max_count .* 1, got 0"),
    (lambda: data.long_tailed_counts(5, num_classes=2, imbalance=0.5), "imbalance .* got 0.5"),
    (lambda: data.long_tailed_indices(labels, imbalance=2), "class 2 has none"),
    (lambda: data.long_tailed_indices(labels - 1, imbalance=2), r"labels must lie in \[0, inf\)"),
    (lambda: data.proportional_noise_matrix(np.ones(3), noise_rate=2), "noise_rate .* got 2"),
    (lambda: data.proportional_noise_matrix(-np.ones(3), noise_rate=0.1), "counts must lie in"),
    (lambda: data.apply_noise_matrix(labels, np.eye(3)), r"labels .* got 0 to 3; .*labels\[2\]"),
    (lambda: data.apply_noise_matrix(labels, np.ones((4, 4))), "matrix must have rows of prob"),
    (lambda: data.region_noise(np.ones((3, 1)), labels, **{**region, "target": 0}), "differ"),
    (lambda: data.region_noise(np.ones((3, 1)), labels, **{**region, "source": 2}), "got 2, which"),
    (lambda: data.region_noise(np.ones((3, 1)), labels, **{**region, "fraction": 2}), "got 2"),
    (lambda: data.region_noise(np.full((3, 1), np.nan), labels, **region), "row 0 are not"),
  ):
    with pytest.raises(ValueError, match=text):
      call()
