"""Densities against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from jaxlab import uncertainty

N, M, D = 40, 12, 2
RNG = np.random.default_rng(0)
X, DATA = RNG.normal(size=(N, D)).astype("f"), RNG.normal(size=(M, D)).astype("f")
ALL = np.ones(M, bool)


@jax.jit
def evaluate(x, data, mask, bandwidth=0.4, alpha=0.3):
  return {
    "kde": uncertainty.kde_log_density(x, data, bandwidth=bandwidth, mask=mask),
    "gaussian": uncertainty.gaussian_log_density(x, data, mask=mask),
    "smooth": uncertainty.smooth_kde_log_density(
      x, data, bandwidth=bandwidth, alpha=alpha, mask=mask
    ),
  }


def expected(data, alpha=0.3):
  kde = KernelDensity(bandwidth=0.4).fit(data).score_samples(X)
  gaussian = GaussianMixture(1, reg_covar=1e-6).fit(data).score_samples(X)
  smooth = np.logaddexp(np.log(alpha) + kde, np.log(1 - alpha) + gaussian)
  return {"kde": kde, "gaussian": gaussian, "smooth": smooth}


def test_densities_match_scikit_learn():
  theirs = expected(DATA)
  for name, ours in evaluate(X, DATA, ALL).items():
    np.testing.assert_allclose(ours, theirs[name], rtol=1e-4, atol=1e-4)


def test_masked_rows_do_not_count():
  theirs = expected(DATA[:5])
  spoiled = np.where(np.arange(M)[:, None] < 5, DATA, np.nan).astype(np.float32)
  for name, ours in evaluate(X, spoiled, np.arange(M) < 5).items():
    np.testing.assert_allclose(ours, theirs[name], rtol=1e-4, atol=1e-4)


def test_they_integrate_to_one():
  grid = np.linspace(-6, 6, 40).astype(np.float32)
  cells = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, D)
  volume = (grid[1] - grid[0]) ** 2
  for name in ("kde", "gaussian", "smooth"):
    # Rows of forty, which is the shape that is compiled.
    values = [evaluate(cells[i : i + N], DATA, ALL)[name] for i in range(0, len(cells), N)]
    np.testing.assert_allclose(np.exp(values).sum() * volume, 1, rtol=1e-2)


def test_the_share_of_each_part():
  near_one, near_zero = (evaluate(X, DATA, ALL, 0.4, alpha) for alpha in (1 - 1e-6, 1e-6))
  # Where the other density is not much larger.
  kde, gaussian = np.asarray(near_one["kde"]), np.asarray(near_one["gaussian"])
  apart = np.abs(kde - gaussian) < 3
  np.testing.assert_allclose(np.asarray(near_one["smooth"])[apart], kde[apart], atol=1e-3)
  np.testing.assert_allclose(np.asarray(near_zero["smooth"])[apart], gaussian[apart], atol=1e-3)


def test_one_row_and_none():
  one = evaluate(X, DATA, np.arange(M) == 3)
  square = np.sum((X - DATA[3]).astype(np.float64) ** 2, axis=1)
  np.testing.assert_allclose(one["gaussian"], -square / 2e-6 - np.log(2e-6 * np.pi), rtol=1e-4)
  np.testing.assert_allclose(
    one["kde"], -square / 2 / 0.16 - np.log(2 * np.pi * 0.16), rtol=1e-4, atol=1e-4
  )
  for values in evaluate(X, DATA, np.zeros(M, bool)).values():
    assert (np.asarray(values) == -np.inf).all()


def test_far_inputs_nan_and_gradients():
  slopes = jax.jit(jax.grad(lambda *args: sum(x.sum() for x in evaluate(*args).values()), (0, 1)))
  for mask in (ALL, np.zeros(M, bool)):
    for slope in slopes(X, DATA, mask):
      assert np.isfinite(slope).all()
  spoiled = X.copy()
  spoiled[3, 1] = np.nan
  for mask in (ALL, np.zeros(M, bool)):
    for values in evaluate(spoiled, DATA, mask).values():
      np.testing.assert_array_equal(np.isnan(values), np.arange(N) == 3)
  for values in evaluate(1e4 * X, DATA, ALL).values():
    assert np.isfinite(values).all()


def test_errors():
  with pytest.raises(ValueError, match=r"bandwidth must lie in \(0, inf\), got 0.0"):
    uncertainty.kde_log_density(X, DATA, bandwidth=0.0)
  with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got 1.0"):
    uncertainty.smooth_kde_log_density(X, DATA, alpha=1.0)
  with pytest.raises(ValueError, match=r"ridge must lie in \(0, inf\), got 0.0"):
    uncertainty.gaussian_log_density(X, DATA, ridge=0.0)
  with pytest.raises(ValueError, match="data must have shape"):
    uncertainty.gaussian_log_density(X, DATA[:, :1])
