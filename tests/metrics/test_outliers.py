"""The local outlier factor beside scikit-learn's, and inside classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import LocalOutlierFactor

from jaxlab import metrics

N, D = 121, 4


@jax.jit
def factors(features, mask):
  return metrics.local_outlier_factor(features, num_neighbors=10, mask=mask)


@jax.jit
def weights(features, labels, threshold=1.5):
  return metrics.class_inlier_weights(
    features, labels, num_classes=4, num_neighbors=10, threshold=threshold
  )


EVERY = np.ones(N, bool)


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  spread = np.where(rng.random((N, 1)) < 0.5, 0.2, 1.0)
  return (scale * (rng.normal(size=(N, D)) * spread + rng.integers(0, 2, (N, 1)) * 4)).astype("f")


def sklearns(features, neighbors=10):
  model = LocalOutlierFactor(n_neighbors=neighbors).fit(features.astype(np.float64))
  return -model.negative_outlier_factor_


@pytest.mark.parametrize("seed", range(3))
def test_factors_match_scikit_learn(seed):
  features = draw(seed)
  np.testing.assert_allclose(factors(features, EVERY), sklearns(features), rtol=1e-3)


@pytest.mark.parametrize("num", [60, 7, 2, 1])
def test_masked_points_are_not_there(num):
  features = draw(0)
  mask = np.zeros(N, bool)
  mask[np.random.default_rng(num).permutation(N)[:num]] = True
  result = np.asarray(factors(features, mask))
  expected = sklearns(features[mask], min(10, num - 1)) if num > 1 else 1.0
  np.testing.assert_allclose(result[mask], expected, rtol=1e-3)
  np.testing.assert_array_equal(result[~mask], 1)


def test_moved_turned_and_scaled_points_have_the_same_factors():
  features = draw(1)
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype("f")
  expected = factors(features, EVERY)
  for other in (features + 30, features @ turn, 1000 * features, features / 1000):
    np.testing.assert_allclose(factors(other, EVERY), expected, rtol=2e-3)


def test_a_grid_is_even_and_a_far_point_is_not():
  grid = np.stack(np.meshgrid(np.arange(11.0), np.arange(11.0)), -1).reshape(N, 2)
  points = np.zeros((N, D), np.float32)
  points[:, :2] = grid
  inner = ((grid > 3) & (grid < 7)).all(1)
  np.testing.assert_allclose(np.asarray(factors(points, EVERY))[inner], 1, atol=0.03)
  points[0] = 60
  assert factors(points, EVERY)[0] > 10


def test_repeated_points_have_factor_1():
  points = np.repeat(draw(2)[: N // 11], 11, axis=0)
  np.testing.assert_allclose(factors(points, EVERY), 1, rtol=1e-5)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(factors(x, EVERY))))(points)
  assert np.isfinite(gradient).all()


def test_points_that_are_not_finite_are_nobodys_neighbors():
  features, mask = draw(0), EVERY.copy()
  mask[5] = False
  expected = np.array(factors(features, mask))
  for value in (np.nan, np.inf):
    features[5, 1] = value
    result = np.array(factors(features, EVERY))
    assert np.isnan(result[5])
    np.testing.assert_array_equal(np.delete(result, 5), np.delete(expected, 5))


def test_blocks_of_rows_change_nothing():
  features = np.random.default_rng(0).normal(size=(700, 2)).astype("f")
  result = metrics.local_outlier_factor(features)
  np.testing.assert_allclose(result, sklearns(features, 20), rtol=1e-3)
  np.testing.assert_allclose(
    metrics.local_outlier_factor(features, num_neighbors=900)[:2],
    sklearns(features, 699)[:2],
    rtol=1e-3,
  )


def test_weights_are_factors_inside_each_class():
  features = draw(0)
  labels = (np.arange(N) % 3).astype(np.int32)
  labels[:2] = 3  # Two points are kept, however far they are.
  features[0] += 50
  for threshold in (1.5, 1.1):
    expected = np.ones(N)
    for c in range(3):
      expected[labels == c] = sklearns(features[labels == c]) <= threshold
    result = weights(features, labels, threshold)
    np.testing.assert_array_equal(result, expected)
    assert (np.asarray(result) == 0).any()
  assert (np.asarray(weights(features, labels, 0.5))[:2] == 1).all()


def test_a_wrong_label_is_left_out_and_clean_ones_stay():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(N, D)).astype("f")
  labels = (np.arange(N) < 60).astype(np.int32)
  features[0] = 10
  kept = np.asarray(weights(features, labels))
  assert kept[0] == 0 and kept[1:].mean() > 0.93


def test_weights_of_unknown_labels_and_broken_points_are_nan():
  features, labels = draw(0), (np.arange(N) % 4).astype(np.int32)
  features[4, 0], labels[:2] = np.nan, [-1, 9]
  result = weights(features, labels)
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(result)), [0, 1, 4])


def test_errors():
  features, labels = draw(0), np.zeros(N, int)
  inliers = metrics.class_inlier_weights
  with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
    metrics.local_outlier_factor(features, num_neighbors=0)
  with pytest.raises(ValueError, match=r"mask must have shape \[n\] with n = 121, got \[4\]"):
    metrics.local_outlier_factor(features, mask=np.ones(4, bool))
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    inliers(features, labels, num_classes=1)
  with pytest.raises(ValueError, match=r"threshold must lie in \(0, inf\), got 0"):
    inliers(features, labels, num_classes=2, threshold=0)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 3 to 3"):
    inliers(features, labels + 3, num_classes=2)
