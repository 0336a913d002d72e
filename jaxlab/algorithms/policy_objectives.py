"""Objectives of post-training: which samples of a group are learned from, and their loss.

An objective is two functions. One turns the rewards of a group of samples into weights:
advantages, a selection, a pair. The other gives the losses of the weighted samples from their
log-probabilities. Another objective is another loss::

  def squared_ratio(batch):
    ratio = losses.sequence_log_prob(batch.log_probs - batch.reference_log_probs, batch.mask)
    return PolicyLoss(jnp.square(ratio - 2.0 * batch.weights))

  objective = PolicyObjective(lambda rewards: SampleWeights(rewards), squared_ratio)
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_at_least, check_choice, check_range
from jaxlab.losses.policy_gradient import (
  clipped_policy_loss,
  group_advantages,
  leave_one_out_advantages,
)
from jaxlab.losses.preference import dpo_loss
from jaxlab.losses.sequence import sequence_log_prob


class SampleWeights(NamedTuple):
  """What an objective makes of the rewards of groups of samples.

  Attributes:
    weights: advantages, or how much each sample counts, float `[b, k]`; a group whose weights are
      all 0 is not learned from.
    samples: which k of the n samples of a group are learned from, int32 `[b, k]`; None for all.
  """

  weights: chex.Array
  samples: chex.Array | None = None


class PolicyBatch(NamedTuple):
  """The samples that a loss sees: k of every group, T tokens with their prompt.

  Attributes:
    log_probs: log-probabilities of the tokens under the policy in nats, `[b, k, T]`; the gradient
      flows into them alone.
    old_log_probs: those under the policy that sampled the tokens, `[b, k, T]`.
    reference_log_probs: those under the reference, `[b, k, T]`.
    mask: True on the tokens of the responses, bool `[b, k, T]`.
    weights: of the samples, as the objective gave them, `[b, k]`.
  """

  log_probs: chex.Array
  old_log_probs: chex.Array
  reference_log_probs: chex.Array
  mask: chex.Array
  weights: chex.Array


class PolicyLoss(NamedTuple):
  """The output of a loss; `sum(values * counts) / sum(counts)` over the batch is minimized.

  Attributes:
    values: losses of groups, samples or tokens, `[b, ...]`.
    counts: how much each counts, of the same shape; values of count 0 may be anything. None for
      ones.
  """

  values: chex.Array
  counts: chex.Array | None = None


class PolicyObjective(NamedTuple):
  """An objective of `post_training`.

  Attributes:
    weigh_fn: `rewards [b, n] -> SampleWeights`; rewards that are not finite cannot be scored.
    loss_fn: `PolicyBatch -> PolicyLoss`; the groups of a batch may come in pieces.
  """

  weigh_fn: Callable[[chex.Array], SampleWeights]
  loss_fn: Callable[[PolicyBatch], PolicyLoss]


def rloo_objective(
  *, clip_low: chex.Numeric = 0.2, clip_high: chex.Numeric | None = None
) -> PolicyObjective:
  """REINFORCE with a leave-one-out baseline and the ratio of whole sequences.

  Args:
    clip_low: as in `losses.clipped_policy_loss`.
    clip_high: likewise.

  Returns:
    The objective. The divergence belongs to the reward: `post_training(..., kl_penalty=beta)`.

  Raises:
    ValueError: if a clip is negative.

  Reference: Ahmadian et al., Back to Basics, ACL 2024, https://arxiv.org/abs/2402.14740.
  """
  clips = _checked_clips(clip_low, clip_high)

  def loss_fn(batch):
    sequences = batch.log_probs, batch.old_log_probs, batch.weights, batch.mask
    return PolicyLoss(clipped_policy_loss(*sequences, level="sequence_sum", **clips))

  return PolicyObjective(lambda rewards: SampleWeights(leave_one_out_advantages(rewards)), loss_fn)


def grpo_objective(
  *,
  scale: Literal["group", "batch", "none"] = "group",
  kl_coefficient: chex.Numeric = 0.04,
  clip_low: chex.Numeric = 0.2,
  clip_high: chex.Numeric | None = None,
) -> PolicyObjective:
  """Group relative policy optimization: standardized rewards, ratios of tokens, a k3 penalty.

  Args:
    scale: what advantages are divided by, as in `losses.group_advantages`.
    kl_coefficient: weight of the divergence from the reference per token.
    clip_low: as in `losses.clipped_policy_loss`.
    clip_high: likewise.

  Returns:
    The objective.

  Raises:
    ValueError: if `scale` is unknown, a clip is negative or `kl_coefficient` is not finite.

  Reference: Shao et al., DeepSeekMath, 2024, https://arxiv.org/abs/2402.03300.
  """
  clips = _checked_clips(clip_low, clip_high)
  check_choice("scale", scale, ("group", "batch", "none"))
  check_range("kl_coefficient", kl_coefficient, "(-inf, inf)")

  def weigh_fn(rewards):
    return SampleWeights(group_advantages(rewards, scale=scale))

  def loss_fn(batch):
    sequences = batch.log_probs, batch.old_log_probs, batch.weights, batch.mask
    penalty = {
      "reference_log_probs": batch.reference_log_probs,
      "kl_coefficient": kl_coefficient,
    }
    return PolicyLoss(clipped_policy_loss(*sequences, level="token", **clips, **penalty))

  return PolicyObjective(weigh_fn, loss_fn)


def _checked_clips(clip_low, clip_high) -> dict[str, chex.Numeric | None]:
  check_range("clip_low", clip_low, "[0, inf)")
  if clip_high is not None:
    check_range("clip_high", clip_high, "[0, inf)")
  return {"clip_low": clip_low, "clip_high": clip_high}


def best_of_n_objective(*, num_best: int = 1) -> PolicyObjective:
  """Supervised fine-tuning on the best samples of every group: best-of-n distillation.

  Args:
    num_best: samples that are kept of each group, the first ones where rewards are equal.

  Returns:
    The objective: the mean negative log-probability of a token of the samples kept.

  Raises:
    ValueError: if `num_best` < 1, and on a call if a group is smaller.

  Reference: Dong et al., RAFT, TMLR 2023, https://arxiv.org/abs/2304.06767.
  """
  check_at_least(1, num_best=num_best)

  def weigh_fn(rewards):
    if rewards.shape[-1] < num_best:
      raise ValueError(f"num_best={num_best} exceeds the {rewards.shape[-1]} samples of a group.")
    scored = jnp.where(jnp.isfinite(rewards), rewards, -jnp.inf)
    best, samples = jax.lax.top_k(scored, num_best)
    return SampleWeights(jnp.isfinite(best).astype(jnp.float32), samples)

  return PolicyObjective(weigh_fn, _negative_log_prob)


def rejection_sampling_objective(*, threshold: chex.Numeric = 1.0) -> PolicyObjective:
  """Supervised fine-tuning on the samples that are good enough, such as right answers.

  Args:
    threshold: the least reward of a sample that is accepted.

  Returns:
    The objective: the mean negative log-probability of a token of the accepted samples.

  Raises:
    ValueError: if the threshold is not finite.

  Reference: Zelikman et al., STaR, NeurIPS 2022, https://arxiv.org/abs/2203.14465.
  """
  check_range("threshold", threshold, "(-inf, inf)")

  def weigh_fn(rewards):
    accepted = jnp.isfinite(rewards) & (rewards >= threshold)
    return SampleWeights(accepted.astype(jnp.float32))

  return PolicyObjective(weigh_fn, _negative_log_prob)


def _negative_log_prob(batch: PolicyBatch) -> PolicyLoss:
  return PolicyLoss(-as_accumulator(batch.log_probs), batch.mask * batch.weights[..., None])


def online_dpo_objective(
  *, beta: chex.Numeric = 0.1, label_smoothing: chex.Numeric = 0.0
) -> PolicyObjective:
  """DPO on fresh pairs: the best and the worst sample of every group.

  Args:
    beta: as in `losses.dpo_loss`.
    label_smoothing: likewise.

  Returns:
    The objective. A group whose best and worst rewards are equal gives no pair.

  Raises:
    ValueError: if `beta` <= 0 or `label_smoothing` lies outside [0, 0.5].

  Reference: Guo et al., Direct Language Model Alignment from Online AI Feedback, 2024,
  https://arxiv.org/abs/2402.04792.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("label_smoothing", label_smoothing, "[0, 0.5]")

  def weigh_fn(rewards):
    finite = jnp.isfinite(rewards)
    best = jnp.argmax(jnp.where(finite, rewards, -jnp.inf), axis=-1)
    worst = jnp.argmin(jnp.where(finite, rewards, jnp.inf), axis=-1)
    pair = jnp.stack([best, worst], axis=-1).astype(jnp.int32)
    values = jnp.take_along_axis(jnp.where(finite, rewards, 0.0), pair, axis=-1)
    differ = values[:, :1] > values[:, 1:]
    return SampleWeights(jnp.broadcast_to(differ, pair.shape).astype(jnp.float32), pair)

  def loss_fn(batch):
    policy = sequence_log_prob(batch.log_probs, batch.mask)
    reference = sequence_log_prob(batch.reference_log_probs, batch.mask)
    pairs = [x[:, i] for x in (policy, reference) for i in (0, 1)]
    values = dpo_loss(*pairs, beta=beta, label_smoothing=label_smoothing)
    return PolicyLoss(values, batch.weights[:, 0])

  return PolicyObjective(weigh_fn, loss_fn)
