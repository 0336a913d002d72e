import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.losses import policy_gradient

B, N, T = 4, 5, 6
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(2, 1, (B, N)).astype(np.float32)
BROKEN = REWARDS.copy()
BROKEN[0, 1], BROKEN[1, :3], BROKEN[2, 1:] = np.nan, [np.inf, -np.inf, np.nan], np.nan
LOG_PROBS, OLD, REFERENCE = (-1 - RNG.random((3, B, T))).astype(np.float32)
ADVANTAGES = np.array([1.5, -0.7, 0.0, 2.0], np.float32)
MASK = np.arange(T) < np.array([6, 3, 1, 0])[:, None]
LEVELS = ("token", "sequence_mean", "sequence_sum")

leave_one_out = jax.jit(policy_gradient.leave_one_out_advantages)
group = jax.jit(policy_gradient.group_advantages, static_argnames="scale")
kl = jax.jit(policy_gradient.kl_per_token, static_argnames="estimator")
penalized = jax.jit(policy_gradient.kl_penalized_rewards)
clipped = jax.jit(policy_gradient.clipped_policy_loss, static_argnames=("level", "kl_coefficient"))
reinforce = jax.jit(policy_gradient.reinforce_loss)
weights_of = jax.jit(policy_gradient.advantage_weights)
weighted_nll = jax.jit(policy_gradient.advantage_weighted_nll)


@functools.cache
def clipped_slope(level):
  def total(lp, old, advantages, ref):
    loss = policy_gradient.clipped_policy_loss(
      lp, old, advantages, MASK, level=level, reference_log_probs=ref, kl_coefficient=0.1
    )
    return loss.sum()

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))


def slow_leave_one_out(rewards):
  values = np.zeros(rewards.shape)
  for row, i in np.ndindex(*rewards.shape):
    others = [r for j, r in enumerate(np.float64(rewards[row])) if j != i and np.isfinite(r)]
    if np.isfinite(rewards[row, i]) and others:
      values[row, i] = rewards[row, i] - np.mean(others)
  return values


def slow_group(rewards, scale, epsilon=1e-4):
  values = np.zeros(rewards.shape)
  everything = np.float64(rewards[np.isfinite(rewards)])
  for row, rs in enumerate(np.float64(rewards)):
    finite = rs[np.isfinite(rs)]
    if len(finite) < 2:
      continue
    spread = {
      "group": np.std(finite, ddof=1) + epsilon,
      "batch": np.std(everything, ddof=1) + epsilon,
      "none": 1.0,
    }
    values[row] = np.where(np.isfinite(rs), (rs - finite.mean()) / spread[scale], 0.0)
  return values


def slow_clipped(level, low, high, coefficient, log_probs=LOG_PROBS, old=OLD):
  values = []
  for lp, o, ref, a, m in zip(log_probs, old, REFERENCE, ADVANTAGES, MASK):
    lp, o, ref = (x[m].astype(np.float64) for x in (lp, o, ref))
    count = max(len(lp), 1)
    ratios = {
      "token": np.exp(lp - o),
      "sequence_mean": np.exp(np.sum(lp - o) / count),
      "sequence_sum": np.exp(np.sum(lp - o)),
    }[level]
    loss = -np.minimum(ratios * a, np.clip(ratios, 1 - low, 1 + high) * a)
    loss = np.sum(loss) / count if level == "token" else loss
    values.append(loss + coefficient * np.sum(np.exp(ref - lp) - (ref - lp) - 1) / count)
  return values


@pytest.mark.parametrize("rewards", [REWARDS, BROKEN], ids=["finite", "broken"])
def test_advantages_match_a_loop(rewards):
  np.testing.assert_allclose(leave_one_out(rewards), slow_leave_one_out(rewards), atol=1e-5)
  for scale in ("group", "batch", "none"):
    result = group(rewards, scale=scale)
    np.testing.assert_allclose(result, slow_group(rewards, scale), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(group(rewards), group(rewards, scale="group", epsilon=1e-4))


def test_single_reward_of_a_prompt_counts_in_the_batch():
  lone = np.float32([[9.0, np.nan], [1.0, 2.0]])
  result = group(lone, scale="batch")
  np.testing.assert_allclose(
    result, [[0, 0], np.float64([-0.5, 0.5]) / (np.std([9, 1, 2], ddof=1) + 1e-4)], rtol=1e-5
  )


def test_leave_one_out_is_the_scaled_distance_from_the_mean():
  result = leave_one_out(REWARDS)
  np.testing.assert_allclose(result.sum(-1), np.zeros(B), atol=1e-5)
  centered = REWARDS - REWARDS.mean(-1, keepdims=True)
  np.testing.assert_allclose(result, N / (N - 1) * centered, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 100), st.floats(-1000, 1000))
def test_group_advantages_do_not_depend_on_scale_and_shift(slope, shift):
  result = group(np.float32(slope * np.float64(REWARDS) + shift))
  np.testing.assert_allclose(result, group(REWARDS), atol=1e-3)


@pytest.mark.parametrize("value", [0.1, 1e4, -1e4, 1e8])
def test_constant_rewards_have_no_advantage(value):
  constant = np.full((2, 7), value, np.float32)
  for scale in ("group", "batch", "none"):
    np.testing.assert_array_equal(group(constant, scale=scale), 0)
  np.testing.assert_array_equal(group(constant, epsilon=0.0), 0)
  np.testing.assert_array_equal(leave_one_out(constant), 0)
  assert np.isfinite(jax.grad(lambda r: group(r)[0, 0])(constant)).all()


def test_one_sample_has_no_advantage():
  for scale in ("group", "batch", "none"):
    np.testing.assert_array_equal(group(REWARDS[:, :1], scale=scale), 0)


def test_kl_estimators_match_the_formulas():
  ratio = np.float64(LOG_PROBS) - REFERENCE
  expected = {"k1": ratio, "k2": ratio**2 / 2, "k3": np.exp(-ratio) + ratio - 1}
  for estimator, values in expected.items():
    result = kl(LOG_PROBS, REFERENCE, estimator=estimator)
    np.testing.assert_allclose(result, values, rtol=1e-4, atol=1e-7)
  np.testing.assert_array_equal(kl(LOG_PROBS, REFERENCE), kl(LOG_PROBS, REFERENCE, estimator="k3"))
  slope = jax.grad(lambda p, r: kl(p, r).sum(), (0, 1))(LOG_PROBS, REFERENCE)
  np.testing.assert_allclose(slope[0], 1 - np.exp(-ratio), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(slope[1], np.zeros((B, T)))


def test_k3_is_accurate_near_0_and_finite_far_from_it():
  ratio = np.concatenate([np.logspace(-6, 1.5, 200), -np.logspace(-6, 1.5, 200)])
  ratio = ratio.astype(np.float32)
  wide = np.float64(ratio)
  exact = np.where(np.abs(wide) < 1e-4, wide**2 / 2 - wide**3 / 6, np.expm1(-wide) + wide)
  result = kl(ratio, ratio * 0)
  np.testing.assert_allclose(result, exact, rtol=5e-5)
  assert np.all(result >= 0)
  value, slope = jax.vmap(jax.value_and_grad(kl), (0, None))(np.float32([1e4, -1e4]), 0.0)
  assert np.isfinite(value).all() and np.isfinite(slope).all()
  np.testing.assert_array_equal(np.sign(slope), [1, -1])


def test_k1_and_k3_are_unbiased():
  logits = jax.random.normal(jax.random.key(0), (2, 8))
  policy, reference = jax.nn.log_softmax(logits)
  tokens = jax.random.categorical(jax.random.key(1), policy, shape=(20_000,))
  truth = float(jnp.sum(jnp.exp(policy) * (policy - reference)))
  for estimator in ("k1", "k3"):
    result = np.asarray(kl(policy[tokens], reference[tokens], estimator=estimator))
    assert abs(result.mean() - truth) < 3 * result.std() / np.sqrt(len(result))


def test_penalized_rewards_match_a_loop():
  rewards = REWARDS[:, 0]
  expected = [
    r - 0.05 * sum(np.float64(lp[m]) - ref[m])
    for r, lp, ref, m in zip(rewards, LOG_PROBS, REFERENCE, MASK)
  ]
  hidden = np.where(MASK, LOG_PROBS, -np.inf)
  result = penalized(rewards, hidden, np.where(MASK, REFERENCE, -np.inf), MASK)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  slope = jax.grad(lambda r, lp: penalized(r, lp, REFERENCE, MASK).sum(), (0, 1))(rewards, hidden)
  assert not np.any(slope[0]) and not np.any(slope[1])


@pytest.mark.parametrize("level", LEVELS)
def test_clipped_loss_matches_a_loop(level):
  for low, high, coefficient in ((0.2, None, 0.0), (0.1, 0.3, 0.5)):
    result = clipped(
      LOG_PROBS,
      OLD,
      ADVANTAGES,
      MASK,
      level=level,
      clip_low=low,
      clip_high=high,
      reference_log_probs=REFERENCE,
      kl_coefficient=coefficient,
    )
    expected = slow_clipped(level, low, low if high is None else high, coefficient)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
  plain = clipped(LOG_PROBS, OLD, ADVANTAGES, MASK, level=level)
  np.testing.assert_allclose(plain, slow_clipped(level, 0.2, 0.2, 0.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_masked_tokens_and_frozen_arguments_get_no_gradient(level):
  slope = clipped_slope(level)
  value, (mine, old, advantages, reference) = slope(LOG_PROBS, OLD, ADVANTAGES, REFERENCE)
  assert not np.any(old) and not np.any(advantages) and not np.any(reference)
  assert np.any(mine) and not np.any(mine[~MASK])
  hidden = (np.where(MASK, x, -np.inf) for x in (LOG_PROBS, OLD, REFERENCE))
  log_probs, old, reference = hidden
  again, (slopes, *_) = slope(log_probs, old, ADVANTAGES, reference)
  np.testing.assert_array_equal(again, value)
  np.testing.assert_array_equal(slopes, mine)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_extreme_ratios_are_finite(level, gap):
  value, slopes = clipped_slope(level)(LOG_PROBS + np.float32(gap), OLD, ADVANTAGES, REFERENCE)
  assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)


def test_on_policy_the_clipped_loss_is_reinforce():
  """The value is -A and the gradient is REINFORCE's divided by the number of tokens."""
  np.testing.assert_allclose(
    clipped(LOG_PROBS, LOG_PROBS, ADVANTAGES, MASK), [*-ADVANTAGES[:3], 0], rtol=1e-6
  )
  loss = lambda lp: clipped(lp, LOG_PROBS, ADVANTAGES, MASK).sum()  # noqa: E731
  policy = lambda lp: reinforce(lp, ADVANTAGES, MASK).sum()  # noqa: E731
  count = np.maximum(MASK.sum(-1, keepdims=True), 1)
  expected = jax.grad(policy)(LOG_PROBS) / count
  np.testing.assert_allclose(jax.grad(loss)(LOG_PROBS), expected, rtol=1e-5)
  np.testing.assert_allclose(expected, -ADVANTAGES[:, None] * MASK / count, rtol=1e-6)


def test_clipped_loss_of_an_empty_mask():
  empty = np.zeros_like(MASK)
  for level, expected in (("token", 0 * ADVANTAGES), *((x, -ADVANTAGES) for x in LEVELS[1:])):
    result = clipped(LOG_PROBS, OLD, ADVANTAGES, empty, level=level)
    np.testing.assert_array_equal(result, expected)


def test_clipping_stops_the_gradient_beyond_the_bounds():
  old = np.zeros((4, 1), np.float32)
  log_probs = np.log(np.float32([[1.3], [0.7], [1.3], [0.7]]))
  advantages = np.float32([1, 1, -1, -1])
  slope = jax.grad(lambda lp: clipped(lp, old, advantages, np.ones((4, 1))).sum())(log_probs)
  np.testing.assert_allclose(slope[:, 0], [0, -0.7, 1.3, 0], rtol=1e-5)


def test_reinforce_loss_matches_a_loop():
  expected = [-a * np.float64(lp[m]).sum() for a, lp, m in zip(ADVANTAGES, LOG_PROBS, MASK)]
  np.testing.assert_allclose(reinforce(LOG_PROBS, ADVANTAGES, MASK), expected, rtol=1e-5, atol=1e-7)
  slope = jax.grad(lambda a: reinforce(LOG_PROBS, a, MASK).sum())(ADVANTAGES)
  np.testing.assert_array_equal(slope, np.zeros(B))


def test_impossible_sequences_without_advantage_and_empty_batches():
  impossible = np.where(np.arange(T) == 0, -np.inf, LOG_PROBS).astype(np.float32)
  result = reinforce(impossible, ADVANTAGES, MASK)
  np.testing.assert_array_equal(result, [np.inf, -np.inf, 0, 0])
  for scale in ("group", "batch", "none"):
    empty = jax.eval_shape(
      lambda r, s=scale: policy_gradient.group_advantages(r, scale=s), REWARDS[:0]
    )
    assert empty.shape == (0, N)


STEP_ADVANTAGES = np.random.default_rng(1).uniform(-1, 1, (B, T)).astype(np.float32)


def test_advantage_weights_match_the_formula_and_end_at_the_largest():
  expected = np.exp(np.float64(STEP_ADVANTAGES) / 0.5)
  np.testing.assert_allclose(weights_of(STEP_ADVANTAGES, beta=0.5), expected, rtol=1e-5)
  clipped_weights = weights_of(STEP_ADVANTAGES, beta=0.5, max_weight=2.0)
  np.testing.assert_allclose(clipped_weights, np.minimum(expected, 2), rtol=1e-5)
  np.testing.assert_allclose(weights_of(STEP_ADVANTAGES, beta=1e8), np.ones((B, T)), rtol=1e-6)
  sharp = weights_of(STEP_ADVANTAGES, beta=1e-6, max_weight=20.0)
  np.testing.assert_array_equal(sharp, np.where(STEP_ADVANTAGES > 0, 20, 0))
  assert np.isfinite(weights_of(STEP_ADVANTAGES * np.float32(1e4), beta=0.1)).all()


def test_advantage_weighted_nll_matches_a_loop():
  expected = [
    -sum(min(np.exp(np.float64(a) / 0.5), 2.0) * np.float64(lp) for a, lp in zip(ra[m], row[m]))
    for ra, row, m in zip(STEP_ADVANTAGES, LOG_PROBS, MASK)
  ]
  options = {"beta": 0.5, "max_weight": 2.0}
  result = weighted_nll(LOG_PROBS, STEP_ADVANTAGES, mask=MASK, **options)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
  plain = weighted_nll(LOG_PROBS, STEP_ADVANTAGES, beta=1e8)
  np.testing.assert_allclose(plain, -LOG_PROBS.sum(-1), rtol=1e-5)

  def total(lp, advantages):
    return weighted_nll(lp, advantages, mask=MASK, **options).sum()

  slope = jax.jit(jax.grad(total, (0, 1)))
  mine, frozen = slope(LOG_PROBS, STEP_ADVANTAGES)
  assert not np.any(frozen)
  largest = np.minimum(np.exp(STEP_ADVANTAGES / 0.5), 2)
  np.testing.assert_allclose(mine, np.where(MASK, -largest, 0), rtol=1e-5)
  hidden = (np.where(MASK, x, bad) for x, bad in ((LOG_PROBS, -np.inf), (STEP_ADVANTAGES, np.nan)))
  again, _ = slope(*hidden)
  np.testing.assert_array_equal(again, mine)


def test_half_precision_and_vmap():
  half = (jnp.asarray(x, jnp.bfloat16) for x in (LOG_PROBS, OLD, ADVANTAGES))
  half = tuple(half)
  wide = tuple(x.astype(jnp.float32) for x in half)
  for level in LEVELS:
    loss = functools.partial(clipped, level=level)
    result = loss(*half, MASK)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, loss(*wide, MASK), rtol=1e-5)
    mapped = jax.vmap(loss)(LOG_PROBS, OLD, ADVANTAGES, MASK)
    np.testing.assert_allclose(mapped, loss(LOG_PROBS, OLD, ADVANTAGES, MASK), rtol=1e-5)
  for advantages in (leave_one_out, group):
    assert advantages(jnp.asarray(REWARDS, jnp.bfloat16)).dtype == jnp.float32
    mapped = jax.vmap(advantages)(REWARDS)
    np.testing.assert_allclose(mapped, advantages(REWARDS), rtol=1e-5, atol=1e-6)


def test_errors():
  loss = functools.partial(policy_gradient.clipped_policy_loss, LOG_PROBS, OLD, ADVANTAGES, MASK)
  for call, message in (
    (lambda: policy_gradient.leave_one_out_advantages(REWARDS[:, :1]), r"rewards .*\(4, 1\)"),
    (lambda: policy_gradient.group_advantages(REWARDS, scale="row"), "scale .*'row'"),
    (lambda: policy_gradient.group_advantages(REWARDS, epsilon=-1.0), "epsilon .*-1.0"),
    (lambda: policy_gradient.kl_per_token(OLD, OLD, estimator="k4"), "estimator .*'k4'"),
    (
      lambda: policy_gradient.kl_penalized_rewards(ADVANTAGES, OLD, OLD, MASK, beta=0.0),
      "beta .*0.0",
    ),
    (lambda: policy_gradient.advantage_weights(ADVANTAGES, beta=0.0), "beta .*0.0"),
    (
      lambda: policy_gradient.advantage_weights(ADVANTAGES, beta=1.0, max_weight=0.0),
      "max_weight .*0.0",
    ),
    (lambda: policy_gradient.advantage_weighted_nll(OLD, OLD, beta=-1.0), "beta .*-1.0"),
    (lambda: loss(level="word"), "level .*'word'"),
    (lambda: loss(clip_low=-0.1), "clip_low .*-0.1"),
    (lambda: loss(clip_high=-0.1), "clip_high .*-0.1"),
    (lambda: loss(kl_coefficient=np.nan), r"kl_coefficient must lie in \(-inf, inf\), got nan"),
    (lambda: loss(kl_coefficient=0.1), "kl_coefficient 0.1 needs reference_log_probs"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(call)
  clipped_loss = policy_gradient.clipped_policy_loss
  for name, call in (
    ("reference_log_probs", lambda: policy_gradient.kl_per_token(OLD, OLD[:2])),
    ("log_probs", lambda: policy_gradient.kl_penalized_rewards(ADVANTAGES[:2], OLD, OLD, MASK)),
    ("old_log_probs", lambda: clipped_loss(LOG_PROBS, OLD[:2], ADVANTAGES, MASK)),
    ("advantages", lambda: clipped_loss(LOG_PROBS, OLD, ADVANTAGES[:2], MASK)),
    ("mask", lambda: clipped_loss(LOG_PROBS, OLD, ADVANTAGES, MASK[:2])),
    ("reference_log_probs", lambda: loss(reference_log_probs=OLD[:2], kl_coefficient=0.1)),
    ("advantages", lambda: policy_gradient.reinforce_loss(LOG_PROBS, ADVANTAGES[:2], MASK)),
    ("advantages", lambda: policy_gradient.advantage_weighted_nll(OLD, OLD[:2], beta=1.0)),
  ):
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
      jax.eval_shape(call)
