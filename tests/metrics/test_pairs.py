import functools

import jax
import numpy as np
import pytest

from jaxlab.metrics import pairs

RNG = np.random.default_rng(0)
N, K = 7, 3


def test_pair_squared_error_is_unbiased():
  """All pairs of labels, weighted by their probability, give the squared error exactly."""
  truth = RNG.dirichlet(np.ones(K), size=N)
  probs = RNG.dirichlet(np.ones(K), size=N).astype(np.float32)
  estimate = jax.jit(pairs.pair_squared_error)
  total = np.zeros((N, K))
  for a in range(K):
    for b in range(K):
      labels = np.full(N, a, np.int32), np.full(N, b, np.int32)
      values = np.asarray(estimate(probs, *labels))
      expected = (np.eye(K)[a] - probs) * (np.eye(K)[b] - probs)
      np.testing.assert_allclose(values, expected, rtol=1e-5)
      total += (truth[:, a] * truth[:, b])[:, None] * values
  np.testing.assert_allclose(total, (truth - probs) ** 2, atol=1e-6)
  outside = np.array([0, K, 0, -1, 0, 0, 0])
  values = estimate(probs, outside, np.zeros(N, np.int32))
  np.testing.assert_array_equal(np.isnan(values).all(axis=1), (outside < 0) | (outside == K))
  with pytest.raises(ValueError, match="labels_a must lie"):
    pairs.pair_squared_error(probs, outside, outside)


@pytest.mark.parametrize("num_bins", [1, 4, 20, 30])
def test_second_order_calibration_error(num_bins):
  variance = np.round(RNG.uniform(0, 0.25, (N, K)), 1).astype(np.float32)  # With ties.
  error = RNG.uniform(-0.1, 0.3, (N, K)).astype(np.float32)
  flat, errors = variance.ravel(), error.ravel()
  order = np.argsort(flat, kind="stable")
  bins = np.arange(N * K) * num_bins // (N * K)
  expected = 0.0
  for b in range(num_bins):
    chosen = order[bins == b]
    if chosen.size:
      expected += chosen.size / (N * K) * abs(flat[chosen].mean() - errors[chosen].mean())
  measure = functools.partial(pairs.second_order_calibration_error, num_bins=num_bins)
  np.testing.assert_allclose(jax.jit(measure)(variance, error), expected, rtol=1e-4)
  if num_bins == 1:
    assert jax.jit(measure)(variance, variance) == 0


def test_interval_coverage():
  probs = np.array([[0.1, 0.5], [0.2, 0.9]])
  lower, upper = np.array([[0.1, 0.6], [0.0, 0.0]]), np.array([[0.2, 0.7], [0.3, 0.9]])
  cover = jax.jit(pairs.interval_coverage)
  np.testing.assert_allclose(cover(probs, lower, upper), 0.75)
  assert np.isnan(cover(probs, np.where(lower == 0.6, np.nan, lower), upper))


def test_hallucination_curve():
  confidence = np.array([0.9, 0.5, 0.9, 0.1, 0.5, 0.7, np.nan], np.float32)
  wrong = np.array([0, 1, 1, 1, 0, 0, 1])
  curve = jax.tree.map(np.asarray, jax.jit(pairs.hallucination_curve)(confidence, wrong))
  np.testing.assert_allclose(curve.thresholds[:6], [0.9, 0.9, 0.7, 0.5, 0.5, 0.1])
  expected = [wrong[:6][confidence[:6] >= c].mean() for c in curve.thresholds[:6]]
  np.testing.assert_allclose(curve.rate[:6], expected, rtol=1e-6)
  assert np.isnan(curve.thresholds[6]) and np.isnan(curve.rate[6])


def test_errors():
  with pytest.raises(ValueError, match="num_bins"):
    pairs.second_order_calibration_error(np.ones((N, K)), np.ones((N, K)), num_bins=0)
  with pytest.raises(ValueError, match="hallucinated must be 0 or 1"):
    pairs.hallucination_curve(np.ones(2), np.array([0, 2]))
