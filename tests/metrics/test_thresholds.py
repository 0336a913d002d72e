"""Otsu's threshold."""

import jax
import numpy as np
import pytest

from jaxlab import metrics

otsu = jax.jit(metrics.otsu_threshold, static_argnames="num_bins")
variance = jax.jit(metrics.between_class_variance, static_argnames="num_bins")


def slow_variance(values, num_bins):
  """The criterion at every edge, and the centers of the bins."""
  counts, edges = np.histogram(values, num_bins)
  centers = (edges[:-1] + edges[1:]) / 2
  criterion = []
  for b in range(num_bins - 1):
    below, above = counts[: b + 1], counts[b + 1 :]
    if below.sum() == 0 or above.sum() == 0:
      criterion.append(0.0)
      continue
    low = np.sum(below * centers[: b + 1]) / below.sum()
    high = np.sum(above * centers[b + 1 :]) / above.sum()
    criterion.append(below.sum() * above.sum() * (low - high) ** 2)
  return np.array(criterion), centers


def draws(seed):
  rng = np.random.default_rng(seed)
  mixture = np.where(
    rng.uniform(size=200) < 0.3, rng.exponential(0.1, 200), rng.normal(2, 0.5, 200)
  )
  # Multiples of 1/1024, so that bins have exact edges in float32 and in float64.
  values = np.round(1024 * mixture) / 1024
  values[:2] = 0.0, 4.0
  return np.clip(values, 0, 4).astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_threshold_matches_a_loop(seed):
  values = draws(seed)
  criterion, centers = slow_variance(values.astype(np.float64), 256)
  np.testing.assert_allclose(variance(values), criterion, rtol=1e-4, atol=1e-2)
  best = np.flatnonzero(criterion >= criterion.max() * (1 - 1e-12))[0]
  # Where two edges nearly tie, the rounding decides.
  width = centers[1] - centers[0]
  assert abs(otsu(values) - centers[best]) <= width + 1e-6
  assert criterion[round(float((otsu(values) - centers[0]) / width))] >= criterion.max() * (
    1 - 1e-5
  )


def test_affine_maps_and_permutations():
  values = draws(0)
  for scale, offset in ((3.0, -1.0), (1e-3, 5e-4), (0.5, 100.0)):
    mapped = otsu(scale * values + np.float32(offset))
    np.testing.assert_allclose(mapped, scale * otsu(values) + offset, rtol=1e-4, atol=1e-5)
  assert otsu(np.random.default_rng(1).permutation(values)) == otsu(values)


def test_two_clusters_equal_values_and_masks():
  rng = np.random.default_rng(2)
  values = np.concatenate([rng.uniform(0, 1, 100), rng.uniform(3, 4, 100)]).astype(np.float32)
  threshold = otsu(values)
  half = 0.5 * np.ptp(values) / 256
  assert values[:100].max() - half - 1e-6 <= threshold < 3
  equal = np.full(200, 0.3, np.float32)
  assert otsu(equal) == np.float32(0.3) and not np.any(variance(equal))
  mask = np.arange(200) < 150
  spoiled = np.where(mask, values, 1e9).astype(np.float32)
  padded = otsu(spoiled, mask=mask)
  np.testing.assert_allclose(padded, otsu(np.where(mask, values, 0), mask=mask), rtol=1e-6)
  assert 0.9 < padded < 3
  assert np.isnan(otsu(values, mask=np.zeros(200, bool)))
  assert np.isnan(otsu(np.where(mask, values, np.nan).astype(np.float32)))


def test_errors():
  with pytest.raises(ValueError, match="num_bins must be at least 2, got 1"):
    metrics.otsu_threshold(np.ones(3), num_bins=1)
  with pytest.raises(ValueError, match="values must not be empty"):
    metrics.between_class_variance(np.ones(0))
