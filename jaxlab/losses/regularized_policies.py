"""Policies over finite sets of responses that are held to a reference, and rewards behind them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_range,
  is_known,
  weighted,
)
from jaxlab.losses.ranking import bradley_terry_loss


def optimal_policy_log_probs(
  rewards: chex.Array, reference_log_probs: chex.Array, *, beta: chex.Numeric
) -> jax.Array:
  """The policy that maximizes its mean reward less `beta` times its divergence from a reference.

  Args:
    rewards: rewards of all responses to a prompt, `[..., Y]`.
    reference_log_probs: their log-probabilities under the reference in nats, `[..., Y]`; -inf for
      those that it never gives.
    beta: weight of the divergence, > 0.

  Returns:
    Log-probabilities of the responses, `[..., Y]`, in float32 or wider; NaN where no response is
    possible.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Rafailov et al., DPO, NeurIPS 2023, equation 4, https://arxiv.org/abs/2305.18290.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(rewards=(rewards, "[..., Y]"), reference_log_probs=(reference_log_probs, "[..., Y]"))
  rewards, reference = as_accumulator(rewards, reference_log_probs)
  return jax.nn.log_softmax(reference + rewards / beta)


def maximin_reward_objective(
  rewards: chex.Array,
  reference_log_probs: chex.Array,
  baseline_probs: chex.Array,
  prompt_probs: chex.Array,
  comparisons: chex.Array,
  *,
  beta: chex.Numeric,
  pessimism: chex.Numeric,
) -> jax.Array:
  """What the most pessimistic reward that still fits the comparisons minimizes.

  `pessimism` times the gain of the best policy for that reward over a baseline, plus the loss of
  the comparisons. The optimal policy of its minimizer minimizes `rpo_loss` with `sft_weight` =
  `pessimism`: with rewards `beta * (policy - reference)` plus any constant of a prompt, the
  objective is that loss up to a constant.

  Args:
    rewards: rewards of all responses to all prompts, `[X, Y]`.
    reference_log_probs: their log-probabilities under the reference in nats, `[X, Y]`.
    baseline_probs: their probabilities under the baseline, `[X, Y]`.
    prompt_probs: probabilities of the prompts, `[X]`.
    comparisons: prompt, chosen and rejected response of each comparison, int `[n, 3]`.
    beta: weight of the policy's divergence from the reference, > 0.
    pessimism: weight of the gain over the baseline, at least 0.

  Returns:
    The objective in nats, `[]`, in float32 or wider; without comparisons the gain alone.

  Raises:
    ValueError: if `beta` <= 0, `pessimism` < 0, or a known comparison names what does not exist (an
      unknown one gives NaN).

  Reference: Liu et al., Provably Mitigating Overoptimization in RLHF, NeurIPS 2024,
  algorithm 1, https://arxiv.org/abs/2405.16436.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("pessimism", pessimism, "[0, inf)")
  check_arrays(
    rewards=(rewards, "[X, Y]"),
    reference_log_probs=(reference_log_probs, "[X, Y]"),
    baseline_probs=(baseline_probs, "[X, Y]"),
    prompt_probs=(prompt_probs, "[X]"),
    comparisons=(comparisons, "int [n, 3]"),
  )
  if is_known(comparisons):
    comparisons = np.asarray(comparisons)
  at, chosen, rejected = (
    as_classes(f"{what} of comparisons", comparisons[:, i], np.shape(rewards)[i > 0])
    for i, what in enumerate(("prompts", "chosen responses", "rejected responses"))
  )
  rewards, reference, baseline, prompts = as_accumulator(
    rewards, reference_log_probs, baseline_probs, prompt_probs
  )
  of_best = beta * jax.nn.logsumexp(reference + rewards / beta, axis=-1)
  of_baseline = jnp.sum(weighted(baseline, rewards), axis=-1)
  gain = jnp.sum(weighted(prompts, of_best - of_baseline))
  compared = (
    rewards.at[at, side].get(mode="fill", fill_value=jnp.nan) for side in (chosen, rejected)
  )
  misfit = jnp.sum(bradley_terry_loss(*compared)) / max(len(comparisons), 1)
  return weighted(pessimism, gain) + misfit
