import jax
import numpy as np
import pytest
from scipy import stats

from jaxlab.losses.gaussian import gaussian_nll

RNG = np.random.default_rng(0)
MEAN, TARGETS = RNG.normal(size=(2, 6)).astype(np.float32)
VARIANCE = RNG.uniform(0.1, 2.0, 6).astype(np.float32)


@jax.jit
def both(mean, variance, targets):
  def total(variance):
    losses = gaussian_nll(mean, variance, targets)
    return losses.sum(), (losses, gaussian_nll(mean, variance, targets, include_constant=False))

  return jax.grad(total, has_aux=True)(variance)


def test_matches_scipy():
  _, (losses, bare) = both(MEAN, VARIANCE, TARGETS)
  expected = -stats.norm.logpdf(TARGETS, MEAN, np.sqrt(VARIANCE))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  np.testing.assert_allclose(bare, expected - 0.5 * np.log(2 * np.pi), rtol=1e-4, atol=1e-6)


def test_the_best_variance_is_the_squared_error():
  gradient, _ = both(MEAN, np.square(MEAN - TARGETS), TARGETS)
  np.testing.assert_allclose(gradient, 0, atol=1e-3)
  numeric = -0.5 * np.square(TARGETS - MEAN) / VARIANCE**2 + 0.5 / VARIANCE
  np.testing.assert_allclose(both(MEAN, VARIANCE, TARGETS)[0], numeric, rtol=1e-4, atol=1e-5)


def test_small_variances_are_clamped():
  tiny = np.array([0, 1e-7, 9e-7, 0, 1e-20, 0], np.float32)
  gradient, (losses, _) = both(MEAN, tiny, TARGETS)
  assert not np.any(gradient)
  expected = -stats.norm.logpdf(TARGETS, MEAN, 1e-3)
  np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_errors():
  with pytest.raises(ValueError, match="variance .*-1"):
    gaussian_nll(MEAN, np.full(6, -1.0), TARGETS)


def test_nan_variances_stay_nan_in_a_mean():
  """XLA on CPU fuses the sum of so many values with the loss."""
  variance = np.where(np.arange(40_000) % 10 > 2, 1.0, np.nan).astype(np.float32)
  zeros = np.zeros_like(variance)
  mean = jax.jit(lambda variance: gaussian_nll(zeros, variance, zeros).reshape(-1, 10).mean(0))
  np.testing.assert_array_equal(np.isnan(mean(variance)), np.arange(10) <= 2)
