"""Policy gradients on sampled sequences: advantages, divergences from a reference, surrogates.

A mask is 1 (or True) on the tokens of the response; other tokens affect neither values nor
gradients. Rewards that are NaN or infinite mark samples that cannot be scored: these are left out
of all statistics, and their own advantage is 0.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_choice,
  check_range,
  is_known,
  weighted,
)
from jaxlab.losses.sequence import sequence_log_prob

# Beyond this log-ratio the exponential continues as a straight line, so that float32 is finite.
_MAX_LOG_RATIO = 60.0
# Below this log-ratio `exp(-x) + x - 1` loses digits, and a few terms of its series replace it.
_SMALL_LOG_RATIO = 0.1
_SERIES = np.array([1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2], np.float32)


def leave_one_out_advantages(rewards: chex.Array) -> jax.Array:
  """Reward less the mean reward of the other samples of the same prompt.

  The baseline does not depend on the sample itself, so the gradient stays unbiased. It needs no
  critic.

  Args:
    rewards: rewards of n samples per prompt, `[..., n]`.

  Returns:
    Advantages, `[..., n]`, in float32 or wider; 0 for samples that cannot be scored, and if fewer
    than two samples of a prompt can be scored.

  Raises:
    ValueError: if n < 2.

  Reference: Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free!, ICLR 2019 workshop;
  Ahmadian et al., Back to Basics, ACL 2024, equation 6, https://arxiv.org/abs/2402.14740.
  """
  check_arrays(rewards=(rewards, "[..., n]"))
  rewards = as_accumulator(rewards)
  if rewards.shape[-1] < 2:
    raise ValueError(f"rewards must hold at least two samples per prompt, got {rewards.shape}.")
  centered, _, count = _centered(rewards, axis=-1)
  return centered * (count / jnp.maximum(count - 1, 1))


def group_advantages(
  rewards: chex.Array,
  *,
  scale: Literal["group", "batch", "none"] = "group",
  epsilon: chex.Numeric = 1e-4,
) -> jax.Array:
  """Reward less the mean of its group of samples, in units of a standard deviation.

  Args:
    rewards: rewards of n samples per prompt, `[..., n]`.
    scale: which sample standard deviation to divide by: "group", over the samples of the prompt;
      "batch", over all rewards; "none", no division.
    epsilon: added to the standard deviation, at least 0.

  Returns:
    Advantages, `[..., n]`, in float32 or wider; 0 for samples that cannot be scored, and if fewer
    than two samples of a prompt can be scored (as for n = 1).

  Raises:
    ValueError: if `scale` is unknown or `epsilon` < 0.

  Reference: Shao et al., DeepSeekMath, 2024, section 4.1.2, https://arxiv.org/abs/2402.03300; Liu
  et al., Understanding R1-Zero-Like Training, COLM 2025, section 3 (no scale),
  https://arxiv.org/abs/2503.20783.
  """
  check_choice("scale", scale, ("group", "batch", "none"))
  check_range("epsilon", epsilon, "[0, inf)")
  check_arrays(rewards=(rewards, "[..., n]"))
  rewards = as_accumulator(rewards)
  centered, finite, count = _centered(rewards, axis=-1)
  if scale == "none":
    return centered
  if scale == "batch":
    # A reward that is alone in its group has advantage 0, but it counts in the batch's deviation.
    deviations, finite, count = _centered(rewards, axis=None)
    square = jnp.sum(jnp.square(deviations))
  else:
    square = jnp.sum(jnp.square(centered), axis=-1, keepdims=True)
  variance = square / jnp.maximum(count - 1, 1)
  spread = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
  # Without a spread all advantages are 0 already; epsilon may be 0 too.
  return centered / jnp.where(spread + epsilon > 0, spread + epsilon, 1.0)


def _centered(rewards: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finite rewards less their mean (0 if fewer than two are finite), their mask and their count."""
  finite = jnp.isfinite(rewards)
  count = jnp.sum(finite, axis=axis, keepdims=True)
  # The largest is subtracted first: equal rewards then have a mean of exactly 0.
  largest = jnp.max(rewards, axis=axis, keepdims=True, initial=-jnp.inf, where=finite)
  shifted = jnp.where(finite, rewards - jnp.where(count > 0, largest, 0.0), 0.0)
  mean = jnp.sum(shifted, axis=axis, keepdims=True) / jnp.maximum(count, 1)
  return jnp.where(finite & (count > 1), shifted - mean, 0.0), finite, count


def kl_per_token(
  log_probs: chex.Array,
  reference_log_probs: chex.Array,
  *,
  estimator: Literal["k1", "k2", "k3"] = "k3",
) -> jax.Array:
  """Estimates the divergence of a policy from a reference at tokens that the policy sampled.

  With the log-ratio r: "k1" is r, unbiased but of either sign; "k2" is r^2 / 2, biased but of low
  variance; "k3" is exp(-r) + r - 1, unbiased and never negative.

  Args:
    log_probs: log-probabilities of tokens under the policy in nats, `[...]`.
    reference_log_probs: those under the reference, `[...]`; no gradient flows into them.
    estimator: the estimator. Where the reference is more than e^60 times as likely as the policy,
      "k3" continues as a straight line, so that it stays finite.

  Returns:
    Estimates in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if the estimator is unknown.

  Reference: Schulman, Approximating KL Divergence, 2020, http://joschu.net/blog/kl-approx.html.
  """
  check_choice("estimator", estimator, ("k1", "k2", "k3"))
  check_arrays(log_probs=(log_probs, "[...]"), reference_log_probs=(reference_log_probs, "[...]"))
  log_probs, reference = as_accumulator(log_probs, reference_log_probs)
  log_ratio = log_probs - jax.lax.stop_gradient(reference)
  if estimator == "k1":
    return log_ratio
  if estimator == "k2":
    return 0.5 * jnp.square(log_ratio)
  small = jnp.abs(log_ratio) < _SMALL_LOG_RATIO
  near = jnp.where(small, log_ratio, 0.0)
  series = jnp.square(near) * jnp.polyval(_SERIES, -near)
  return jnp.where(small, series, _exp(-log_ratio) + log_ratio - 1.0)


def _exp(x: jax.Array) -> jax.Array:
  """Exponential that continues as its tangent where it would overflow."""
  excess = jax.nn.relu(x - _MAX_LOG_RATIO)
  return jnp.exp(x - excess) * (1.0 + excess)


def kl_penalized_rewards(
  rewards: chex.Array,
  log_probs: chex.Array,
  reference_log_probs: chex.Array,
  mask: chex.Array,
  *,
  beta: chex.Numeric = 0.05,
) -> jax.Array:
  """Rewards less a penalty on the response's log-ratio to the reference.

  Args:
    rewards: rewards of responses, `[...]`.
    log_probs: log-probabilities of their tokens under the policy in nats, `[..., T]`.
    reference_log_probs: those under the reference, `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    beta: penalty per nat, > 0.

  Returns:
    `rewards - beta * sum(log_probs - reference_log_probs)`, `[...]`, in float32 or wider, without
    gradient.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Stiennon et al., Learning to summarize from human feedback, NeurIPS 2020, section 3.4,
  https://arxiv.org/abs/2009.01325.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(
    rewards=(rewards, "[...]"),
    log_probs=(log_probs, "[..., T]"),
    reference_log_probs=(reference_log_probs, "[..., T]"),
    mask=(mask, "[..., T]"),
  )
  rewards, log_probs, reference = as_accumulator(rewards, log_probs, reference_log_probs)
  log_ratio = sequence_log_prob(log_probs - reference, mask)
  return jax.lax.stop_gradient(rewards - beta * log_ratio)


def clipped_policy_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  mask: chex.Array,
  *,
  level: Literal["token", "sequence_mean", "sequence_sum"] = "token",
  clip_low: chex.Numeric = 0.2,
  clip_high: chex.Numeric | None = None,
  reference_log_probs: chex.Array | None = None,
  kl_coefficient: chex.Numeric = 0.0,
) -> jax.Array:
  """Proximal policy objective of sampled sequences, with an optional divergence penalty.

  The batch mean with level "token" is GRPO's loss, with "sequence_mean" GSPO's, and with
  "sequence_sum" that of RLOO.

  Args:
    log_probs: log-probabilities of the tokens under the policy in nats, `[..., T]`.
    old_log_probs: those under the policy that sampled them, `[..., T]`; no gradient flows into
      them.
    advantages: one per sequence, `[...]`; no gradient flows into them.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    level: the unit of the importance ratio: "token", each token; "sequence_mean", the geometric
      mean over the tokens of the sequence; "sequence_sum", the whole sequence.
    clip_low: ratios are clipped at 1 - clip_low from below, at least 0.
    clip_high: ratios are clipped at 1 + clip_high from above; None for `clip_low`.
    reference_log_probs: log-probabilities under the reference, `[..., T]`, for the penalty; no
      gradient flows into them.
    kl_coefficient: weight of the mean "k3" divergence per token.

  Returns:
    Loss per sequence, `[...]`, in float32 or wider. For an empty mask it is 0 with level "token";
    with the other levels it is minus the advantage (a ratio of 1), without gradient. Ratios above
    e^60 continue as a straight line, so that the loss stays finite.

  Raises:
    ValueError: if the level is unknown, a clip < 0, `kl_coefficient` is not finite, or it is not 0
      and `reference_log_probs` is None.

  Reference: Schulman et al., PPO, 2017, equation 7, https://arxiv.org/abs/1707.06347; Shao et al.,
  DeepSeekMath, 2024, equation 3, https://arxiv.org/abs/2402.03300; Zheng et al., GSPO, 2025,
  equation 5, https://arxiv.org/abs/2507.18071.
  """
  check_choice("level", level, ("token", "sequence_mean", "sequence_sum"))
  clip_high = clip_low if clip_high is None else clip_high
  check_range("clip_low", clip_low, "[0, inf)")
  check_range("clip_high", clip_high, "[0, inf)")
  check_range("kl_coefficient", kl_coefficient, "(-inf, inf)")
  penalized = not is_known(kl_coefficient) or np.any(np.asarray(kl_coefficient) != 0)
  if penalized and reference_log_probs is None:
    raise ValueError(f"kl_coefficient {kl_coefficient} needs reference_log_probs, got None.")
  check_arrays(
    log_probs=(log_probs, "[..., T]"),
    old_log_probs=(old_log_probs, "[..., T]"),
    advantages=(advantages, "[...]"),
    mask=(mask, "[..., T]"),
    reference_log_probs=(reference_log_probs, "[..., T]"),
  )
  log_probs, old, advantages = as_accumulator(log_probs, old_log_probs, advantages)
  mask = jnp.asarray(mask).astype(bool)
  old, advantages = jax.lax.stop_gradient((old, advantages))

  if level == "token":
    log_ratio, advantages = jnp.where(mask, log_probs - old, 0.0), advantages[..., None]
  else:
    by_length = level == "sequence_mean"
    log_ratio = sequence_log_prob(log_probs - old, mask, normalize_length=by_length)
  ratio = _exp(log_ratio)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  if level == "token":
    loss = sequence_log_prob(loss, mask, normalize_length=True)
  if not penalized:
    return loss
  reference = as_accumulator(reference_log_probs)
  divergence = kl_per_token(jnp.where(mask, log_probs, 0.0), jnp.where(mask, reference, 0.0))
  penalty = sequence_log_prob(divergence, mask, normalize_length=True)
  return loss + weighted(kl_coefficient, penalty)


def reinforce_loss(log_probs: chex.Array, advantages: chex.Array, mask: chex.Array) -> jax.Array:
  """Minus advantage times log-probability of the sequence: its gradient is the policy gradient.

  Args:
    log_probs: log-probabilities of the tokens under the policy in nats, `[..., T]`.
    advantages: one per sequence, `[...]`; no gradient flows into them.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.

  Returns:
    Loss per sequence, `[...]`, in float32 or wider; 0 for an empty mask.

  Reference: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist
  Reinforcement Learning, Machine Learning 1992, https://doi.org/10.1007/BF00992696.
  """
  check_arrays(
    log_probs=(log_probs, "[..., T]"), advantages=(advantages, "[...]"), mask=(mask, "[..., T]")
  )
  log_probs, advantages = as_accumulator(log_probs, advantages)
  return weighted(-jax.lax.stop_gradient(advantages), sequence_log_prob(log_probs, mask))


def advantage_weights(
  advantages: chex.Array, *, beta: chex.Numeric, max_weight: chex.Numeric | None = None
) -> jax.Array:
  """Exponential weights of advantages, for a weighted log-likelihood.

  Args:
    advantages: of actions, such as reasoning steps, `[...]`.
    beta: temperature, > 0; as it grows, all weights tend to 1.
    max_weight: weights end at this, > 0; None for no limit but e^60, which keeps them finite.

  Returns:
    `min(exp(advantages / beta), max_weight)`, `[...]`, in float32 or wider, without gradient.

  Raises:
    ValueError: if `beta` or `max_weight` <= 0.

  Reference: Peng et al., Advantage-Weighted Regression, 2019, equation 8 and section 4.3,
  https://arxiv.org/abs/1910.00177.
  """
  check_range("beta", beta, "(0, inf)")
  if max_weight is not None:
    check_range("max_weight", max_weight, "(0, inf)")
  check_arrays(advantages=(advantages, "[...]"))
  weights = jnp.exp(jnp.minimum(as_accumulator(advantages) / beta, _MAX_LOG_RATIO))
  return jax.lax.stop_gradient(weights if max_weight is None else jnp.minimum(weights, max_weight))


def advantage_weighted_nll(
  step_log_probs: chex.Array,
  advantages: chex.Array,
  *,
  beta: chex.Numeric,
  max_weight: chex.Numeric | None = None,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Cross-entropy of the steps of sampled solutions, each weighted by its advantage.

  Its optimum is the policy that sampled, tilted by exp(advantage / beta). The pairs of steps that
  `dpo_loss` learns from have the same optimum.

  Args:
    step_log_probs: log-probabilities of the S steps under the policy in nats, `[..., S]`, as
      `segment_log_probs` gives them.
    advantages: of the steps, `[..., S]`; no gradient flows into them.
    beta: temperature of the weights, > 0.
    max_weight: weights end at this, > 0; None for no limit.
    mask: which steps count, bool or 0 and 1, `[..., S]`; None for all.

  Returns:
    Loss per solution in nats, `[...]`, in float32 or wider; 0 for an empty mask.

  Raises:
    ValueError: if `beta` or `max_weight` <= 0.

  Reference: Setlur et al., RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math
  Reasoning by Eight-Fold, NeurIPS 2024, https://arxiv.org/abs/2406.14532.
  """
  check_arrays(
    step_log_probs=(step_log_probs, "[..., S]"),
    advantages=(advantages, "[..., S]"),
    mask=(mask, "[..., S]"),
  )
  log_probs, advantages = as_accumulator(step_log_probs, advantages)
  mask = jnp.ones_like(log_probs, bool) if mask is None else jnp.asarray(mask).astype(bool)
  weights = advantage_weights(advantages, beta=beta, max_weight=max_weight)
  # The gradient of a product with NaN is NaN even where its value is not used.
  return -sequence_log_prob(weighted(jnp.where(mask, weights, 0.0), log_probs), mask)
