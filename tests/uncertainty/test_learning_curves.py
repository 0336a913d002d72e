import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import uncertainty as lc

LENGTH = 8

# family: (slow scalar formula, plausible parameters)
FAMILIES = {
  "pow3": (lambda x, c, a, al: c - a * x**-al, (0.9, 0.5, 0.7)),
  "ilog2": (lambda x, c, a: c - a / math.log(x + 1), (0.8, 0.3)),
  "janoschek": (lambda x, a, b, k, d: a - (a - b) * math.exp(-k * x**d), (0.9, 0.1, 0.2, 1.3)),
  "log_power": (lambda x, a, b, c: a / (1 + (x / math.exp(b)) ** c), (0.8, 1.0, -1.5)),
  "weibull": (lambda x, a, b, k, d: a - (a - b) * math.exp(-((k * x) ** d)), (1.0, 0.2, 0.2, 1.4)),
  "mmf": (lambda x, a, b, k, d: a - (a - b) / (1 + (k * x) ** d), (0.8, 0.2, 0.5, 1.2)),
  "vap": (lambda x, a, b, c: math.exp(a + b / x + c * math.log(x)), (-1.0, -2.0, 0.3)),
  "loglog_linear": (lambda x, a, b: math.log(a * math.log(x) + b), (0.2, 1.5)),
  "exp4": (lambda x, c, a, b, al: c - math.exp(-a * x**al + b), (0.8, 0.3, 0.5, 1.1)),
  "pow4": (lambda x, c, a, b, al: c - (a * x + b) ** -al, (0.9, 0.1, 1.5, 1.2)),
  "dr_hill_zero_background": (lambda x, t, e, k: t * x**e / (k**e + x**e), (0.8, 1.3, 3.0)),
}
PRIORS = [
  stats.uniform(0, 1.25),
  stats.uniform(-0.6, 1.2),
  stats.lognorm(2.0),
  stats.uniform(0, 1),
  stats.uniform(-0.5, 1),
  stats.uniform(0, 1),
  stats.uniform(0, 2),
  stats.lognorm(1.0, scale=math.exp(-2)),
  stats.lognorm(0.5),
  stats.uniform(0, 1),
  stats.uniform(0, 1),
  stats.uniform(0, 1),
  stats.norm(-4, 1),
]
GOOD = np.array([0.9, 0.5, 0.7, 0.8, 0.3, 0.9, 0.1, 0.2, 1.3, 0.3, 0.2, 0.4, -3.0], np.float32)
VALUES = np.array([0.3, 0.42, 0.5], np.float32)


def slow_curve(params, length):
  p = [float(v) for v in params]
  parts = [("pow3", p[:3]), ("ilog2", p[3:5]), ("janoschek", p[5:9])]
  return np.array(
    [
      sum(w * FAMILIES[name][0](t, *args) for w, (name, args) in zip(p[9:12], parts))
      for t in range(1, length + 1)
    ]
  )


def prior_draws(seed, num):
  rng = np.random.default_rng(seed)
  return np.stack([prior.rvs(num, random_state=rng) for prior in PRIORS], 1).astype(np.float32)


@functools.cache
def batched_density(num_values=3):
  fn = functools.partial(lc.learning_curve_log_density, length=LENGTH)
  return jax.jit(jax.vmap(fn, in_axes=(0, None)))


basis_curve = jax.jit(lc.basis_curve, static_argnums=0)
combined_curve = jax.jit(lc.combined_curve, static_argnames=("length", "components"))
is_learning_curve = jax.jit(lc.is_learning_curve)
learning_curve_log_density = jax.jit(lc.learning_curve_log_density, static_argnames="length")
learning_curve_log_likelihood = jax.jit(lc.learning_curve_log_likelihood, static_argnames="length")
curve_predictive_log_prob = jax.jit(lc.curve_predictive_log_prob, static_argnames="length")
curve_exceedance = jax.jit(lc.curve_exceedance, static_argnames="length")


@pytest.mark.parametrize("family", FAMILIES)
def test_family_matches_its_formula(family):
  slow, params = FAMILIES[family]
  x = np.arange(1.0, 12.0)
  got = basis_curve(family, x.astype(np.float32), np.array(params, np.float32))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, [slow(v, *params) for v in x], rtol=2e-5)


def test_leading_axes_of_params_broadcast_against_x():
  params = np.array([[[0.9, 0.5, 0.7]], [[0.6, 0.2, 1.1]]], np.float32)
  x = np.arange(1, 5)
  got = basis_curve("pow3", x, params)
  assert got.shape == (2, 4)
  for row, p in zip(np.asarray(got), params[:, 0]):
    np.testing.assert_allclose(row, basis_curve("pow3", x, p), rtol=1e-6)


def test_limits_at_infinity_and_steep_curves():
  for family, index in (("pow3", 0), ("janoschek", 0), ("mmf", 0), ("weibull", 0)):
    params = np.array(FAMILIES[family][1], np.float32)
    np.testing.assert_allclose(basis_curve(family, 1e8, params), params[index], atol=1e-4)
  # Parameters for which a quotient or product of powers would be inf / inf.
  steep = basis_curve("dr_hill_zero_background", 100.0, np.array([0.8, 90.0, 50.0]))
  np.testing.assert_allclose(steep, 0.8, rtol=1e-6)
  assert np.isfinite(basis_curve("mmf", 100.0, np.array([0.8, 0.2, 1e4, 90.0])))


def test_bfloat16_is_computed_in_float32():
  params = jnp.array([0.5, 0.25, 1.0], jnp.bfloat16)
  got = basis_curve("pow3", jnp.array([3.0], jnp.bfloat16), params)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 0.5 - 0.25 / 3, rtol=1e-6)
  params = jnp.array(GOOD, jnp.bfloat16)
  values = VALUES.astype(jnp.bfloat16)
  density = learning_curve_log_density(params, values, length=LENGTH)
  same = learning_curve_log_density(
    np.asarray(params, np.float32), np.asarray(values, np.float32), length=LENGTH
  )
  np.testing.assert_allclose(density, same, rtol=1e-6)


def test_combined_curve_matches_a_loop():
  params = prior_draws(0, 6).reshape(2, 3, 13)
  got = np.asarray(combined_curve(params, length=LENGTH))
  assert got.shape == (2, 3, LENGTH)
  for index in np.ndindex(2, 3):
    np.testing.assert_allclose(got[index], slow_curve(params[index], LENGTH), rtol=1e-4, atol=1e-5)


def test_combined_curve_of_other_components():
  params = np.array([*FAMILIES["vap"][1], *FAMILIES["pow4"][1], 0.3, 0.6, -4.0], np.float32)
  got = combined_curve(params, length=4, components=("vap", "pow4"))
  expected = [
    0.3 * FAMILIES["vap"][0](t, *FAMILIES["vap"][1])
    + 0.6 * FAMILIES["pow4"][0](t, *FAMILIES["pow4"][1])
    for t in range(1, 5)
  ]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_combined_curve_at_other_steps():
  params = prior_draws(0, 1)[0]
  at_sizes = jax.jit(functools.partial(lc.combined_curve, length=3, steps=(16, 32.0, 64)))(params)
  expected = np.asarray(slow_curve(params, 64))[[15, 31, 63]]
  np.testing.assert_allclose(at_sizes, expected, rtol=1e-4, atol=1e-5)
  narrow = np.array([16, 32, 64], np.int8)
  same = jax.jit(functools.partial(lc.combined_curve, length=3, steps=narrow))(params)
  np.testing.assert_array_equal(same, at_sizes)


def test_is_learning_curve_rejects_falling_and_outside_curves():
  curves = [[0.0, 0.5, 1.0], [0.5, 0.2, 0.5], [0.2, 1.01, 0.5], [-0.01, 0.2, 0.5], [0.1, np.nan, 1]]
  np.testing.assert_array_equal(is_learning_curve(np.array(curves)), [True, *[False] * 4])


def test_log_density_matches_scipy():
  params = prior_draws(1, 200)
  got = np.asarray(batched_density()(params, VALUES))
  accepted = 0
  for p, density in zip(params, got):
    curve = slow_curve(p, LENGTH)
    if np.any(curve < 0) or np.any(curve > 1) or curve[-1] <= curve[0]:
      assert density == -np.inf
      continue
    accepted += 1
    expected = stats.norm(curve[:3], math.exp(p[-1])).logpdf(VALUES).sum()
    expected += sum(prior.logpdf(float(v)) for prior, v in zip(PRIORS, p))
    np.testing.assert_allclose(density, expected, rtol=1e-3, atol=1e-2)
  assert accepted > 20


def test_log_density_is_minus_infinity_exactly_for_rejected_curves():
  params = prior_draws(2, 500)
  accepted = is_learning_curve(combined_curve(params, length=LENGTH))
  np.testing.assert_array_equal(np.isfinite(batched_density()(params, VALUES)), accepted)
  # The restriction looks at all steps, not only at the observed ones.
  falls_later = GOOD.copy()
  falls_later[[0, 1, 9, 10, 11]] = 1.25, 0.6, 1.0, 0.0, 0.0
  assert np.isfinite(learning_curve_log_density(falls_later, VALUES, length=3))
  assert learning_curve_log_density(falls_later, VALUES, length=LENGTH) == -np.inf


def test_log_density_outside_the_support_of_each_prior():
  low = [-0.01, -0.61, -0.01, -0.01, -0.51, -0.01, -0.01, -0.01, -0.01, -0.01, -0.01, -0.01]
  high = [1.26, 0.61, None, 1.01, 0.51, 1.01, 2.01, None, None, 1.01, 1.01, 1.01]
  assert np.isfinite(learning_curve_log_density(GOOD, VALUES, length=LENGTH))
  outside = []
  for i, bounds in enumerate(zip(low, high)):
    for bound in bounds:
      if bound is not None:
        params = GOOD.copy()
        # A component of weight zero leaves the curve valid: only the support can reject.
        params[9 + (i > 2) + (i > 4) if i < 9 else i] = 0.0
        params[i] = bound
        outside.append(params)
  assert np.all(np.asarray(batched_density()(np.stack(outside), VALUES)) == -np.inf)


@pytest.mark.parametrize(
  ("index", "weight", "log_scale"), [(12, None, False), (2, 9, True), (7, 11, True), (8, 11, True)]
)
def test_density_integrates_to_one_over_a_parameter(index, weight, log_scale):
  params = GOOD.copy()
  if weight is not None:
    params[weight] = 0.0  # the curve then does not depend on the parameter
  grid = np.linspace(-14, 14, 4001)
  points = np.exp(grid) if log_scale else grid
  rows = np.repeat(params[None], len(grid), 0)
  rows[:, index] = points
  density = np.exp(np.asarray(batched_density()(rows, np.zeros(0, np.float32)), np.float64))
  integral = np.trapezoid(density * (points if log_scale else 1.0), grid)
  rest = math.exp(
    sum(p.logpdf(float(v)) for i, (p, v) in enumerate(zip(PRIORS, params)) if i != index)
  )
  np.testing.assert_allclose(integral, rest, rtol=1e-3)


def test_log_density_is_never_nan_or_plus_infinity():
  rows = []
  for i in range(13):
    for value in (np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0):
      rows.append(GOOD.copy())
      rows[-1][i] = value
  tiny_noise = GOOD.copy()
  tiny_noise[-1] = -200.0
  rows.append(tiny_noise)
  density = np.asarray(batched_density()(np.stack(rows), VALUES))
  assert not np.any(np.isnan(density)) and not np.any(density == np.inf)
  exact_fit = np.asarray(combined_curve(tiny_noise, length=LENGTH))[:3]
  likelihood = learning_curve_log_likelihood(tiny_noise, exact_fit, length=LENGTH)
  np.testing.assert_allclose(likelihood, 3 * (200 - 0.5 * math.log(2 * math.pi)), rtol=1e-5)


def test_log_likelihood_matches_scipy_without_restriction():
  params = prior_draws(3, 5)
  for p in params:
    got = learning_curve_log_likelihood(p, VALUES, length=LENGTH)
    expected = stats.norm(slow_curve(p, LENGTH)[:3], math.exp(p[-1])).logpdf(VALUES).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_predictions_match_a_loop():
  samples = prior_draws(4, 7)
  values = np.linspace(0.1, 0.8, LENGTH).astype(np.float32)
  curves = np.stack([slow_curve(p, LENGTH) for p in samples])
  stds = np.exp(samples[:, -1:].astype(np.float64))
  log_prob = curve_predictive_log_prob(samples, values, length=LENGTH)
  expected = np.logaddexp.reduce(stats.norm(curves, stds).logpdf(values), axis=0) - math.log(7)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-3)
  np.testing.assert_allclose(
    curve_predictive_log_prob(samples, values[:3], length=LENGTH),
    np.asarray(log_prob)[:3],
    rtol=1e-5,
  )
  exceedance = curve_exceedance(samples, 0.4, length=LENGTH)
  np.testing.assert_allclose(exceedance, stats.norm.sf(0.4, curves, stds).mean(0), atol=1e-4)
  np.testing.assert_array_equal(curve_exceedance(samples, -np.inf, length=LENGTH), 1.0)
  np.testing.assert_array_equal(curve_exceedance(samples, np.inf, length=LENGTH), 0.0)


def test_rank_promotion_may_be_forbidden():
  samples, values, x = np.zeros((5, 13)), np.zeros(3), np.arange(1.0, 5)
  with jax.numpy_rank_promotion("raise"):
    jax.eval_shape(lambda: lc.curve_predictive_log_prob(samples, values, length=LENGTH))
    jax.eval_shape(lambda: lc.curve_exceedance(samples, np.ones(LENGTH), length=LENGTH))
    jax.eval_shape(lambda: lc.combined_curve(samples, length=LENGTH))
    jax.eval_shape(lambda: lc.basis_curve("pow3", x, np.ones((2, 1, 3))))


def test_lists_are_accepted():
  params, values = GOOD.tolist(), VALUES.tolist()
  jax.eval_shape(lambda: lc.learning_curve_log_density(params, values, length=LENGTH))
  jax.eval_shape(lambda: lc.curve_predictive_log_prob([params], values, length=LENGTH))
  jax.eval_shape(lambda: lc.is_learning_curve(values))


def test_priors_of_families():
  assert len(lc.curve_priors("vap")) == 3
  assert lc.curve_priors("vap") == lc.curve_priors("vap", distribution="uniform")
  assert lc.curve_priors("pow3")[1] == ("uniform", -0.6, 0.6)
  assert lc.curve_priors("pow3", distribution="uniform")[1] == ("uniform", -1.0, 1.0)
  assert lc.curve_priors("janoschek", distribution="uniform")[3] == ("uniform", -5.0, 5.0)


def test_errors():
  with pytest.raises(ValueError, match="family.*'pow5'"):
    lc.basis_curve("pow5", 1.0, GOOD)
  with pytest.raises(ValueError, match="distribution.*'flat'"):
    lc.curve_priors("pow3", distribution="flat")
  with pytest.raises(ValueError, match="length.*3 values, got 2"):
    lc.learning_curve_log_density(GOOD, VALUES, length=2)
  with pytest.raises(ValueError, match="length"):
    lc.combined_curve(GOOD, length=0)
  with pytest.raises(ValueError, match="components"):
    lc.combined_curve(GOOD, length=3, components=())
  for steps in ((1.0, 2.0), (0.0, 1.0, 2.0)):
    with pytest.raises(ValueError, match="steps must be length=3 positive numbers"):
      lc.combined_curve(GOOD, length=3, steps=steps)
  for call in (
    lambda: lc.curve_predictive_log_prob(np.zeros((0, 13)), VALUES, length=LENGTH),
    lambda: lc.curve_exceedance(np.zeros((0, 13)), 0.5, length=LENGTH),
  ):
    with pytest.raises(ValueError, match=r"samples must not be empty, got shape \[0, 13\]"):
      call()
  with pytest.raises(ValueError, match="T must be at least 1"):
    lc.is_learning_curve(np.zeros((2, 0)))
  with pytest.raises(ValueError, match=r"params must have shape \[..., 13\], got \[12\]"):
    lc.combined_curve(GOOD[:12], length=3)
  with pytest.raises(ValueError, match=r"params must have shape \[..., 3\], got \[13\]"):
    lc.basis_curve("pow3", 1.0, GOOD)
