import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxlab.losses import bar as loss
from jaxlab.uncertainty import bar

jit = functools.partial(jax.jit, static_argnames="full_support")
bar_nll = jit(loss.bar_nll)
bar_mean, bar_variance, bar_entropy = map(jit, (bar.bar_mean, bar.bar_variance, bar.bar_entropy))
bar_cdf, bar_quantile, bar_sample = map(jit, (bar.bar_cdf, bar.bar_quantile, bar.bar_sample))
expected_improvement = jit(bar.expected_improvement)
probability_of_improvement = jit(bar.probability_of_improvement)
upper_confidence_bound = jit(bar.upper_confidence_bound)
bar_mode = jax.jit(bar.bar_mode)

BORDERS = np.array([-2.0, -1.2, -0.5, 0.1, 0.4, 1.5, 2.5], np.float32)
K = len(BORDERS) - 1
Z75 = norm.ppf(0.75)
LOGITS = np.random.default_rng(0).normal(size=(3, K)).astype(np.float32)
SUPPORTS = pytest.mark.parametrize("full_support", [True, False])
# Below everything, in the left tail, on an inner border, inside a bar, in the right tail, above.
BESTS = np.array([-6.0, -1.7, 0.1, 0.9, 1.6, 4.0], np.float32)


@functools.cache
def monte_carlo(full_support):
  """Samples of row 0's distribution, `[1e6]`: first a bar, then a value inside it."""
  rng = np.random.default_rng(5)
  probs = np.exp(LOGITS[0].astype(np.float64))
  index = rng.choice(K, size=1_000_000, p=probs / probs.sum())
  borders = BORDERS.astype(np.float64)
  values = borders[index] + np.diff(borders)[index] * rng.uniform(size=len(index))
  if full_support:
    half_normal = np.abs(rng.normal(size=len(index))) / Z75
    values = np.where(index == 0, borders[1] - (borders[1] - borders[0]) * half_normal, values)
    right = borders[-2] + (borders[-1] - borders[-2]) * half_normal
    values = np.where(index == K - 1, right, values)
  return values


def assert_is_mean_of(samples, value):
  """Within 4 standard errors (over the first axis)."""
  error = samples.std(0) / np.sqrt(len(samples))
  np.testing.assert_array_less(np.abs(samples.mean(0) - np.asarray(value)), 4 * error + 1e-6)


@SUPPORTS
def test_moments_and_entropy_match_monte_carlo(full_support):
  samples = monte_carlo(full_support)
  mean = bar_mean(LOGITS, BORDERS, full_support=full_support)
  variance = bar_variance(LOGITS, BORDERS, full_support=full_support)
  entropy = bar_entropy(LOGITS, BORDERS, full_support=full_support)
  chex.assert_shape([mean, variance, entropy], (3,))
  assert_is_mean_of(samples, mean[0])
  assert_is_mean_of((samples - samples.mean()) ** 2, variance[0])
  rows = jnp.broadcast_to(LOGITS[0], (len(samples), K))
  nll = bar_nll(rows, samples.astype(np.float32), BORDERS, full_support=full_support)
  assert_is_mean_of(np.asarray(nll, np.float64), entropy[0])


@SUPPORTS
def test_acquisitions_match_monte_carlo(full_support):
  samples = monte_carlo(full_support)
  gain = expected_improvement(LOGITS[0], BORDERS, BESTS, full_support=full_support)
  prob = probability_of_improvement(LOGITS[0], BORDERS, BESTS, full_support=full_support)
  cdf = bar_cdf(LOGITS[0], BORDERS, BESTS, full_support=full_support)
  for i, best in enumerate(BESTS):
    assert_is_mean_of(np.maximum(samples - best, 0), gain[i])
    assert_is_mean_of((samples > best).astype(float), prob[i])
    assert_is_mean_of((samples <= best).astype(float), cdf[i])
  np.testing.assert_allclose(prob, 1 - cdf, atol=1e-6)


def test_bounded_moments_match_the_formulas():
  probs = np.exp(LOGITS.astype(np.float64))
  probs /= probs.sum(-1, keepdims=True)
  left, right = BORDERS[:-1].astype(np.float64), BORDERS[1:].astype(np.float64)
  mean = (probs * (left + right) / 2).sum(-1)
  second = (probs * (left**2 + right**2 + left * right) / 3).sum(-1)
  np.testing.assert_allclose(bar_mean(LOGITS, BORDERS, full_support=False), mean, rtol=1e-5)
  got = bar_variance(LOGITS, BORDERS, full_support=False)
  np.testing.assert_allclose(got, second - mean**2, rtol=1e-5)


def test_full_support_moments_match_the_formulas():
  probs = np.exp(LOGITS.astype(np.float64))
  probs /= probs.sum(-1, keepdims=True)
  borders = BORDERS.astype(np.float64)
  means = (borders[1:] + borders[:-1]) / 2
  seconds = (borders[1:] ** 2 + borders[:-1] ** 2 + borders[1:] * borders[:-1]) / 3
  for k, scale in ((0, (borders[1] - borders[0]) / Z75), (-1, (borders[-1] - borders[-2]) / Z75)):
    shift = scale * np.sqrt(2 / np.pi)
    means[k] = borders[1] - shift if k == 0 else borders[-2] + shift
    seconds[k] = scale**2 * (1 - 2 / np.pi) + means[k] ** 2
  mean = (probs * means).sum(-1)
  np.testing.assert_allclose(bar_mean(LOGITS, BORDERS), mean, rtol=1e-5)
  want = (probs * seconds).sum(-1) - mean**2
  np.testing.assert_allclose(bar_variance(LOGITS, BORDERS), want, rtol=1e-5)


def test_variance_is_accurate_at_a_large_offset():
  shifted = BORDERS + np.float32(4096)
  want = bar_variance(LOGITS, BORDERS)
  np.testing.assert_allclose(bar_variance(LOGITS, shifted), want, rtol=2e-3)


@SUPPORTS
def test_certain_bars_have_their_own_moments_and_entropy(full_support):
  logits = np.array([-1e4, -1e4, 1e4, -1e4, -1e4, -1e4], np.float32)
  logits_infinite = np.where(logits < 0, -np.inf, 0.0)
  fn = jax.jit(jax.value_and_grad(lambda l: bar_entropy(l, BORDERS, full_support=full_support)))
  for extreme in (logits, logits_infinite):
    entropy, grad = fn(extreme)
    np.testing.assert_allclose(entropy, np.log(0.6), rtol=1e-5)
    assert np.all(np.isfinite(grad))
  np.testing.assert_allclose(bar_mean(logits, BORDERS, full_support=full_support), -0.2, rtol=1e-5)
  got = bar_variance(logits, BORDERS, full_support=full_support)
  np.testing.assert_allclose(got, 0.36 / 12, rtol=1e-5)


def test_mode_is_the_densest_bar_and_the_first_on_ties():
  # The widest bar has most mass, the narrowest most density.
  logits = np.log(np.array([0.1, 0.1, 0.1, 0.25, 0.3, 0.15]))
  np.testing.assert_allclose(bar_mode(logits, BORDERS), 0.25)
  np.testing.assert_allclose(bar_mode(np.zeros((2, 4)), np.arange(5.0)), [0.5, 0.5])
  np.testing.assert_allclose(bar_mode(np.array([0.0, 1, 1, 0]), np.arange(5.0)), 1.5)
  # The tails count as bars.
  np.testing.assert_allclose(bar_mode(np.array([9.0, 0, 0, 0]), np.arange(5.0)), 0.5)


@SUPPORTS
def test_cdf_inverts_quantile(full_support):
  levels = np.linspace(0.002, 0.998, 250, dtype=np.float32)
  rows = jnp.broadcast_to(LOGITS[1], (len(levels), K))
  values = bar_quantile(rows, BORDERS, levels, full_support=full_support)
  assert np.all(np.diff(values) > 0)
  got = bar_cdf(LOGITS[1], BORDERS, values, full_support=full_support)
  np.testing.assert_allclose(got, levels, atol=2e-6)


def slow_quantile(logits, q, full_support):
  probs = np.exp(logits.astype(np.float64))
  probs /= probs.sum()
  borders, before, k = BORDERS.astype(np.float64), 0.0, 0
  while k < K - 1 and before + probs[k] < q:
    before += probs[k]
    k += 1
  u, width = (q - before) / probs[k], borders[k + 1] - borders[k]
  if full_support and k in (0, K - 1):
    u = np.clip(u, 1e-6, 1 - 1e-6)
    if k == 0:
      return borders[1] - width / Z75 * norm.ppf((2 - u) / 2)
    return borders[-2] + width / Z75 * norm.ppf((1 + u) / 2)
  return borders[k] + width * u


@SUPPORTS
def test_quantile_matches_a_slow_loop_and_broadcasts(full_support):
  levels = np.array([0.0, 0.01, 0.2, 0.5, 0.77, 0.99, 1.0], np.float32)[:, None]
  want = [[slow_quantile(row, q[0], full_support) for row in LOGITS] for q in levels]
  fn = functools.partial(bar_quantile, full_support=full_support)
  got = fn(LOGITS, BORDERS, levels)
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(
    bar_quantile(LOGITS, BORDERS, 0.5, full_support=full_support), got[3], rtol=2e-6
  )
  mapped = jax.vmap(lambda l, q: fn(l, BORDERS, q))(LOGITS, levels[1:4, 0])
  np.testing.assert_allclose(mapped, np.diagonal(np.asarray(got)[1:4]), rtol=2e-6)


@SUPPORTS
def test_quantiles_stay_inside_the_mass_and_finite(full_support):
  logits = np.array([-1e4, 0.0, 0.0, 0.0, -1e4, -1e4], np.float32)
  value, grad = jax.jit(
    jax.value_and_grad(
      lambda l: bar_quantile(
        l, BORDERS, jnp.array([1e-7, 0.3, 1.0]), full_support=full_support
      ).sum()
    )
  )(logits)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  got = bar_quantile(logits, BORDERS, np.array([1e-7, 1.0]), full_support=full_support)
  np.testing.assert_allclose(got, [BORDERS[1], BORDERS[4]], atol=1e-5)


def test_known_levels_may_be_arrays_that_a_jitted_function_closes_over():
  levels = jnp.array([0.2, 0.5, 0.9])
  got = jax.jit(lambda l: bar.bar_quantile(l, BORDERS, levels))(LOGITS)
  np.testing.assert_allclose(got, bar_quantile(LOGITS, BORDERS, levels), rtol=1e-6)
  rest = jnp.float32(0.3)
  got = jax.jit(lambda l: bar.upper_confidence_bound(l, BORDERS, rest_prob=rest))(LOGITS)
  np.testing.assert_allclose(got, bar_quantile(LOGITS, BORDERS, 0.7), rtol=1e-6)


def test_probabilities_do_not_exceed_one():
  logits = np.random.default_rng(2).normal(size=(200, 100)).astype(np.float32)
  borders = np.linspace(-3, 3, 101, dtype=np.float32)
  assert np.all(bar_cdf(logits, borders, np.array([50.0, np.inf])) <= 1)
  assert np.all(probability_of_improvement(logits, borders, -50.0) <= 1)


def test_cdf_slope_is_the_density():
  values = np.array([-3.1, -1.9, -0.8, 0.0, 0.3, 1.0, 2.0, 3.3], np.float32)
  slope = jax.jit(jax.vmap(jax.grad(lambda v: bar_cdf(LOGITS[2], BORDERS, v[None])[0])))(values)
  density = np.exp(-bar_nll(jnp.broadcast_to(LOGITS[2], (len(values), K)), values, BORDERS))
  np.testing.assert_allclose(slope, density, rtol=1e-5)


@SUPPORTS
def test_samples_follow_the_cdf(full_support):
  n = 100_000
  rows = jnp.broadcast_to(LOGITS[0], (n, K))
  draws = np.sort(bar_sample(jax.random.key(0), rows, BORDERS, full_support=full_support))
  cdf = bar_cdf(LOGITS[0], BORDERS, draws[::100], full_support=full_support)
  # Kolmogorov-Smirnov: 2.2 / sqrt(n) is exceeded once in 8,000 seeds.
  assert np.abs(cdf - np.arange(0, n, 100) / n).max() < 2.2 / np.sqrt(n)


@SUPPORTS
def test_expected_improvement_at_the_limits(full_support):
  fn = functools.partial(expected_improvement, full_support=full_support)
  mean = bar_mean(LOGITS, BORDERS, full_support=full_support)
  np.testing.assert_allclose(fn(LOGITS, BORDERS, -100.0), mean + 100, rtol=1e-6)
  np.testing.assert_array_equal(fn(LOGITS, BORDERS, 1000.0), 0)
  np.testing.assert_array_equal(fn(LOGITS, BORDERS, np.inf), 0)
  # Before the first observation every value is an improvement, even if some bars have no mass.
  certain = np.array([-1e4, -1e4, 1e4, -1e4, -1e4, -1e4], np.float32)
  for logits in (LOGITS, certain):
    np.testing.assert_array_equal(fn(logits, BORDERS, -np.inf), np.inf)
  slope = jax.jit(jax.vmap(jax.grad(lambda b: fn(LOGITS[0], BORDERS, b))))(BESTS)
  prob = probability_of_improvement(LOGITS[0], BORDERS, BESTS, full_support=full_support)
  np.testing.assert_allclose(slope, -prob, atol=2e-5)


def test_best_broadcasts_against_rows():
  per_row = expected_improvement(LOGITS, BORDERS, np.array([0.1, 0.9, 4.0]))
  for i, best in enumerate((0.1, 0.9, 4.0)):
    np.testing.assert_allclose(
      per_row[i], expected_improvement(LOGITS[i], BORDERS, best), rtol=3e-6
    )
  table = probability_of_improvement(LOGITS, BORDERS, BESTS[:, None])
  np.testing.assert_allclose(table, 1 - bar_cdf(LOGITS, BORDERS, BESTS).T, atol=1e-6)


def test_small_probabilities_of_improvement_keep_their_digits():
  best = np.float32(1.5 + 6 / Z75)  # 6 scales out
  prob = np.exp(LOGITS[0].astype(np.float64))
  want = prob[-1] / prob.sum() * 2 * norm.sf(6)
  np.testing.assert_allclose(probability_of_improvement(LOGITS[0], BORDERS, best), want, rtol=1e-3)


def test_upper_confidence_bound_is_a_quantile():
  np.testing.assert_allclose(
    upper_confidence_bound(LOGITS, BORDERS), bar_quantile(LOGITS, BORDERS, 0.841), rtol=1e-6
  )
  traced = upper_confidence_bound(LOGITS, BORDERS, rest_prob=0.3)
  np.testing.assert_allclose(traced, bar_quantile(LOGITS, BORDERS, 0.7), rtol=1e-6)


@SUPPORTS
def test_missing_logits_and_values_give_nan_in_their_row(full_support):
  logits = LOGITS.copy()
  logits[1, 3] = np.nan
  full = dict(full_support=full_support)
  results = {
    "mean": bar_mean(logits, BORDERS, **full),
    "variance": bar_variance(logits, BORDERS, **full),
    "entropy": bar_entropy(logits, BORDERS, **full),
    "mode": bar_mode(logits, BORDERS),
    "cdf": bar_cdf(logits, BORDERS, BESTS, **full)[:, 2],
    "quantile": bar_quantile(logits, BORDERS, 0.5, **full),
    "sample": bar_sample(jax.random.key(0), logits, BORDERS, **full),
    "gain": expected_improvement(logits, BORDERS, 0.1, **full),
    "probability": probability_of_improvement(logits, BORDERS, 0.1, **full),
    "bound": upper_confidence_bound(logits, BORDERS, **full),
  }
  for name, values in results.items():
    np.testing.assert_array_equal(np.isnan(values), [False, True, False], err_msg=name)
  # A certain first bar, whose gain alone counts.
  certain = np.where(np.arange(K) == 0, 0.0, -np.inf).astype(np.float32)
  assert np.isnan(expected_improvement(certain, BORDERS, np.nan, **full))
  assert np.isnan(bar_quantile(certain, BORDERS, np.nan, **full))


def test_bfloat16_logits_give_float32():
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  wide = logits.astype(jnp.float32)
  for fn in (bar_mean, bar_variance, bar_entropy, bar_mode, upper_confidence_bound):
    got = fn(logits, BORDERS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, fn(wide, BORDERS), rtol=1e-6)


@SUPPORTS
def test_rank_promotion_may_be_forbidden(full_support):
  full = dict(full_support=full_support)
  best = np.ones((4, 1))
  with jax.numpy_rank_promotion("raise"):
    for fn in (bar.bar_mean, bar.bar_variance, bar.bar_entropy, bar.upper_confidence_bound):
      assert jax.eval_shape(lambda: fn(LOGITS, BORDERS, **full)).shape == (3,)  # noqa: B023
    for fn in (bar.bar_quantile, bar.expected_improvement, bar.probability_of_improvement):
      assert jax.eval_shape(lambda: fn(LOGITS, BORDERS, best, **full)).shape == (4, 3)  # noqa: B023
    assert jax.eval_shape(bar.bar_mode, LOGITS, BORDERS).shape == (3,)
    assert jax.eval_shape(bar.bar_cdf, LOGITS, BORDERS, BESTS).shape == (3, 6)


def test_errors():
  with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], got 1.5"):
    bar.bar_quantile(LOGITS, BORDERS, 1.5)
  with pytest.raises(ValueError, match="rest_prob .* got -0.1"):
    bar.upper_confidence_bound(LOGITS, BORDERS, rest_prob=-0.1)
  with pytest.raises(ValueError, match="at least two bars"):
    bar_mean(np.zeros((2, 1)), np.array([0.0, 1.0]))
  for borders in (BORDERS[::-1], np.where(BORDERS == 0.4, 0.1, BORDERS)):
    with pytest.raises(ValueError, match="borders must increase strictly, got .* after"):
      bar.bar_mean(LOGITS, borders)
  for fn in (bar_mean, bar_mode):
    with pytest.raises(ValueError, match=r"borders must have shape \[7\], got \[6\]"):
      fn(LOGITS, BORDERS[1:])
  with pytest.raises(ValueError, match="values must have shape"):
    bar_cdf(LOGITS, BORDERS, np.zeros((2, 2)))
  with pytest.raises(ValueError):
    bar_quantile(LOGITS, BORDERS, np.full(4, 0.5))
