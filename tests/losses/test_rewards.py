import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

B, M, K = 4, 6, 5
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(B, M)).astype(np.float32)
# Rounded to halves some rewards are equal.
ROUNDED = np.round(2 * RNG.normal(size=(B, M))).astype(np.float32) / 2
REFERENCE = np.round(2 * RNG.normal(size=(B, K))).astype(np.float32) / 2
MASK = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]], bool)

calibrate = jax.jit(losses.calibrate_rewards)
exponential = jax.jit(losses.exponential_reward)
log_reward = jax.jit(losses.log_reward)
weights_of = jax.jit(losses.tilted_weights)
centered = jax.jit(losses.log_sigmoid_centered)
quantile_of = jax.jit(losses.reference_quantile)
combine = jax.jit(losses.combine_rewards, static_argnames="method")
centered_slopes = jax.jit(jax.grad(lambda r, ref: centered(r, ref).sum(), (0, 1)))
weights_slope = jax.jit(
  jax.grad(lambda x, mask, beta: (weights_of(x, beta=beta, mask=mask) ** 2).sum())
)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def slow_calibration(rewards, reference, mask):
  result = np.full(rewards.shape, 0.5)
  for row, theirs, counted, out in zip(rewards, reference, mask, result):
    theirs = theirs[counted]
    for i, reward in enumerate(row):
      if len(theirs):
        out[i] = np.mean([1.0 if reward > x else 0.5 if reward == x else 0.0 for x in theirs])
  return result


@pytest.mark.parametrize("mask", [np.ones_like(MASK), MASK])
def test_calibration_matches_a_loop(mask):
  result = calibrate(ROUNDED, REFERENCE, reference_mask=mask)
  np.testing.assert_allclose(result, slow_calibration(ROUNDED, REFERENCE, mask), rtol=1e-6)
  # What is masked does not count, whatever it is.
  hidden = np.where(mask, REFERENCE, np.nan)
  np.testing.assert_array_equal(calibrate(ROUNDED, hidden, reference_mask=mask), result)


@pytest.mark.parametrize("change", [np.exp, lambda r: r**3, lambda r: 30 * r - 7])
def test_calibration_is_invariant_to_increasing_maps(change):
  result = calibrate(change(ROUNDED), change(REFERENCE), reference_mask=MASK)
  np.testing.assert_array_equal(result, calibrate(ROUNDED, REFERENCE, reference_mask=MASK))


def test_a_pool_calibrated_by_itself_has_mean_one_half():
  pool = ROUNDED[:, :K]
  np.testing.assert_allclose(
    calibrate(pool, pool, reference_mask=np.ones_like(MASK)).mean(1), 0.5, rtol=1e-6
  )
  everything = np.ones_like(MASK)
  extreme = np.array([-np.inf, -1e30, 0.0, 1e30, np.inf, 0.0], np.float32)
  levels = calibrate(
    np.tile(extreme, (B, 1)), np.tile(extreme[:K], (B, 1)), reference_mask=everything
  )
  np.testing.assert_allclose(levels[0], [0.1, 0.3, 0.5, 0.7, 0.9, 0.5], rtol=1e-6)


def test_a_missing_reward_stays_in_its_row():
  rewards, reference = REWARDS.copy(), REFERENCE.copy()
  rewards[0, 2] = np.nan
  reference[1, 1] = np.nan
  result = calibrate(rewards, reference, reference_mask=MASK)
  missing = np.zeros((B, M), bool)
  missing[0, 2] = missing[1] = True
  np.testing.assert_array_equal(np.isnan(result), missing)


def test_transformations_of_calibrated_rewards():
  u = np.linspace(0, 1, 7, dtype=np.float32)
  for tilt in (10.0, -10.0):
    result = exponential(u, tilt=tilt)
    np.testing.assert_allclose(result, np.sign(tilt) * np.exp(tilt * np.float64(u)), rtol=1e-5)
    assert np.all(np.diff(result) > 0)
  np.testing.assert_allclose(log_reward(u), np.log(np.maximum(u, 1e-6)), rtol=1e-6)
  np.testing.assert_allclose(log_reward(u, floor=0.3), np.log(np.maximum(u, 0.3)), rtol=1e-6)
  slope = jax.jit(jax.grad(lambda u: log_reward(u).sum()))(u)
  np.testing.assert_allclose(slope, np.where(u > 0, 1 / np.maximum(u, 0.1), 0), rtol=1e-5)


def test_tilted_weights_match_a_loop():
  mask = np.arange(M) < np.array([6, 3, 0, 1])[:, None]
  result = weights_of(REWARDS, beta=0.3, mask=mask)
  for row, counted, out in zip(np.float64(REWARDS), mask, np.asarray(result)):
    odds = np.where(counted, np.exp(row / 0.3), 0)
    np.testing.assert_allclose(out, odds / max(odds.sum(), 1e-9), rtol=1e-5)
  np.testing.assert_allclose(result.sum(1), [1, 1, 0, 1], rtol=1e-6)
  hidden = np.where(mask, REWARDS, np.nan)
  np.testing.assert_array_equal(weights_of(hidden, beta=0.3, mask=mask), result)
  assert np.isfinite(weights_slope(np.where(mask, REWARDS, -np.inf), mask, 0.3)).all()


def test_tilted_weights_at_the_limits():
  every = np.ones((B, M), bool)
  np.testing.assert_allclose(weights_of(REWARDS, beta=1e8, mask=every), 1 / M, rtol=1e-6)
  sharp = weights_of(1e4 * REWARDS, beta=1e-3, mask=every)
  np.testing.assert_array_equal(sharp, REWARDS.max(1, keepdims=True) == REWARDS)
  assert np.isfinite(weights_slope(1e4 * REWARDS, every, 1e-3)).all()
  impossible = np.where(np.arange(M) < 4, -np.inf, REWARDS)
  impossible[1] = -np.inf
  impossible[2, 5] = np.nan
  result = weights_of(impossible, beta=0.5, mask=every)
  np.testing.assert_array_equal(result[0, :4], np.zeros(4))
  np.testing.assert_array_equal(result[1], np.zeros(M))
  np.testing.assert_array_equal(np.isnan(result).all(1), [False, False, True, False])


def test_weights_of_the_log_sigmoid_are_win_probabilities():
  """With gamma = 1 the tilt is the Bradley-Terry probability to beat the reference."""
  reference = REWARDS[:, :1] + 0.3
  every = np.ones((B, M), bool)
  result = weights_of(centered(REWARDS, reference), beta=1.0, mask=every)
  wins = sigmoid(REWARDS - reference)
  np.testing.assert_allclose(result, wins / wins.sum(1, keepdims=True), rtol=1e-5)


def test_log_sigmoid_centered_and_its_slope():
  reference = RNG.normal(size=(B, 1)).astype(np.float32)
  result = centered(REWARDS, reference)
  np.testing.assert_allclose(result, np.log(sigmoid(REWARDS - reference)), rtol=1e-5)
  np.testing.assert_allclose(centered(REWARDS + 2, reference + 2), result, rtol=1e-5)
  slope, back = centered_slopes(REWARDS, reference)
  np.testing.assert_allclose(slope, sigmoid(reference - REWARDS), rtol=1e-5)
  np.testing.assert_allclose(back, -slope.sum(1, keepdims=True), rtol=1e-5)
  # One property: the order of the responses does not change.
  np.testing.assert_array_equal(np.argsort(result, axis=1), np.argsort(REWARDS, axis=1))


def test_log_sigmoid_of_extreme_rewards():
  rewards = np.tile(np.float32([-1e4, 1e4, 1e4, -1e4, 0, 0]), (B, 1))
  reference = np.zeros((B, 1), np.float32)
  np.testing.assert_array_equal(centered(rewards, reference)[0, :2], [-1e4, 0])
  slope, _ = centered_slopes(rewards, reference)
  np.testing.assert_array_equal(slope[0], [1, 0, 0, 1, 0.5, 0.5])


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.85, 1.0])
def test_quantiles_are_those_of_numpy(quantile):
  result = quantile_of(REFERENCE, quantile=quantile, mask=np.ones_like(MASK))
  np.testing.assert_allclose(result, np.quantile(REFERENCE, quantile, axis=1), rtol=1e-5, atol=1e-6)
  masked = quantile_of(REFERENCE, quantile=quantile, mask=MASK)
  expected = [np.quantile(x[m], quantile) if m.any() else np.nan for x, m in zip(REFERENCE, MASK)]
  np.testing.assert_allclose(masked, expected, rtol=1e-5, atol=1e-6)


def test_quantiles_at_the_edges():
  rewards = np.full((B, K), 0.1, np.float32)
  rewards[1, 0], rewards[2, 4], rewards[3] = np.nan, np.inf, -np.inf
  mask = np.ones_like(MASK)
  result = quantile_of(rewards, quantile=0.35, mask=mask)
  np.testing.assert_array_equal(result, np.float32([0.1, np.nan, 0.1, -np.inf]))
  mask[1, 0] = False
  assert quantile_of(rewards, quantile=0.35, mask=mask)[1] == np.float32(0.1)


def test_the_quantile_of_nothing_and_the_default():
  empty = quantile_of(np.zeros((B, 0), np.float32), mask=np.zeros((B, 0), bool))
  np.testing.assert_array_equal(empty, np.full(B, np.nan))
  result = quantile_of(REFERENCE)
  np.testing.assert_allclose(result, np.quantile(REFERENCE, 0.85, axis=1), rtol=1e-5, atol=1e-6)


def test_combinations_match_the_formulas():
  rewards, reference = REWARDS.reshape(B, 3, 2), REFERENCE[:, None, :2]
  result = combine(rewards, reference)
  wins = sigmoid(rewards - reference)
  np.testing.assert_allclose(np.exp(result), wins[..., 0] * wins[..., 1], rtol=1e-5)
  result = combine(rewards, reference, weights=np.float32([0.3, 2.0]))
  np.testing.assert_allclose(result, np.log(wins) @ [0.3, 2.0], rtol=1e-5)
  result = combine(rewards, reference, method="weighted_sum")
  np.testing.assert_allclose(result, rewards.mean(-1), rtol=1e-4, atol=1e-6)
  weights = np.float32([0.3, 0.7])
  result = combine(rewards, reference, method="weighted_sum", weights=weights)
  np.testing.assert_allclose(result, rewards @ weights, rtol=1e-4, atol=1e-6)


def test_a_conjunction_does_not_let_one_property_pay_for_another():
  pair = np.tile(np.float32([[10, -10], [0, 0], [5, 5]]), (B, 1, 1))
  reference = np.zeros((B, 1, 2), np.float32)
  one_sided, balanced, _ = combine(pair, reference)[0]
  assert balanced > one_sided
  one_sided, balanced, _ = combine(pair, reference, method="weighted_sum")[0]
  assert balanced == one_sided


def test_a_property_of_weight_0_adds_nothing():
  rewards = REWARDS.reshape(B, 3, 2).copy()
  rewards[0, :, 1] = -np.inf
  reference, weights = REFERENCE[:, None, :2], np.float32([1.0, 0.0])
  for method in ("log_sigmoid_sum", "weighted_sum"):
    result = combine(rewards, reference, method=method, weights=weights)
    assert np.isfinite(result).all()


def test_half_precision_is_cast():
  half = jax.ShapeDtypeStruct((B, M), jnp.bfloat16)
  for function in (
    lambda x: losses.calibrate_rewards(x, x),
    lambda x: losses.exponential_reward(x, tilt=2.0),
    losses.log_reward,
    lambda x: losses.tilted_weights(x, beta=0.5),
    lambda x: losses.log_sigmoid_centered(x, x),
    losses.reference_quantile,
    lambda x: losses.combine_rewards(x, x, method="weighted_sum"),
  ):
    assert jax.eval_shape(function, half).dtype == jnp.float32


def test_settings_may_be_traced():
  every = np.ones((B, M), bool)
  mapped = jax.vmap(lambda beta: weights_of(REWARDS, beta=beta, mask=every))(jnp.array([0.1, 1.0]))
  np.testing.assert_allclose(mapped[0], weights_of(REWARDS, beta=0.1, mask=every), rtol=1e-5)


def test_errors():
  for tilt in (0, 0.0, np.inf):
    with pytest.raises(ValueError, match="tilt must"):
      losses.exponential_reward(REWARDS, tilt=tilt)
  with pytest.raises(ValueError, match=r"floor must lie in \(0, inf\), got 0.0"):
    losses.log_reward(REWARDS, floor=0.0)
  with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\), got -1.0"):
    losses.tilted_weights(REWARDS, beta=-1.0)
  with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\], got 1.1"):
    losses.reference_quantile(REFERENCE, quantile=1.1)
  with pytest.raises(ValueError, match="method must be one of .*, got 'product'"):
    losses.combine_rewards(REWARDS, REWARDS, method="product")
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\), got"):
    losses.combine_rewards(REWARDS, REWARDS, weights=[-0.1] * M)
  with pytest.raises(ValueError, match=r"weights must have shape \[6\], got \[2\]"):
    losses.combine_rewards(REWARDS, REWARDS, weights=[0.5, 0.5])


def test_shapes_that_do_not_fit():
  with pytest.raises(ValueError, match=r"^reference_rewards must have shape .*got \[3, 5\]"):
    losses.calibrate_rewards(REWARDS, REFERENCE[:3])
  with pytest.raises(ValueError, match="^reference_mask must have shape"):
    losses.calibrate_rewards(REWARDS, REFERENCE, reference_mask=MASK[:, :2])
  with pytest.raises(ValueError, match="^mask must have shape"):
    losses.tilted_weights(REWARDS, beta=1.0, mask=MASK)
  with pytest.raises(ValueError, match=r"^rewards and reference_reward must .* \[4, 6\] and \[4\]"):
    losses.log_sigmoid_centered(REWARDS, REWARDS[:, 0])
  with pytest.raises(ValueError, match="^reference_rewards must have shape"):
    losses.combine_rewards(REWARDS, REFERENCE)
