"""How well rewards agree with preferences."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


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
