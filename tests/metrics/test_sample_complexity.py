"""How many examples are enough."""

import jax
import numpy as np
import pytest

from jaxlab import metrics

SIZES = np.array([4, 8, 16, 32], np.int32)
reach = jax.jit(metrics.samples_to_reach)


def test_samples_to_reach():
  nan = np.nan
  curves = np.array(
    [
      [0.3, 0.2, 0.1, 0.05],  # The third is just near enough.
      [0.3, 0.09, 0.3, 0.05],  # A later rise is ignored.
      [0.0, 0.0, 0.0, 0.0],
      [0.3, 0.2, 0.2, 0.2],  # Never.
      [nan, nan, 0.2, 0.06],
    ],
    np.float32,
  )
  result = reach(SIZES, curves, 0.05, tolerance=0.0501)
  np.testing.assert_array_equal(result, [16, 8, 4, -1, 32])
  assert result.dtype == np.int32
  limits = np.array([0.05, 0.04, 0.0, 0.2, 0.0], np.float32)
  np.testing.assert_array_equal(reach(SIZES, curves, limits, tolerance=0.0), [32, -1, 4, 8, -1])


def test_scaling_exponent():
  dimensions = np.array([50, 100, 200, 400])
  law = jax.jit(metrics.scaling_exponent)(dimensions, 3.0 * dimensions**0.7)
  np.testing.assert_allclose(law, [0.7, np.log(3)], rtol=1e-4)
  rng = np.random.default_rng(0)
  samples = dimensions * rng.uniform(0.5, 2, 4)
  law = jax.jit(metrics.scaling_exponent)(dimensions, samples)
  np.testing.assert_allclose(law, np.polyfit(np.log(dimensions), np.log(samples), 1), rtol=1e-4)
  for bad in (0.0, -1.0):
    broken = jax.jit(metrics.scaling_exponent)(dimensions, np.where(dimensions > 60, samples, bad))
    assert np.isnan(broken).all()


def test_errors():
  curves = np.zeros((2, 4))
  with pytest.raises(ValueError, match="sample_sizes must increase strictly, got 4.0 after 8.0"):
    metrics.samples_to_reach(SIZES[[1, 0, 2, 3]], curves, 0.0)
  with pytest.raises(ValueError, match=r"tolerance must lie in \[0, inf\), got -0.1"):
    metrics.samples_to_reach(SIZES, curves, 0.0, tolerance=-0.1)
  with pytest.raises(ValueError, match="errors must have shape"):
    metrics.samples_to_reach(SIZES[:3], curves, 0.0)
  with pytest.raises(ValueError, match="samples must lie in"):
    metrics.scaling_exponent(np.array([1, 2]), np.array([4, -1]))
  with pytest.raises(ValueError, match="dimensions must lie in"):
    metrics.scaling_exponent(np.array([0, 2]), np.array([4, 1]))
