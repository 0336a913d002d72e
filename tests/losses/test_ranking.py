import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import losses

B, K = 5, 4
RNG = np.random.default_rng(0)
SCORES = RNG.normal(0, 2, (B, K)).astype(np.float32)
REWARDS = RNG.integers(0, 3, (B, K)).astype(np.float32)  # With ties.
TOTALS = (-10 * RNG.random((B, K))).astype(np.float32)
bradley_terry = jax.jit(losses.bradley_terry_loss)
slic = jax.jit(losses.slic_loss)
rrhf = jax.jit(losses.rrhf_loss)
plackett_luce = jax.jit(losses.plackett_luce_loss)


def slow_rrhf(scores, rewards, totals=None, weight=1.0):
  values = []
  for row in range(len(scores)):
    total = 0.0
    for i, j in itertools.product(range(K), range(K)):
      if rewards[row, i] < rewards[row, j]:
        total += max(0.0, float(scores[row, i]) - float(scores[row, j]))
    if totals is not None:
      total -= weight * totals[row, list(rewards[row]).index(max(rewards[row]))]
    values.append(total)
  return values


def slow_plackett_luce(scores, mask):
  """Minus the logarithm of the product of the choice probabilities."""
  values = []
  for row, exists in zip(np.float64(scores), mask):
    left = np.exp(row[exists] - row[exists].max(initial=0.0))
    values.append(-sum(np.log(left[i] / left[i:].sum()) for i in range(len(left))))
  return values


def test_bradley_terry_matches_the_formula():
  chosen, rejected = np.float64(SCORES[:, 0]), np.float64(SCORES[:, 1])
  margins = RNG.random(B).astype(np.float32)
  for margin, coefficient in ((None, 0.0), (0.7, 0.01), (margins, 0.0)):
    result = bradley_terry(
      SCORES[:, 0], SCORES[:, 1], margin=margin, center_coefficient=coefficient
    )
    gap = chosen - rejected - (0 if margin is None else margin)
    expected = np.logaddexp(0, -gap) + coefficient * (chosen + rejected) ** 2
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_shift_of_both_rewards_changes_only_the_centering_term():
  pair, shifted = SCORES[:, :2].T, SCORES[:, :2].T + 3
  np.testing.assert_allclose(bradley_terry(*shifted), bradley_terry(*pair), rtol=1e-5)
  centered = (bradley_terry(*x, center_coefficient=0.1) for x in (shifted, pair))
  assert np.all(np.abs(next(centered) - next(centered)) > 0.1)


def test_slic_is_a_hinge_plus_a_likelihood():
  chosen, rejected, target = TOTALS[:, 0], TOTALS[:, 1], TOTALS[:, 2]
  hinge = np.maximum(0, 1 - np.float64(chosen) + rejected)
  np.testing.assert_allclose(slic(chosen, rejected), hinge, rtol=1e-5, atol=1e-6)
  result = slic(chosen, rejected, margin=2.5, target_log_probs=target, target_weight=0.3)
  expected = np.maximum(0, 2.5 - np.float64(chosen) + rejected) - 0.3 * target
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  slope = jax.grad(lambda c: losses.slic_loss(c, 0.0, margin=1.0))(1.0)
  assert slope == 0


def test_rrhf_matches_a_loop():
  np.testing.assert_allclose(rrhf(SCORES, REWARDS), slow_rrhf(SCORES, REWARDS), rtol=1e-5)
  result = rrhf(SCORES, REWARDS, sequence_log_probs=TOTALS, nll_weight=0.4)
  np.testing.assert_allclose(result, slow_rrhf(SCORES, REWARDS, TOTALS, 0.4), rtol=1e-5)


def test_rrhf_of_equal_rewards_and_of_the_right_order_is_0():
  np.testing.assert_array_equal(rrhf(SCORES, REWARDS * 0), np.zeros(B))
  np.testing.assert_array_equal(rrhf(SCORES, SCORES), np.zeros(B))
  first = rrhf(SCORES, REWARDS * 0, sequence_log_probs=TOTALS)
  np.testing.assert_allclose(first, -TOTALS[:, 0], rtol=1e-6)
  slope = jax.grad(lambda r: rrhf(SCORES, r, sequence_log_probs=TOTALS).sum())(REWARDS)
  np.testing.assert_array_equal(slope, np.zeros((B, K)))


def test_plackett_luce_matches_the_product_of_choices():
  mask = np.arange(K) < np.array([4, 3, 2, 1, 0])[:, None]
  everything = np.ones((B, K), bool)
  expected = slow_plackett_luce(SCORES, everything)
  np.testing.assert_allclose(plackett_luce(SCORES), expected, rtol=1e-5)
  for bad in (0.0, np.nan, np.inf, 1e4):
    hidden = np.where(mask, SCORES, bad).astype(np.float32)
    result, slope = jax.jit(
      jax.value_and_grad(lambda s: losses.plackett_luce_loss(s, mask=mask).sum())
    )(hidden)
    np.testing.assert_allclose(result, sum(slow_plackett_luce(SCORES, mask)), rtol=1e-5)
    assert np.isfinite(slope).all() and not np.any(slope[~mask])
  assert not np.any(plackett_luce(SCORES, mask=mask)[3:])


def test_plackett_luce_of_two_is_bradley_terry():
  result = plackett_luce(SCORES[:, :2])
  np.testing.assert_allclose(result, bradley_terry(*SCORES[:, :2].T), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=K, max_size=K))
def test_probabilities_of_all_rankings_sum_to_one(scores):
  rankings = np.array(list(itertools.permutations(scores)), np.float32)
  np.testing.assert_allclose(np.exp(-plackett_luce(rankings)).sum(), 1.0, rtol=1e-4)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores_are_finite(size):
  scores = np.float32([[1, -1, 0, 1], [-1, 1, 1, 0]]) * np.float32(size)
  for loss in (
    lambda s: losses.plackett_luce_loss(s),
    lambda s: losses.bradley_terry_loss(s[:, 0], s[:, 1], center_coefficient=0.01),
    lambda s: losses.slic_loss(s[:, 0], s[:, 1]),
    lambda s: losses.rrhf_loss(s, REWARDS[:2], sequence_log_probs=s),
  ):
    value, slope = jax.jit(jax.value_and_grad(lambda s, f=loss: f(s).sum()))(scores)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_terms_without_weight_add_nothing_and_unknown_rewards_give_nan():
  chosen, rejected = SCORES[:, 0], SCORES[:, 1]
  impossible = np.full(B, -np.inf, np.float32)
  expected = slic(chosen, rejected)
  np.testing.assert_array_equal(slic(chosen, rejected, target_log_probs=impossible), expected)
  np.testing.assert_array_equal(bradley_terry(chosen, impossible), np.zeros(B))
  totals = np.full((B, K), -np.inf, np.float32)
  plain = rrhf(SCORES, REWARDS, sequence_log_probs=totals, nll_weight=0.0)
  np.testing.assert_array_equal(plain, rrhf(SCORES, REWARDS))
  for arrays in ((SCORES, REWARDS.copy()), (SCORES.copy(), REWARDS)):
    unknown = arrays[int(arrays[0] is SCORES)]
    unknown[1, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(rrhf(*arrays)), np.arange(B) == 1)


def test_half_precision_and_vmap():
  half = jnp.asarray(SCORES, jnp.bfloat16)
  for loss in (
    plackett_luce,
    lambda s: bradley_terry(s[..., 0], s[..., 1]),
    lambda s: slic(s[..., 0], s[..., 1]),
    lambda s: rrhf(s, SCORES[0]) if s.ndim == 1 else rrhf(s, np.tile(SCORES[0], (B, 1))),
  ):
    result = loss(half)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, loss(half.astype(jnp.float32)), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(loss)(SCORES), loss(SCORES), rtol=1e-5, atol=1e-6)


def test_errors():
  for call, name in (
    (lambda: losses.bradley_terry_loss(SCORES, SCORES, center_coefficient=-1.0), "center"),
    (lambda: losses.slic_loss(SCORES, SCORES, margin=-1.0), "margin"),
    (lambda: losses.slic_loss(SCORES, SCORES, target_weight=-1.0), "target_weight"),
    (lambda: losses.rrhf_loss(SCORES, REWARDS, nll_weight=-1.0), "nll_weight"),
  ):
    with pytest.raises(ValueError, match=rf"{name}.* must lie in \[0, inf\), got -1.0"):
      jax.eval_shape(call)
  for name, call in (
    ("rejected_rewards", lambda: losses.bradley_terry_loss(SCORES, SCORES[:2])),
    ("margin", lambda: losses.bradley_terry_loss(SCORES, SCORES, margin=[1.0, 2.0])),
    ("policy_rejected", lambda: losses.slic_loss(SCORES, SCORES[:2])),
    ("target_log_probs", lambda: losses.slic_loss(SCORES, SCORES, target_log_probs=SCORES[0])),
    ("rewards", lambda: losses.rrhf_loss(SCORES, REWARDS[:2])),
    ("sequence_log_probs", lambda: losses.rrhf_loss(SCORES, SCORES, sequence_log_probs=[1.0])),
    ("mask", lambda: losses.plackett_luce_loss(SCORES, mask=np.ones(K))),
  ):
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
      jax.eval_shape(call)
