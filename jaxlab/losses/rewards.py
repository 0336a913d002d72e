"""Transformations of rewards before reinforcement learning: calibrated, saturating, combined.

A reward of a response is compared with the rewards that a reference policy gets for the same
prompt; what is done with the comparison decides which responses the best policy prefers.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_broadcast,
  check_choice,
  check_range,
  is_known,
  weighted,
)
from jaxlab._programs import sum_over_pairs


def calibrate_rewards(
  rewards: chex.Array, reference_rewards: chex.Array, *, reference_mask: chex.Array | None = None
) -> jax.Array:
  """Share of the reference's responses to the same prompt that a reward beats; ties count half.

  Whatever the reward's scale and shape, the calibrated rewards of the reference's own responses are
  uniform on [0, 1], prompt by prompt, if no two rewards are equal.

  Args:
    rewards: rewards of m responses per prompt, `[..., m]`.
    reference_rewards: rewards of k responses of the reference policy, `[..., k]`.
    reference_mask: which of these count, bool or 0 and 1, `[..., k]`; None for all.

  Returns:
    Calibrated rewards in [0, 1], `[..., m]`, in float32 or wider, without gradient; 0.5 for a
    prompt without a response of the reference, NaN if one of these has a reward of NaN.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_arrays(
    rewards=(rewards, "[..., m]"),
    reference_rewards=(reference_rewards, "[..., k]"),
    reference_mask=(reference_mask, "[..., k]"),
  )
  rewards, reference = as_accumulator(rewards, reference_rewards)
  mask = jnp.ones(reference.shape) if reference_mask is None else reference_mask
  return _calibrated(*jax.lax.stop_gradient((rewards, reference)), jnp.asarray(mask).astype(bool))


@jax.jit
def _calibrated(rewards: jax.Array, reference: jax.Array, mask: jax.Array) -> jax.Array:
  def compare(ours, theirs, counted):
    return counted & (ours > theirs), counted & (ours == theirs)

  above, equal = sum_over_pairs(compare, (rewards,), (reference, mask))
  wins = above + 0.5 * equal
  count = jnp.sum(mask, axis=-1, keepdims=True)
  shares = jnp.where(count > 0, wins / jnp.maximum(count, 1), 0.5).astype(rewards.dtype)
  missing = jnp.any(mask & jnp.isnan(reference), axis=-1, keepdims=True) | jnp.isnan(rewards)
  return jnp.where(missing, jnp.nan, shares)


def exponential_reward(calibrated: chex.Array, *, tilt: chex.Numeric) -> jax.Array:
  """Exponential of a calibrated reward, for policies that are decoded by best- or worst-of-N.

  A positive tilt raises the differences among good responses, of which best-of-N needs one; a
  negative tilt raises those among bad responses, which worst-of-N would find.

  Args:
    calibrated: calibrated rewards in [0, 1], `[...]`.
    tilt: the exponent of a reward of 1, not 0; float32 overflows above 88.

  Returns:
    `sign(tilt) * exp(tilt * calibrated)`, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `tilt` is 0 or not finite.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_range("tilt", tilt, "(-inf, inf)")
  if is_known(tilt) and np.any(np.asarray(tilt) == 0):
    raise ValueError(f"tilt must not be 0, got {tilt}.")
  return jnp.sign(tilt) * jnp.exp(tilt * as_accumulator(calibrated))


def log_reward(calibrated: chex.Array, *, floor: chex.Numeric = 1e-6) -> jax.Array:
  """Logarithm of a calibrated reward, of which the worst responses lose most.

  Args:
    calibrated: calibrated rewards in [0, 1], `[...]`.
    floor: smaller rewards count as this one, > 0.

  Returns:
    `log(max(calibrated, floor))`, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `floor` <= 0.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792.
  """
  check_range("floor", floor, "(0, inf)")
  return jnp.log(jnp.maximum(as_accumulator(calibrated), floor))


def tilted_weights(
  transformed: chex.Array, *, beta: chex.Numeric, mask: chex.Array | None = None
) -> jax.Array:
  """Weights that turn samples of the reference into samples of the best policy.

  The policy of the largest mean reward less `beta` times its divergence from the reference is the
  reference times `exp(reward / beta)`, normalized.

  Args:
    transformed: rewards of m responses of the reference, as they are optimized, `[..., m]`.
    beta: weight of the divergence, > 0.
    mask: which responses count, bool or 0 and 1, `[..., m]`; None for all.

  Returns:
    Weights that sum to 1 over the responses that count, `[..., m]`, in float32 or wider; 0 for the
    others, for rewards of -inf, and where no response is left.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Balashankar et al., InfAlign, ICML 2025, https://arxiv.org/abs/2412.19792;
  Korbak et al., On Reinforcement Learning and Distribution Matching for Fine-Tuning Language
  Models, NeurIPS 2022, https://arxiv.org/abs/2206.00761.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(transformed=(transformed, "[..., m]"), mask=(mask, "[..., m]"))
  scores = as_accumulator(transformed)
  if mask is not None:
    scores = jnp.where(jnp.asarray(mask).astype(bool), scores, -jnp.inf)
  largest = jnp.max(jax.lax.stop_gradient(scores), axis=-1, keepdims=True, initial=-jnp.inf)
  # Divided last: the largest must be exactly 0, whatever the compiler makes of a division.
  odds = jnp.exp((scores - jnp.where(jnp.isneginf(largest), 0.0, largest)) / beta)
  total = jnp.sum(odds, axis=-1, keepdims=True)
  return odds / jnp.where(total == 0, 1.0, total)


def log_sigmoid_centered(rewards: chex.Array, reference_reward: chex.Array) -> jax.Array:
  """Log-probability that a response beats a reference response under a Bradley-Terry reward.

  The slope is 1 far below the reference, a half at it and 0 far above: responses that are good
  already are not pushed further, where a learned reward is least reliable.

  Args:
    rewards: rewards of responses, `[...]`.
    reference_reward: reward of the reference response to the same prompt; broadcasts with the
      rewards.

  Returns:
    `log(sigmoid(rewards - reference_reward))`, at most 0, in float32 or wider.

  Raises:
    ValueError: if the shapes do not broadcast.

  Reference: Wang et al., Transforming and Combining Rewards for Aligning Large Language Models,
  ICML 2024, https://arxiv.org/abs/2402.00742.
  """
  check_broadcast(rewards=rewards, reference_reward=reference_reward)
  rewards, reference = jnp.broadcast_arrays(*as_accumulator(rewards, reference_reward))
  return jax.nn.log_sigmoid(rewards - reference)


def reference_quantile(
  reference_rewards: chex.Array,
  *,
  quantile: chex.Numeric = 0.85,
  mask: chex.Array | None = None,
) -> jax.Array:
  """The reward that a response has to beat: a quantile of what the reference policy reaches.

  Args:
    reference_rewards: rewards of k responses of the reference policy per prompt, `[..., k]`.
    quantile: a number in [0, 1]; between two rewards the quantile is interpolated linearly.
    mask: which responses count, bool or 0 and 1, `[..., k]`; None for all.

  Returns:
    Quantiles, `[...]`, in float32 or wider; NaN where no response counts or one that does has a
    reward of NaN.

  Raises:
    ValueError: if `quantile` lies outside [0, 1].

  Reference: Wang et al., Transforming and Combining Rewards for Aligning Large Language Models,
  ICML 2024, https://arxiv.org/abs/2402.00742.
  """
  check_range("quantile", quantile, "[0, 1]")
  check_arrays(
    reference_rewards=(reference_rewards, "[..., k]"),
    quantile=(quantile, "[]"),
    mask=(mask, "[..., k]"),
  )
  rewards = as_accumulator(reference_rewards)
  mask = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
  if rewards.shape[-1] == 0:
    return jnp.full(rewards.shape[:-1], jnp.nan, rewards.dtype)
  ascending = jnp.sort(jnp.where(mask, rewards, jnp.inf), axis=-1)
  last = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True) - 1, 0)
  position = jnp.asarray(quantile, rewards.dtype) * last
  below = jnp.floor(position)
  low, high = (
    jnp.take_along_axis(ascending, jnp.minimum(index, last), axis=-1)
    for index in (below.astype(last.dtype), below.astype(last.dtype) + 1)
  )
  share = position - below
  # Equal rewards must give just this one, which decides whether a response is above.
  values = jnp.where(low == high, low, weighted(1.0 - share, low) + weighted(share, high))
  missing = jnp.any(mask & jnp.isnan(rewards), axis=-1) | ~jnp.any(mask, axis=-1)
  return jnp.where(missing, jnp.nan, values[..., 0])


def combine_rewards(
  rewards: chex.Array,
  reference_rewards: chex.Array,
  *,
  method: Literal["log_sigmoid_sum", "weighted_sum"] = "log_sigmoid_sum",
  weights: chex.Array | None = None,
) -> jax.Array:
  """One reward out of the rewards for several properties.

  The sum of log-sigmoids is the log-probability that a response is good in every property, if these
  are independent given the response: a logical and. In a weighted sum one property can pay for
  another.

  Args:
    rewards: rewards of responses for c properties, `[..., c]`.
    reference_rewards: rewards of the reference response, `[..., c]`; the leading axes broadcast
      with those of the rewards. Not used by "weighted_sum".
    method: "log_sigmoid_sum", the weighted sum of `log_sigmoid_centered`; "weighted_sum", that of
      the rewards.
    weights: weights of the properties, `[c]`, at least 0; None for 1 each in the first method, and
      1 / c each in the second.

  Returns:
    Rewards, `[...]`, in float32 or wider; a property of weight 0 adds nothing.

  Raises:
    ValueError: if the method is unknown, a weight is negative, or there are not c weights.

  Reference: Wang et al., Transforming and Combining Rewards for Aligning Large Language Models,
  ICML 2024, https://arxiv.org/abs/2402.00742.
  """
  check_choice("method", method, ("log_sigmoid_sum", "weighted_sum"))
  check_range("weights", 1.0 if weights is None else weights, "[0, inf)")
  check_arrays(rewards=(rewards, "[..., c]"))
  num = np.shape(rewards)[-1]
  check_arrays(
    reference_rewards=(reference_rewards, f"[..., {num}]"), weights=(weights, f"[{num}]")
  )
  check_broadcast(rewards=rewards, reference_rewards=reference_rewards)
  if method == "log_sigmoid_sum":
    values, default = log_sigmoid_centered(rewards, reference_rewards), 1.0
  else:
    values, _ = jnp.broadcast_arrays(*as_accumulator(rewards, reference_rewards))
    default = 1.0 / max(num, 1)
  weights = jnp.full(num, default) if weights is None else jnp.asarray(weights)
  weights = jnp.broadcast_to(weights.astype(values.dtype), values.shape)
  return jnp.sum(weighted(weights, values), axis=-1)
