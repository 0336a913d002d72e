"""Tails of noncentral chi-square distributions against SciPy, and fits to known laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxlab import metrics, samplers

S = 4096  # Errors of a fit.
surprisal = jax.jit(metrics.noncentral_chi2_surprisal)
sankaran, empirical = jax.jit(metrics.sankaran_tail), jax.jit(metrics.empirical_surprisal)


@jax.jit
def moments(errors):
  return metrics.noncentral_chi2_moments(errors)


def slow(error, df, nc, scale):
  """The series in float64, with the incomplete gamma function by Kummer's."""
  j = np.arange(4000.0)
  b, z = df / 2 + j, error / (2 * scale)
  with np.errstate(divide="ignore"):
    log_kummer = np.log(special.hyp1f1(1, b + 1, z))
    log_gamma = b * np.log(z) - z - special.gammaln(b + 1) + log_kummer
    log_gamma = np.where(z < b + 1, log_gamma, np.log(special.gammainc(b, z)))
    log_weight = special.xlogy(j, nc / 2) - nc / 2 - special.gammaln(j + 1)
  return -special.logsumexp(log_weight + log_gamma)


# df, nc and the unit; errors are chosen by their place in the law below.
GRID = [(df, nc) for df in (1, 3, 50, 900, 4000) for nc in (0, 0.5, 30, 1000)]
PLACES = np.array([0.02, 0.1, 0.3, 0.6, 0.9, 1.0, 1.1, 2.0])


def test_surprisal_matches_scipy_and_a_float64_series():
  laws = np.array([(p * (df + nc) * 0.7, df, nc, 0.7) for df, nc in GRID for p in PLACES])
  ours = np.asarray(surprisal(*laws.T.astype(np.float32)))
  theirs = np.array([slow(*law) for law in laws.astype(np.float32).astype(np.float64)])
  theirs = np.maximum(theirs, 0)
  assert np.isfinite(theirs).all() and theirs.max() > 5000
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
  log_cdf = stats.ncx2.logcdf(laws[:, 0] / 0.7, laws[:, 1], laws[:, 2])
  sure = log_cdf > -200
  assert sure.sum() > 80
  np.testing.assert_allclose(ours[sure], -log_cdf[sure], rtol=1e-3, atol=1e-3)


def test_known_tails_beyond_scipy():
  # From a series in float64.
  for law, exact, normal in (
    ((0.3, 50, 80, 0.1), 87.09, 69.34),
    ((0.05, 200, 400, 0.02), 540.2, 384.5),
  ):
    values = np.repeat(np.array(law, np.float32)[:, None], len(GRID) * len(PLACES), axis=1)
    np.testing.assert_allclose(surprisal(*values)[0], exact, rtol=1e-3)
    np.testing.assert_allclose(sankaran(*values)[0], normal, rtol=1e-3)


def test_central_case_monotony_and_units():
  errors = np.linspace(0.01, 40, len(GRID) * len(PLACES)).astype(np.float32)
  law = [np.full_like(errors, x) for x in (7, 0, 1.5)]
  values = np.asarray(surprisal(errors, *law))
  np.testing.assert_allclose(values, -stats.chi2.logcdf(errors / 1.5, 7), rtol=1e-3, atol=1e-4)
  law[1] += 5
  values = np.asarray(surprisal(errors, *law))
  assert (np.diff(values) <= 1e-6).all() and values[-1] < 0.02
  scaled = surprisal(3 * errors, law[0], law[1], 3 * law[2])
  np.testing.assert_allclose(scaled, values, rtol=1e-4, atol=1e-6)
  bits = metrics.noncentral_chi2_surprisal(2.0, 7.0, 5.0, 1.5, unit="bits")
  nats = metrics.noncentral_chi2_surprisal(2.0, 7.0, 5.0, 1.5)
  np.testing.assert_allclose(bits * np.log(2), nats, rtol=1e-6)


def test_edges():
  size = len(GRID) * len(PLACES)
  errors = np.resize(np.array([0, -1, 1e-30, 1e4, 1e30, np.inf, np.nan, 5], np.float32), size)
  law = [np.full_like(errors, x) for x in (7, 5, 1.5)]
  values = np.asarray(surprisal(errors, *law))[:8]
  assert (values[:2] == np.inf).all() and 200 < values[2] < 300
  np.testing.assert_allclose(values[3:6], 0, atol=1e-5)
  np.testing.assert_array_equal(np.isnan(values), np.arange(8) == 6)
  slopes = jax.jit(jax.grad(lambda *law: metrics.noncentral_chi2_surprisal(*law).sum(), (0, 1)))
  for slope in slopes(np.where(np.isnan(errors), 1, errors), *law):
    assert np.isfinite(slope).all()
  with jax.enable_x64(True):
    large = metrics.noncentral_chi2_surprisal(*map(jnp.float64, (5e4, 5e4, 5e4, 1.0)))
    assert large.dtype == jnp.float64
    # Chernoff's bound, max over u of (log u + 1 - 1 / u + 1 - u) 25,000, and a log of its width.
    golden = (1 + np.sqrt(5)) / 2
    bound = 25_000 * (np.log(golden) + 2 - 1 / golden - golden)
    assert bound < float(large) < bound + 10


def test_moments_of_many_draws():
  draws = stats.ncx2.rvs(4, 20, scale=0.02, size=10**6, random_state=0).astype(np.float32)
  law = moments(draws)
  df, nc, scale = map(float, law)
  exact = draws.astype(np.float64)
  np.testing.assert_allclose(scale * (df + nc), exact.mean(), rtol=1e-5)
  np.testing.assert_allclose(2 * scale**2 * (df + 2 * nc), exact.var(), rtol=1e-4)
  np.testing.assert_allclose((df, nc, scale), (4, 20, 0.02), rtol=0.05)


def test_moments_at_the_ends_of_their_range():
  rng = np.random.default_rng(0)
  for errors in (rng.gamma(1.0, size=S) ** 2, 10 - rng.gamma(1.0, size=S), rng.normal(50, 1, S)):
    law = moments(np.resize(errors, 10**6).astype(np.float32))
    assert law.df > 0 and law.nc >= 0 and law.scale > 0
    errors = np.resize(errors, 10**6)
    np.testing.assert_allclose(law.scale * (law.df + law.nc), errors.mean(), rtol=1e-3)
    np.testing.assert_allclose(2 * law.scale**2 * (law.df + 2 * law.nc), errors.var(), rtol=2e-3)
  assert np.isnan(moments(np.full(10**6, 0.3, np.float32))).all()


@pytest.mark.parametrize("method", ["mle", "moments"])
def test_fit_gives_the_closed_form_for_a_covariance_of_one_size(method):
  """Errors whose law is known: C = c I, so that df = m k, scale = c / (m k), nc = |gap|² / c."""
  rng = np.random.default_rng(1)
  m, k, c = 6, 2, 0.3
  gap = rng.normal(size=(m, k, 1))
  predictions = gap + np.sqrt(c) * rng.normal(size=(m, k, S))
  errors = np.asarray(jax.jit(metrics.hypothesis_errors)(predictions, np.zeros((m, k))))
  np.testing.assert_allclose(errors, np.mean(predictions**2, axis=(0, 1)), rtol=1e-5)
  law = m * k, np.sum(gap**2) / c, c / (m * k)
  target = stats.ncx2.ppf(1e-6, *law[:2], scale=law[2])
  bias = metrics.required_inductive_bias(errors, target, method=method)
  assert abs(bias.surprisal - 6 * np.log(10)) < 2.5
  assert bias.extrapolated and bias.ks_distance < 0.02
  assert 0 < stats.kstest(errors, stats.ncx2(*law[:2], scale=law[2]).cdf).statistic < 0.03
  easy = metrics.required_inductive_bias(errors, np.quantile(errors, 0.5), method=method)
  assert not easy.extrapolated and abs(easy.surprisal - np.log(2)) < 0.05
  bits = metrics.required_inductive_bias(errors, target, method=method, unit="bits")
  np.testing.assert_allclose(bits.surprisal * np.log(2), bias.surprisal, rtol=1e-6)


def test_fit_agrees_with_the_empirical_tail_of_interpolants():
  rng = np.random.default_rng(0)
  x, test_x = (rng.normal(size=(n, 3)).astype(np.float32) for n in (12, 8))
  y, test_y = np.sin(2 * x[:, :1]), np.sin(2 * test_x[:, :1])
  draw = jax.jit(lambda key: samplers.kernel_interpolants(key, x, y, test_x, num_samples=S))
  errors = np.asarray(jax.jit(metrics.hypothesis_errors)(draw(jax.random.key(0)), test_y))
  law = metrics.fit_noncentral_chi2(errors)
  for share in (0.01, 0.05):
    target = np.quantile(errors, share)
    fitted = -stats.ncx2.logcdf(target, law.df, law.nc, scale=law.scale)
    seen = float(empirical(errors, target))
    np.testing.assert_allclose(seen, -np.log(share), atol=0.03)
    assert abs(fitted - seen) < 0.2
  assert empirical(errors, errors.min() / 2) == np.inf and empirical(errors, errors.max()) == 0
  assert np.isnan(empirical(np.where(np.arange(S) == 3, np.nan, errors), 1.0))


def test_errors():
  errors = np.linspace(1, 2, 20)
  with pytest.raises(ValueError, match="unit must be one of 'nats', 'bits', got 'dits'"):
    metrics.noncentral_chi2_surprisal(1.0, 2.0, 3.0, 1.0, unit="dits")
  with pytest.raises(ValueError, match="unit must be one of"):
    metrics.required_inductive_bias(errors, 1.0, unit="dits")
  with pytest.raises(ValueError, match="unit must be one of"):
    metrics.empirical_surprisal(errors, 1.0, unit="dits")
  with pytest.raises(ValueError, match="method must be one of 'mle', 'moments', got 'map'"):
    metrics.fit_noncentral_chi2(errors, method="map")
  with pytest.raises(ValueError, match=r"target_error must lie in \(0, inf\), got 0.0"):
    metrics.required_inductive_bias(errors, 0.0)
  with pytest.raises(ValueError, match=r"df must lie in \(0, inf\), got -2.0"):
    metrics.sankaran_tail(1.0, -2.0, 3.0, 1.0)
  with pytest.raises(ValueError, match="error and df and nc and scale must have shapes"):
    metrics.noncentral_chi2_surprisal(np.ones(3), np.ones(2), 1.0, 1.0)
  for fit in (metrics.noncentral_chi2_moments, metrics.fit_noncentral_chi2):
    with pytest.raises(ValueError, match="errors must be at least 8, got 7"):
      fit(errors[:7])
    with pytest.raises(ValueError, match="errors must not all be equal, got 0.5"):
      fit(np.full(9, 0.5))
  spoiled = metrics.required_inductive_bias(np.append(errors, np.nan), 1.0)
  assert np.isnan(spoiled.surprisal)
