"""How rewards and policies rank pairs of responses, beside the ranking of a perfect policy."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range

_SMALLEST_PROB = 1e-6


class RankingTransitions(NamedTuple):
  """Shares of pairs by whether the reference and the policy rank them right; scalars that sum to 1.

  Attributes:
    stays_right: ranked right by both.
    gained: ranked right by the policy alone.
    lost: ranked right by the reference alone.
    stays_wrong: ranked right by neither.
  """

  stays_right: chex.Array
  gained: chex.Array
  lost: chex.Array
  stays_wrong: chex.Array


def pairwise_accuracy(
  chosen_rewards: chex.Array, rejected_rewards: chex.Array, *, weights: chex.Array | None = None
) -> jax.Array:
  """Share of pairs whose chosen response has the higher reward; a tie counts one half.

  Args:
    chosen_rewards: rewards of the chosen responses, `[n]`.
    rejected_rewards: rewards of the rejected ones, `[n]`.
    weights: weight of each pair, at least 0, `[n]`; None for equal ones.

  Returns:
    A share in [0, 1], `[]`, in float32 or wider; 0 if all weights are 0.

  Raises:
    ValueError: if a known weight is negative.

  Reference: Lambert et al., RewardBench, Findings of NAACL 2025, https://arxiv.org/abs/2403.13787.
  """
  check_arrays(
    chosen_rewards=(chosen_rewards, "[n]"),
    rejected_rewards=(rejected_rewards, "[n]"),
    weights=(weights, "[n]"),
  )
  chosen, rejected = as_accumulator(chosen_rewards, rejected_rewards)
  weights = jnp.ones_like(chosen) if weights is None else weights
  check_range("weights", weights, "[0, inf)")
  weights = as_accumulator(weights)
  right = jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(chosen.dtype))
  right = jnp.where(jnp.isnan(chosen) | jnp.isnan(rejected), jnp.nan, right)
  total = jnp.sum(weights)
  return jnp.sum(weights * right) / jnp.where(total > 0, total, 1.0)


def ranking_accuracy(
  chosen_log_probs: chex.Array,
  rejected_log_probs: chex.Array,
  *,
  chosen_lengths: chex.Array | None = None,
  rejected_lengths: chex.Array | None = None,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Share of pairs whose preferred response is strictly the more likely one.

  Args:
    chosen_log_probs: log-probabilities of the preferred responses in nats, `[n]`.
    rejected_log_probs: those of the other responses, `[n]`.
    chosen_lengths: tokens of the preferred responses, `[n]`, counted as at least 1; with both
      lengths, log-probabilities per token are compared.
    rejected_lengths: tokens of the other responses, `[n]`.
    mask: which pairs count, bool or 0 and 1, `[n]`; None for all.

  Returns:
    Accuracy in [0, 1], `[]`, in float32 or wider; NaN if no pair counts or the log-probability of
    one that counts is NaN.

  Raises:
    ValueError: if one of the lengths is given without the other.

  Reference: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, NeurIPS
  2024, section 2, https://arxiv.org/abs/2405.19534.
  """
  if (chosen_lengths is None) != (rejected_lengths is None):
    missing = "chosen_lengths" if chosen_lengths is None else "rejected_lengths"
    raise ValueError(f"chosen_lengths and rejected_lengths must both be given, {missing} is None.")
  check_arrays(
    chosen_log_probs=(chosen_log_probs, "[n]"),
    rejected_log_probs=(rejected_log_probs, "[n]"),
    chosen_lengths=(chosen_lengths, "[n]"),
    rejected_lengths=(rejected_lengths, "[n]"),
    mask=(mask, "[n]"),
  )
  chosen, rejected = as_accumulator(chosen_log_probs, rejected_log_probs)
  if chosen_lengths is not None:
    chosen /= jnp.maximum(jnp.asarray(chosen_lengths), 1)
    rejected /= jnp.maximum(jnp.asarray(rejected_lengths), 1)
  missing = jnp.isnan(chosen) | jnp.isnan(rejected)
  right = jnp.where(missing, jnp.nan, (chosen > rejected).astype(chosen.dtype))
  return jnp.mean(right, where=None if mask is None else jnp.asarray(mask).astype(bool))


def idealized_log_ratio(
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  preference_probs: chex.Array,
  *,
  beta: chex.Numeric,
) -> jax.Array:
  """Log-ratio of two responses under the policy that preference learning aims at.

  It is the optimum of a reward of Bradley and Terry with a penalty on the divergence from the
  reference, and of DPO without limits of data and model.

  Args:
    reference_chosen: log-probabilities of the preferred responses under the reference in nats,
      `[n]`.
    reference_rejected: those of the other responses, `[n]`.
    preference_probs: probability that people prefer the preferred response, `[n]`, in [0, 1];
      clipped to [1e-6, 1 - 1e-6].
    beta: weight of the divergence from the reference, > 0.

  Returns:
    `reference_chosen - reference_rejected + logit(preference_probs) / beta` in nats, `[n]`, in
    float32 or wider.

  Raises:
    ValueError: if `beta` <= 0 or a known probability lies outside [0, 1].

  Reference: Chen et al., NeurIPS 2024, section 3, https://arxiv.org/abs/2405.19534.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("preference_probs", preference_probs, "[0, 1]")
  check_arrays(
    reference_chosen=(reference_chosen, "[n]"),
    reference_rejected=(reference_rejected, "[n]"),
    preference_probs=(preference_probs, "[n]"),
  )
  chosen, rejected, probs = as_accumulator(reference_chosen, reference_rejected, preference_probs)
  probs = jnp.clip(probs, _SMALLEST_PROB, 1.0 - _SMALLEST_PROB)
  return chosen - rejected + (jnp.log(probs) - jnp.log1p(-probs)) / beta


def idealized_ranking_accuracy(
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  preference_probs: chex.Array,
  *,
  beta: chex.Numeric,
) -> jax.Array:
  """Ranking accuracy of the policy that preference learning aims at.

  What a trained policy lacks to it is the alignment gap.

  Args:
    reference_chosen, reference_rejected, preference_probs, beta: as in `idealized_log_ratio`.

  Returns:
    Share of pairs whose idealized log-ratio is positive, `[]`, in float32 or wider; NaN if there is
    no pair or a log-ratio is NaN.

  Raises:
    ValueError: if `beta` <= 0 or a known probability lies outside [0, 1].

  Reference: Chen et al., NeurIPS 2024, section 3, https://arxiv.org/abs/2405.19534.
  """
  ratios = idealized_log_ratio(reference_chosen, reference_rejected, preference_probs, beta=beta)
  return ranking_accuracy(ratios, jnp.zeros_like(ratios))


def ranking_loss_threshold(
  reference_chosen: chex.Array, reference_rejected: chex.Array, *, beta: chex.Numeric
) -> jax.Array:
  """DPO loss of a pair at which the policy begins to rank it right.

  The policy prefers the chosen response if and only if the loss is below this. A reference that
  strongly prefers the rejected one makes it so small that DPO hardly ever gets there.

  Args:
    reference_chosen: log-probabilities of the chosen responses under the reference in nats, `[n]`.
    reference_rejected: those of the rejected responses, `[n]`.
    beta: DPO's weight of the divergence from the reference, > 0.

  Returns:
    `-log sigmoid(beta * (reference_rejected - reference_chosen))` in nats, `[n]`, in float32 or
    wider.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Chen et al., NeurIPS 2024, section 4, https://arxiv.org/abs/2405.19534.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(
    reference_chosen=(reference_chosen, "[n]"), reference_rejected=(reference_rejected, "[n]")
  )
  chosen, rejected = as_accumulator(reference_chosen, reference_rejected)
  return jax.nn.softplus(beta * (chosen - rejected))


def ranking_transitions(
  reference_correct: chex.Array, policy_correct: chex.Array
) -> RankingTransitions:
  """How training changed which pairs are ranked right.

  Args:
    reference_correct: whether the reference ranks each pair right, bool `[n]`.
    policy_correct: whether the policy does, bool `[n]`.

  Returns:
    `RankingTransitions`, float32; NaN if there is no pair.

  Raises:
    TypeError: if an array is not of truth values.

  Reference: Chen et al., NeurIPS 2024, section 4, https://arxiv.org/abs/2405.19534.
  """
  check_arrays(
    reference_correct=(reference_correct, "bool [n]"), policy_correct=(policy_correct, "bool [n]")
  )
  before, after = jnp.asarray(reference_correct), jnp.asarray(policy_correct)
  cells = before & after, ~before & after, before & ~after, ~before & ~after
  return RankingTransitions(*map(jnp.mean, cells))
