import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from jaxlab.uncertainty import gp

KERNELS = ("rbf", "matern12", "matern32", "matern52")
jit = functools.partial(jax.jit, static_argnames="kernel")
kernel_matrix = jit(gp.kernel_matrix)
gp_posterior = jit(gp.gp_posterior)
log_marginal = jit(gp.gp_log_marginal_likelihood)
mixture = jit(gp.gp_mixture_log_prob)
SETTING = {"lengthscale": 0.4, "outputscale": 1.7, "noise": 0.05}


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  x, y, x_query = rng.uniform(size=(8, 2)), rng.normal(size=8), rng.uniform(size=(5, 2))
  return tuple(a.astype(np.float32) for a in (x, y, x_query))


def slow_kernel(x, x2, lengthscale, outputscale, kernel):
  out = np.zeros((len(x), len(x2)))
  for i in range(len(x)):
    for j in range(len(x2)):
      r = np.linalg.norm((x[i].astype(np.float64) - x2[j]) / lengthscale)
      out[i, j] = {
        "rbf": np.exp(-(r**2) / 2),
        "matern12": np.exp(-r),
        "matern32": (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r),
        "matern52": (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r),
      }[kernel]
  return outputscale * out


def slow_posterior(x, y, x_query, *, lengthscale, outputscale, noise, kernel="rbf"):
  covariance = slow_kernel(x, x, lengthscale, outputscale, kernel) + noise * np.eye(len(x))
  cross = slow_kernel(x, x_query, lengthscale, outputscale, kernel)
  inverse = np.linalg.inv(covariance)
  explained = np.einsum("nm,nk,km->m", cross, inverse, cross)
  return cross.T @ inverse @ y, outputscale + noise - explained


def slow_log_marginal(x, y, *, lengthscale, outputscale, noise, kernel="rbf"):
  covariance = slow_kernel(x, x, lengthscale, outputscale, kernel) + noise * np.eye(len(x))
  return multivariate_normal.logpdf(y, np.zeros(len(x)), covariance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lengthscale", [0.4, np.array([0.2, 3.0], np.float32)])
def test_kernels_match_a_slow_loop(data, kernel, lengthscale):
  x, _, x2 = data
  got = kernel_matrix(x, x2, lengthscale=lengthscale, outputscale=1.7, kernel=kernel)
  np.testing.assert_allclose(got, slow_kernel(x, x2, lengthscale, 1.7, kernel), rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_gradients_are_finite_everywhere(data, kernel):
  x = jnp.concatenate([data[0], data[0][:1], 1e6 + data[0][:1]])  # with a pair of equal points

  def total(x, lengthscale):
    return kernel_matrix(x, x, lengthscale=lengthscale, outputscale=1.0, kernel=kernel).sum()

  value_and_grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  for lengthscale in (0.4, 1e-14, 1e20):
    value, grads = value_and_grad(x, lengthscale)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)
  np.testing.assert_allclose(value_and_grad(x, 1e-14)[0], len(x) + 2)  # equal points only


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_inputs_give_nan_in_their_row(data, kernel):
  x, _, x2 = data
  x = np.where(np.arange(8)[:, None] == 3, np.nan, x)
  got = kernel_matrix(x, x2, lengthscale=0.4, outputscale=1.7, kernel=kernel)
  np.testing.assert_array_equal(np.isnan(got), np.arange(8)[:, None] == np.full(5, 3))


@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_posterior_without_noise_of_many_points(kernel):
  x = np.linspace(0, 1, 100, dtype=np.float32)[:, None]
  y = np.sin(5 * x[:, 0])
  mean, variance = gp_posterior(x, y, x[::20], lengthscale=0.3, noise=0.0, kernel=kernel)
  np.testing.assert_allclose(mean, y[::20], atol=5e-3)
  assert np.all((variance >= 0) & (variance < 1e-3))
  assert np.isfinite(log_marginal(x, y, lengthscale=0.3, noise=0.0, kernel=kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_and_evidence_match_float64_inverses(data, kernel):
  x, y, x_query = data
  mean, variance = gp_posterior(x, y, x_query, kernel=kernel, **SETTING)
  want_mean, want_variance = slow_posterior(x, y, x_query, kernel=kernel, **SETTING)
  np.testing.assert_allclose(mean, want_mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(variance, want_variance, rtol=1e-4)
  evidence = log_marginal(x, y, kernel=kernel, **SETTING)
  np.testing.assert_allclose(evidence, slow_log_marginal(x, y, kernel=kernel, **SETTING), rtol=1e-5)


def test_evidence_adds_no_jitter():
  x, y = np.zeros((1, 1), np.float32), np.array([0.01], np.float32)
  got = log_marginal(x, y, outputscale=1e-6, noise=1e-4)
  np.testing.assert_allclose(got, norm.logpdf(0.01, 0, np.sqrt(1.01e-4)), rtol=1e-5)


def test_evidence_is_the_sum_of_sequential_predictives(data):
  x, y, _ = data
  total = 0.0
  for i in range(len(x)):
    mask = np.arange(len(x)) < i
    mean, variance = gp_posterior(x, y, x[i : i + 1], mask=mask, kernel="matern52", **SETTING)
    total += norm.logpdf(y[i], mean[0], np.sqrt(variance[0]))
  np.testing.assert_allclose(log_marginal(x, y, kernel="matern52", **SETTING), total, rtol=1e-5)


def test_noiseless_posterior_returns_the_targets(data):
  x, y, _ = data
  mean, variance = gp_posterior(x, y, x[:5], lengthscale=0.2, noise=1e-6)
  np.testing.assert_allclose(mean, y[:5], atol=1e-3)
  assert np.all(variance >= 1e-6) and np.all(variance < 1e-4)


def test_no_points_give_the_prior(data):
  x, y, x_query = data
  empty = gp_posterior(x[:0], y[:0], x_query, **SETTING)
  masked = gp_posterior(x, y, x_query, mask=np.zeros(8, bool), **SETTING)
  for posterior in (empty, masked):
    np.testing.assert_array_equal(posterior.mean, 0)
    np.testing.assert_allclose(posterior.variance, 1.75, rtol=1e-6)
  assert log_marginal(x[:0], y[:0], **SETTING) == 0
  assert log_marginal(x, y, mask=np.zeros(8, bool), **SETTING) == 0


def test_mask_equals_leaving_out_points_even_if_nan(data):
  x, y, x_query = data
  mask = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)
  broken_x, broken_y = np.where(mask[:, None], x, np.nan), np.where(mask, y, np.nan)
  got = gp_posterior(broken_x, broken_y, x_query, mask=mask, **SETTING)
  want = slow_posterior(x[mask], y[mask], x_query, **SETTING)
  np.testing.assert_allclose(got.mean, want[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.variance, want[1], rtol=1e-4)
  evidence, grad = jax.jit(
    jax.value_and_grad(
      lambda s: gp.gp_log_marginal_likelihood(broken_x, broken_y, mask=mask, noise=s)
    )
  )(0.05)
  want = slow_log_marginal(x[mask], y[mask], lengthscale=1.0, outputscale=1.0, noise=0.05)
  np.testing.assert_allclose(evidence, want, rtol=1e-5)
  assert np.isfinite(grad)


def test_vmap_over_data_sets_and_lengthscales(data):
  x, y, x_query = data
  scales = np.array([0.2, 0.4], np.float32)
  got = jax.jit(jax.vmap(lambda y, s: gp.gp_posterior(x, y, x_query, lengthscale=s, noise=0.05)))(
    np.stack([y, -y]), scales
  )
  for i, sign in enumerate((1, -1)):
    want = gp_posterior(x, sign * y, x_query, lengthscale=scales[i], noise=0.05)
    np.testing.assert_allclose(got.mean[i], want.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.variance[i], want.variance, rtol=1e-4)


def test_mixture_of_one_is_the_posterior(data):
  x, y, x_query = data
  y_query = np.linspace(-2, 2, 5, dtype=np.float32)
  one = [np.array([SETTING[k]], np.float32) for k in ("lengthscale", "outputscale", "noise")]
  got = mixture(x, y, x_query, y_query, *one, np.array([-3.0]), kernel="rbf")
  mean, variance = gp_posterior(x, y, x_query, **SETTING)
  np.testing.assert_allclose(got, norm.logpdf(y_query, mean, np.sqrt(variance)), rtol=1e-4)


def test_mixture_matches_a_slow_loop(data):
  x, y, x_query = data
  y_query = np.linspace(-2, 2, 5, dtype=np.float32)
  grid = [(0.2, 1.0, 0.1), (0.5, 2.0, 0.02), (1.0, 0.5, 0.3)]
  log_weights = np.array([0.3, -1.0, 2.0], np.float32)
  mask = np.arange(8) < 5
  log_posterior, log_density = [], []
  for log_weight, (lengthscale, outputscale, noise) in zip(log_weights, grid):
    setting = {"lengthscale": lengthscale, "outputscale": outputscale, "noise": noise}
    evidence = slow_log_marginal(x[:5], y[:5], kernel="matern52", **setting)
    mean, variance = slow_posterior(x[:5], y[:5], x_query, kernel="matern52", **setting)
    log_posterior.append(log_weight + evidence)
    log_density.append(norm.logpdf(y_query, mean, np.sqrt(variance)))
  log_posterior = np.array(log_posterior) - logsumexp(log_posterior)
  want = logsumexp(log_posterior[:, None] + np.array(log_density), axis=0)
  columns = np.array(grid, np.float32).T
  got = mixture(x, y, x_query, y_query, *columns, log_weights, mask=mask)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  shifted = mixture(x, y, x_query, y_query, *columns, log_weights + 50, mask=mask)
  np.testing.assert_allclose(shifted, want, rtol=1e-4)


@pytest.fixture(scope="module")
def curve():
  rng = np.random.default_rng(3)
  x = np.sort(rng.uniform(size=(20, 1)), axis=0)
  covariance = slow_kernel(x, x, 0.2, 1.5, "rbf") + 0.02 * np.eye(20)
  return x.astype(np.float32), rng.multivariate_normal(np.zeros(20), covariance).astype(np.float32)


def slow_fit(x, y, log_prior=lambda *params: 0.0):
  """Smallest negative log posterior over several starts of scipy's L-BFGS-B, in float64."""

  def objective(log_params):
    lengthscale, outputscale, noise = np.exp(log_params)
    noise = max(noise, 1e-4)
    value = slow_log_marginal(x, y, lengthscale=lengthscale, outputscale=outputscale, noise=noise)
    return -value - log_prior(lengthscale, outputscale, noise)

  bounds = [(-4, 3), (-4, 5), (-9.5, 3)]
  starts = np.log([[0.5, 1, 0.01], [0.2, 1, 0.03], [1, 3, 0.1]])
  fits = [minimize(objective, start, bounds=bounds, method="L-BFGS-B") for start in starts]
  return objective, min(fits, key=lambda fit: fit.fun)


def test_fit_reaches_the_optimum(curve):
  x, y = curve
  objective, want = slow_fit(x, y)
  got = gp.fit_gp(x, y)
  assert abs(objective(np.log(got)) - want.fun) < 0.01
  np.testing.assert_allclose(got, np.exp(want.x), rtol=0.05)


def log_prior(hyperparameters):
  return -10 * jnp.square(jnp.log(hyperparameters.lengthscale / 0.5)) - 30 * hyperparameters.noise


def test_fit_with_a_prior_reaches_the_optimum(curve):
  x, y = curve
  objective, want = slow_fit(x, y, lambda l, o, n: -10 * np.log(l / 0.5) ** 2 - 30 * n)
  got = gp.fit_gp(x, y, log_prior_fn=log_prior)
  assert abs(objective(np.log(got)) - want.fun) < 0.01
  np.testing.assert_allclose(got, np.exp(want.x), rtol=0.05)
  assert abs(got.lengthscale - 0.5) < abs(gp.fit_gp(x, y).lengthscale - 0.5)


def test_fit_without_steps_returns_the_start(curve):
  np.testing.assert_allclose(gp.fit_gp(*curve, num_steps=0), [0.5, 1.0, 0.01], rtol=1e-6)
  start = gp.GPHyperparameters(0.3, 2.0, 0.05)
  np.testing.assert_allclose(gp.fit_gp(*curve, num_steps=0, start=start), start, rtol=1e-6)


@pytest.mark.parametrize("case", ["zero", "constant", "one_place", "huge", "noiseless", "missing"])
def test_fit_of_degenerate_data_is_finite(curve, case):
  x, y = curve
  x, y = {
    "zero": (x, 0 * y),
    "constant": (x, 0 * y + 3),
    "one_place": (0 * x, y),
    "huge": (1e5 * x, 1e5 * y),
    "noiseless": (x, x[:, 0]),
    "missing": (x, np.nan * y),
  }[case]
  fitted = gp.fit_gp(x, y.astype(np.float32))
  assert np.all(np.isfinite(fitted)) and min(fitted) >= 0
  assert fitted.noise >= np.float32(1e-4)


def test_fit_with_a_mask_equals_leaving_out_points(curve):
  x, y = curve
  mask = np.arange(20) % 2 == 0
  objective, want = slow_fit(x[mask], y[mask])
  got = gp.fit_gp(x, np.where(mask, y, 7), mask=mask)
  assert objective(np.log(got)) < want.fun + 0.01


def test_bfloat16_inputs_give_float32(data):
  x, y, x_query = (jnp.asarray(a, jnp.bfloat16) for a in data)
  got = gp_posterior(x, y, x_query, **SETTING)
  want = gp_posterior(*(a.astype(jnp.float32) for a in (x, y, x_query)), **SETTING)
  assert got.mean.dtype == got.variance.dtype == jnp.float32
  np.testing.assert_allclose(got.mean, want.mean, rtol=1e-5, atol=1e-6)


def test_rank_promotion_may_be_forbidden(data):
  x, y, x_query = data
  grid = np.ones(3)
  with jax.numpy_rank_promotion("raise"):
    jax.eval_shape(lambda: gp.gp_posterior(x, y, x_query, lengthscale=[0.2, 3.0]))
    jax.eval_shape(lambda: gp.gp_mixture_log_prob(x, y, x_query, y[:5], grid, grid, grid, grid))
    jax.eval_shape(lambda: gp.fit_gp(x, y, num_steps=2))


def test_lists_are_accepted():
  x, y, ones = [[0.0], [1.0]], [1, 2], [1.0, 1.0]
  jax.eval_shape(lambda: gp.gp_mixture_log_prob(x, y, x, y, ones, ones, ones, ones, mask=[1, 0]))
  jax.eval_shape(lambda: gp.fit_gp(x, y, mask=[True, True], start=[0.1, 1, 0.2], num_steps=2))


def test_errors(data):
  x, y, x_query = data
  with pytest.raises(ValueError, match="kernel must be one of .* got 'cubic'"):
    gp.kernel_matrix(x, x, lengthscale=1.0, outputscale=1.0, kernel="cubic")
  with pytest.raises(ValueError, match="'cubic'"):
    gp.fit_gp(x, y, kernel="cubic")
  with pytest.raises(ValueError, match=r"start.noise must lie in \(0, inf\), got 0"):
    gp.fit_gp(x, y, start=gp.GPHyperparameters(1.0, 1.0, 0.0))
  with pytest.raises(ValueError, match="num_steps .* got -1"):
    gp.fit_gp(x, y, num_steps=-1)
  for changed, message in (
    ({"y": y[1:]}, r"y must have shape \[n\] with n = 8, got \[7\]"),
    ({"x_query": x_query[:, :1]}, r"x_query must have shape \[m, f\] with f = 2"),
    ({"lengthscale": np.ones(3)}, "lengthscale must have shape .* f = 2"),
    ({"outputscale": np.ones(3)}, "outputscale must have shape"),
    ({"mask": np.ones(3, bool)}, "mask must have shape"),
    ({"lengthscale": 0.0}, r"lengthscale must lie in \(0, inf\), got 0.0"),
    ({"outputscale": -1.0}, "outputscale must lie"),
    ({"noise": -1e-3}, "noise must lie"),
  ):
    with pytest.raises(ValueError, match=message):
      gp.gp_posterior(**{"x": x, "y": y, "x_query": x_query} | changed)
  empty = np.ones(0)
  with pytest.raises(ValueError, match="log_weights must not be empty"):
    gp.gp_mixture_log_prob(x, y, x_query, y[:5], empty, empty, empty, empty)
  with pytest.raises(ValueError, match="noises must have shape .* G = 2"):
    gp.gp_mixture_log_prob(x, y, x_query, y[:5], np.ones(2), np.ones(2), np.ones(3), np.ones(2))
