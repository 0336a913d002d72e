"""Likelihoods of latent-variable models against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import algorithms, losses

N, D, R, K = 40, 6, 2, 3
RNG = np.random.default_rng(0)
DATA, LOADINGS, CENTERS = (
  RNG.normal(size=shape).astype(np.float32) for shape in ((N, D), (D, R), (K, D))
)
ROTATION = np.linalg.qr(RNG.normal(size=(R, R)))[0].astype(np.float32)
factor_nll, mixture_nll = jax.jit(losses.factor_model_nll), jax.jit(losses.isotropic_mixture_nll)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_factor_model_matches_scipy(scale):
  loadings = scale * LOADINGS
  normal = stats.multivariate_normal(np.zeros(D), loadings @ loadings.T + np.eye(D))
  np.testing.assert_allclose(factor_nll(DATA, loadings), -normal.logpdf(DATA), rtol=1e-4)
  rotated = factor_nll(DATA, loadings @ ROTATION)
  np.testing.assert_allclose(rotated, factor_nll(DATA, loadings), rtol=1e-4)


@jax.jit
def slope_at_mle(data):
  loadings = algorithms.factor_mle(data, rank=R)
  return jax.grad(lambda x: jnp.mean(losses.factor_model_nll(data, x)))(loadings)


def test_the_gradient_vanishes_at_the_maximum():
  data = DATA + 3 * RNG.normal(size=(N, R)).astype(np.float32) @ LOADINGS.T
  np.testing.assert_allclose(slope_at_mle(data), 0, atol=1e-4)


def test_mixture_matches_scipy():
  log_density = [stats.multivariate_normal(center).logpdf(DATA) for center in CENTERS]
  expected = np.log(K) - np.logaddexp.reduce(log_density, axis=0)
  np.testing.assert_allclose(mixture_nll(DATA, CENTERS), expected, rtol=1e-5)


def test_extreme_values_are_finite():
  for scale in (1e4, -1e4):
    assert np.isfinite(mixture_nll(scale * DATA, CENTERS)).all()
    assert np.isfinite(mixture_nll(DATA, scale * CENTERS)).all()
    assert np.isfinite(factor_nll(scale * DATA, LOADINGS)).all()
  # Far from 0 the distances keep their digits.
  shift = np.float32(2**14)
  grid = np.round(4 * DATA) / 4, np.round(4 * CENTERS) / 4
  moved = mixture_nll(grid[0] + shift, grid[1] + shift)
  np.testing.assert_allclose(moved, mixture_nll(*grid), rtol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match="loadings must have shape"):
    losses.factor_model_nll(DATA, LOADINGS[1:])
  with pytest.raises(ValueError, match="centers must not be empty"):
    losses.isotropic_mixture_nll(DATA, CENTERS[:0])
