import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.losses import coverage, sequence

SAMPLES = (1.0, 1.5, 2.0, 16.0, 256.0, 1e6)
B, T = 4, 6
RNG = np.random.default_rng(0)
TOKENS = (-2 * RNG.random((B, T))).astype(np.float32)
MASK = np.arange(T) < np.array([6, 3, 1, 0])[:, None]

loss = jax.jit(lambda log_prob, n: coverage.coverage_loss(log_prob, num_samples=n))
weight = jax.jit(lambda log_prob, n: coverage.coverage_weight(log_prob, num_samples=n))
slope = jax.jit(jax.grad(lambda log_prob, n: coverage.coverage_loss(log_prob, num_samples=n).sum()))


def exact(log_prob, n):
  """Loss and weight in double precision, for p that is neither tiny nor near 1."""
  log_prob, n = np.float64(log_prob), np.float64(n)
  log_miss = n * np.log1p(-np.exp(log_prob))
  covered = -np.expm1(log_miss)
  factor = n * np.exp(log_prob) * np.exp((n - 1) / n * log_miss) / covered
  return -np.log(covered), factor


def slow_coverage(p, n):
  return 1 - math.prod([1 - p] * n)


@pytest.mark.parametrize("n", SAMPLES)
def test_loss_and_weight_match_double_precision(n):
  log_prob = -np.logspace(-2, np.log10(30), 300).astype(np.float32)
  value, factor = exact(log_prob, n)
  np.testing.assert_allclose(loss(log_prob, n), value, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(weight(log_prob, n), factor, rtol=2e-5, atol=1e-6)


def test_loss_is_the_probability_of_no_success():
  for p in (0.01, 0.3, 0.9):
    for n in (1, 2, 7):
      expected = -np.log(slow_coverage(p, n))
      np.testing.assert_allclose(loss(np.log(np.float32(p)), n), expected, rtol=1e-5)


def test_one_sample_is_cross_entropy():
  log_prob = np.float32([0.0, -1e-9, -1e-7, -0.3, -30.0, -1e4])
  np.testing.assert_array_equal(loss(log_prob, 1.0), -log_prob)
  np.testing.assert_array_equal(weight(log_prob, 1.0), np.ones(6))
  np.testing.assert_array_equal(slope(log_prob, 1.0), -np.ones(6))


@pytest.mark.parametrize("n", [1.5, 2.0, 16.0, 1e6])
def test_loss_and_weight_at_extreme_log_probs(n):
  log_prob = np.float32([0.0, -1e-9, -1e-4, -30.0, -1e4, -np.inf])
  value, factor = jax.device_get((loss(log_prob, n), weight(log_prob, n)))
  assert np.isfinite(value[:-1]).all() and value[-1] == np.inf
  assert np.all(value[:2] < 1e-9) and np.all(factor[:2] < 1e-3)
  np.testing.assert_allclose(value[4], 1e4 - np.log(n), rtol=1e-6)
  assert factor[4] == 1 and factor[5] == 1
  assert np.all((factor >= 0) & (factor <= 1))
  np.testing.assert_array_equal(slope(log_prob, n), -factor)


@pytest.mark.parametrize("n", [2.0, 16.0, 1e6])
def test_series_and_formula_agree_at_the_switch(n):
  """At 1e-3 expected successes, up to the last digits of single precision."""
  here = np.float32(np.log(1e-3 / n))
  log_prob = here + np.arange(-20, 21, dtype=np.float32) * np.spacing(here)
  for values in jax.device_get((loss(log_prob, n), weight(log_prob, n))):
    np.testing.assert_allclose(np.diff(values) / values[1:], 0, atol=1e-6)
  factors = np.asarray(weight(log_prob, n), np.float64)
  np.testing.assert_allclose(factors, exact(log_prob, n)[1], rtol=1e-6)


def test_derivatives_in_double_precision():
  with jax.enable_x64(True):
    log_prob = -np.logspace(np.log10(30), -4, 60)
    for n in (1.0, 3.5, 64.0, 1e6):
      step = 1e-5 * np.maximum(-log_prob, 1e-2)
      ahead, behind = (np.asarray(loss(log_prob + side, n)) for side in (step, -step))
      numeric = (ahead - behind) / (2 * step)
      np.testing.assert_allclose(-numeric, weight(log_prob, n), rtol=1e-4, atol=1e-7)
    # Second derivatives, away from the ends.
    curvature = jax.jit(jax.vmap(jax.grad(jax.grad(loss)), (0, None)))
    points = np.array([-6.0, -3.0, -1.0, -0.2])
    ahead, behind = (np.asarray(slope(points + side, 4.0)) for side in (1e-5, -1e-5))
    numeric = (ahead - behind) / 2e-5
    np.testing.assert_allclose(curvature(points, 4.0), numeric, rtol=1e-4, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(-25, -1e-3), st.floats(1, 1e5), st.floats(1.01, 3))
def test_weight_falls_with_probability_and_with_samples(log_prob, n, more):
  # The tolerances allow for two rounding errors.
  log_prob, n, more = np.float32(log_prob), np.float32(n), np.float32(more)
  here = weight(log_prob, n)
  assert weight(log_prob / more, n) <= here + 1e-6
  assert weight(log_prob, n * more) <= here + 1e-6
  assert loss(log_prob, n * more) <= loss(log_prob, n) + 2e-6 * abs(log_prob)


def test_weight_at_one_expected_success():
  np.testing.assert_allclose(weight(-np.log(np.float32(1e6)), 1e6), 1 / (np.e - 1), rtol=1e-4)


def test_weight_has_no_gradient_and_num_samples_may_be_traced():
  gradients = jax.jit(
    lambda n: (
      jax.grad(lambda x: weight(x, n).sum())(TOKENS),
      jax.grad(lambda n: loss(TOKENS, n).sum())(n),
    )
  )
  assert not any(map(np.any, jax.device_get(gradients(4.0))))
  many = np.array(SAMPLES, np.float32)
  result = jax.jit(jax.vmap(lambda n: coverage.coverage_loss(TOKENS, num_samples=n)))(many)
  np.testing.assert_allclose(result, [loss(TOKENS, n) for n in SAMPLES], rtol=1e-5)
  slopes = jax.jit(jax.vmap(jax.grad(loss), (0, None)))(TOKENS[0], 8.0)
  np.testing.assert_allclose(slopes, -np.asarray(weight(TOKENS[0], 8.0)), rtol=1e-6)


def test_nan_stays_nan():
  for n in (1.0, 4.0):
    assert np.isnan(loss(np.float32(np.nan), n))


def test_surrogate_has_the_gradient_of_the_loss():
  def surrogate(tokens):
    return coverage.coverage_weighted_nll(tokens, MASK, num_samples=16.0).sum()

  def objective(tokens):
    return coverage.coverage_loss(sequence.sequence_log_prob(tokens, MASK), num_samples=16.0).sum()

  surrogate_slope = jax.jit(jax.grad(surrogate))
  result, expected = jax.device_get((surrogate_slope(TOKENS), jax.jit(jax.grad(objective))(TOKENS)))
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert not np.any(result[~MASK])
  hidden = np.where(MASK, TOKENS, -np.inf)
  np.testing.assert_array_equal(surrogate_slope(hidden), result)


def test_length_normalized_surrogate_keeps_the_weight_of_the_sequence():
  total = np.array([sum(row[m].astype(np.float64)) for row, m in zip(TOKENS, MASK)])
  factor = np.append(exact(total[:3], 16.0)[1], 0.0)
  for by_length in (False, True):
    count = np.array([6, 3, 1, 1]) if by_length else 1
    nll = functools.partial(coverage.coverage_weighted_nll, normalize_length=by_length)
    result = jax.jit(nll)(TOKENS, MASK, num_samples=16.0)
    np.testing.assert_allclose(result, -factor * total / count, rtol=1e-4)


def test_estimated_coverage_matches_the_formula():
  success = np.float32([0.0, 0.05, 0.1, 0.7])
  estimated = jax.jit(
    lambda tokens, p, **keywords: coverage.estimated_coverage_nll(
      tokens, np.ones((B, T)), p, num_samples=16.0, **keywords
    ),
    static_argnames="normalize_length",
  )
  factor = np.append(1.0, exact(np.log(np.float64(success[1:])), 16.0)[1])
  nll = -np.float64(TOKENS).sum(-1)
  np.testing.assert_allclose(estimated(TOKENS, success), factor * nll / T, rtol=1e-4)
  result = estimated(TOKENS, success, normalize_length=False, success_threshold=0.1)
  np.testing.assert_allclose(result[:2], (factor * nll)[:2], rtol=1e-4)
  np.testing.assert_array_equal(result[2:], [0, 0])
  slopes = jax.grad(lambda p: estimated(TOKENS, p).sum())(success)
  np.testing.assert_array_equal(slopes, np.zeros(4))
  certain = estimated(TOKENS, np.ones(B, np.float32))
  np.testing.assert_allclose(certain, np.zeros(B), atol=1e-9)


def test_unknown_and_certain_success():
  estimated = jax.jit(
    lambda tokens, p, **keywords: coverage.estimated_coverage_nll(
      tokens, np.ones((B, T)), p, num_samples=1e6, **keywords
    )
  )
  unknown = np.float32([0.1, np.nan, 0.7, 0.2])
  result = estimated(TOKENS, unknown, success_threshold=0.5)
  np.testing.assert_array_equal(np.isnan(result), np.isnan(unknown))
  # A certain success has weight 0, even for a text of probability 0.
  impossible = np.full((B, T), -np.inf, np.float32)
  certain = estimated(impossible, np.ones(B, np.float32))
  np.testing.assert_array_equal(certain, np.zeros(B))


def test_stepwise_loss_matches_a_loop():
  ids = np.array([[0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 2, 2], [0, 1, 2, 0, 1, 2], [-1] * 6])
  stepwise = jax.jit(
    lambda tokens: coverage.stepwise_coverage_loss(tokens, ids, num_samples=4.0, num_steps=3)
  )
  result = np.asarray(stepwise(TOKENS))
  for row, step in np.ndindex(B, 3):
    own = np.float64(TOKENS[row])[ids[row] == step]
    if own.size:
      np.testing.assert_allclose(result[row, step], exact(own.sum(), 4.0)[0], rtol=1e-4)
    else:
      assert result[row, step] == 0
  slope = jax.jit(jax.grad(lambda tokens: stepwise(tokens).sum()))
  slopes = np.asarray(slope(np.where(ids < 0, np.nan, TOKENS)))
  assert np.isfinite(slopes).all() and not np.any(slopes[ids < 0])


def test_tree_coverage_is_the_product_over_steps():
  probs = np.array([[0.2, 0.9, 0.5], [0.01, 0.3, 0.7]])
  tree = jax.jit(lambda x, mask: coverage.log_tree_coverage(x, branching=3, mask=mask))
  mask = np.array([[1, 1, 1], [1, 0, 1]], bool)
  expected = [
    np.log(math.prod(slow_coverage(p, 3) for p, exists in zip(row, m) if exists))
    for row, m in zip(probs, mask)
  ]
  log_probs = np.log(probs).astype(np.float32)
  hidden = np.where(mask, log_probs, np.nan)
  np.testing.assert_allclose(tree(hidden, mask), expected, rtol=1e-5)
  assert np.isfinite(jax.jit(jax.grad(lambda x: tree(x, mask).sum()))(hidden)).all()
  one = jax.jit(lambda x: coverage.log_tree_coverage(x, branching=3))(log_probs[:, :1])
  np.testing.assert_allclose(one, -np.asarray(loss(log_probs[:, 0], 3.0)), rtol=1e-6)
  np.testing.assert_array_equal(tree(log_probs, mask & False), [0, 0])


def test_half_precision_is_cast():
  half = jnp.asarray(TOKENS, jnp.bfloat16)
  for fn in (loss, weight):
    result = fn(half, 16.0)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, fn(np.asarray(half, np.float32), 16.0), rtol=1e-6)


def test_errors():
  ids, success = np.zeros((B, T), int), np.full(B, 0.5)
  calls = (
    lambda n: coverage.coverage_loss(TOKENS, num_samples=n),
    lambda n: coverage.coverage_weight(TOKENS, num_samples=n),
    lambda n: coverage.coverage_weighted_nll(TOKENS, MASK, num_samples=n),
    lambda n: coverage.estimated_coverage_nll(TOKENS, MASK, success, num_samples=n),
    lambda n: coverage.stepwise_coverage_loss(TOKENS, ids, num_samples=n, num_steps=2),
  )
  for call in calls:
    for bad in (0.5, np.inf, np.nan):
      with pytest.raises(ValueError, match=f"num_samples must lie .*got {bad}"):
        jax.eval_shape(functools.partial(call, bad))
  with pytest.raises(ValueError, match="branching must lie .*got 0"):
    coverage.log_tree_coverage(TOKENS, branching=0)
  for threshold in (0.0, 1.5):
    with pytest.raises(ValueError, match=f"success_threshold .*{threshold}"):
      coverage.estimated_coverage_nll(
        TOKENS, MASK, success, num_samples=4, success_threshold=threshold
      )
  with pytest.raises(ValueError, match="success_prob"):
    coverage.estimated_coverage_nll(TOKENS, MASK, success + 1, num_samples=4)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    coverage.stepwise_coverage_loss(TOKENS, ids, num_samples=4, num_steps=0)
  for name, call in (
    ("mask", lambda: coverage.coverage_weighted_nll(TOKENS, MASK[:2], num_samples=4)),
    ("success_prob", lambda: coverage.estimated_coverage_nll(TOKENS, MASK, [0.5], num_samples=4)),
    (
      "step_ids",
      lambda: coverage.stepwise_coverage_loss(TOKENS, ids[:2], num_samples=4, num_steps=2),
    ),
    ("mask", lambda: coverage.log_tree_coverage(TOKENS, branching=2, mask=MASK[:2])),
  ):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
      jax.eval_shape(call)
