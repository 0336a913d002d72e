import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.special import betaln

from jaxlab import metrics

KS = np.float32([1, 2, 5, 10, 30, 100, 1000, 10_000])
fit = jax.jit(metrics.fit_exponentiated_power_law)
beta_coverage = jax.jit(metrics.beta_coverage)


def law(k, a, b):
  return np.exp(a * np.float64(k) ** b)


@pytest.mark.parametrize(("a", "b"), [(-2.0, -0.3), (-5.0, -0.8), (-0.4, -0.1), (-9.0, -0.5)])
def test_fit_recovers_the_law_of_noiseless_curves(a, b):
  result = fit(KS, law(KS, a, b).astype(np.float32))
  np.testing.assert_allclose([result.a, result.b], [a, b], rtol=1e-3)
  np.testing.assert_allclose(metrics.exponentiated_power_law(KS, result), law(KS, a, b), atol=1e-5)


def test_fit_matches_scipys_least_squares():
  noise = 0.02 * np.random.default_rng(0).normal(size=len(KS))
  coverage = np.clip(law(KS, -3.0, -0.4) + noise, 0, 1).astype(np.float32)
  # A coverage of exactly 1 counts in the fit, although its start cannot use it.
  coverage[-1] = 1.0
  result = fit(KS, coverage)
  (a, b), _ = curve_fit(law, np.float64(KS), coverage, p0=(-3.0, -0.4))
  np.testing.assert_allclose([result.a, result.b], [a, b], rtol=2e-3)


def test_vmap_and_half_precision():
  curves = np.stack([law(KS, -2.0, -0.3), law(KS, -4.0, -0.6)]).astype(np.float32)
  result = jax.vmap(fit, (None, 0))(KS, curves)
  np.testing.assert_allclose(result.a, [-2, -4], rtol=1e-3)
  np.testing.assert_allclose(result.b, [-0.3, -0.6], rtol=1e-3)
  assert fit(KS, jnp.asarray(curves[0], jnp.bfloat16)).a.dtype == jnp.float32


def test_too_few_traced_points_give_nan():
  result = fit(KS, np.where(np.arange(len(KS)) == 2, 0.5, 1.0).astype(np.float32))
  assert np.isnan(result.a) and np.isnan(result.b)
  missing = np.where(np.arange(len(KS)) == 2, np.nan, law(KS, -2.0, -0.3)).astype(np.float32)
  assert np.isnan(fit(KS, missing)).all()


def test_fit_compiles_once_and_traces_where_arrays_vary_over_devices(caplog):
  curves = np.stack([law(KS, -2.0, -0.3), law(KS, -4.0, -0.6)]).astype(np.float32)
  metrics.fit_exponentiated_power_law(KS, curves[0])
  with jax.log_compiles():
    metrics.fit_exponentiated_power_law(KS, curves[1])
  assert not [record for record in caplog.records if "Compiling" in record.message]
  mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.PartitionSpec("d")

  def local(curve):
    return jax.tree.map(lambda a: a[None], metrics.fit_exponentiated_power_law(KS, curve[0]))

  fits = jax.eval_shape(
    jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over), jnp.asarray(curves)
  )
  assert fits.a.shape == (2,)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 2.0), (1.0, 1.0), (0.05, 20.0), (4.0, 0.5)])
def test_beta_coverage_matches_scipy(alpha, beta):
  expected = -np.expm1(betaln(alpha, beta + np.float64(KS)) - betaln(alpha, beta))
  result = beta_coverage(KS, alpha=alpha, beta=beta)
  np.testing.assert_allclose(result, expected, atol=1e-5)
  np.testing.assert_allclose(result[0], alpha / (alpha + beta), rtol=1e-4)


def test_unsolved_share_falls_like_a_power():
  unsolved = 1 - beta_coverage(np.float32([1e3, 1e4]), alpha=0.5, beta=1.0)
  np.testing.assert_allclose(np.log10(unsolved[0] / unsolved[1]), 0.5, atol=1e-3)


def test_errors():
  for call, message in (
    (lambda: metrics.fit_exponentiated_power_law([1, 2, 3], [0.5, 0.6]), "coverage .* m = 3"),
    (lambda: metrics.fit_exponentiated_power_law([1, 2], [0.5, 1.0]), "coverage"),
    (lambda: metrics.fit_exponentiated_power_law([1, 2], [0.5, 1.5]), "coverage"),
    (lambda: metrics.fit_exponentiated_power_law([0, 2], [0.5, 0.6]), "ks"),
    (
      lambda: metrics.exponentiated_power_law(0, metrics.ExponentiatedPowerLaw(-1.0, -1.0)),
      "k must lie",
    ),
    (lambda: metrics.beta_coverage(0, alpha=1.0, beta=1.0), "k must lie"),
    (lambda: metrics.beta_coverage(1, alpha=0.0, beta=1.0), "alpha"),
    (lambda: metrics.beta_coverage(1, alpha=1.0, beta=-1.0), "beta"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
