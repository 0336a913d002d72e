"""Reward models from ratings of attributes and from preferences of known strength."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range, weighted
from jaxlab.losses.ranking import bradley_terry_loss


def scaled_bradley_terry_loss(
  chosen_rewards: chex.Array, rejected_rewards: chex.Array, magnitude: chex.Array
) -> jax.Array:
  """Negative log-likelihood of a preference, times its strength.

  A strength of 3 counts as three pairs. The mean strength of a batch is not divided out.

  Args:
    chosen_rewards: rewards of the chosen responses, `[...]`.
    rejected_rewards: rewards of the rejected ones, `[...]`.
    magnitude: strength of each preference, usually 1, 2 or 3, `[...]`; at least 0 (traced values
      below count as 0).

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known magnitude is negative.

  Reference: Wang et al., HelpSteer2-Preference, ICLR 2025,
  https://arxiv.org/abs/2410.01257; its regular and margin losses are `bradley_terry_loss`.
  """
  check_arrays(
    chosen_rewards=(chosen_rewards, "[...]"),
    rejected_rewards=(rejected_rewards, "[...]"),
    magnitude=(magnitude, "[...]"),
  )
  check_range("magnitude", magnitude, "[0, inf)")
  strength = jnp.maximum(as_accumulator(magnitude), 0.0)
  return weighted(strength, bradley_terry_loss(chosen_rewards, rejected_rewards))


def attribute_regression_loss(
  predictions: chex.Array,
  targets: chex.Array,
  *,
  mask: chex.Array | None = None,
  weights: chex.Array | None = None,
) -> jax.Array:
  """Squared error of rated attributes, a mean over those that have a rating.

  Args:
    predictions: predicted ratings, `[..., a]`.
    targets: ratings, `[..., a]`; where there is none anything, NaN too.
    mask: which attributes have a rating, bool or 0 and 1, `[..., a]`; None for all.
    weights: weight of each attribute, at least 0, `[a]`; None for 1. They do not change the
      divisor.

  Returns:
    Loss per response, `[...]`, in float32 or wider; 0 without a rating.

  Raises:
    ValueError: if a known weight is negative.

  Reference: Wang et al., HelpSteer2-Preference, ICLR 2025,
  https://arxiv.org/abs/2410.01257.
  """
  check_arrays(
    predictions=(predictions, "[..., a]"),
    targets=(targets, "[..., a]"),
    mask=(mask, "[..., a]"),
    weights=(weights, "[a]"),
  )
  predictions, targets = as_accumulator(predictions, targets)
  rated = jnp.ones_like(predictions, bool) if mask is None else jnp.asarray(mask).astype(bool)
  errors = jnp.square(jnp.where(rated, predictions - targets, 0.0))
  if weights is not None:
    check_range("weights", weights, "[0, inf)")
    errors = weighted(_along_last(weights, errors), errors)
  return jnp.sum(errors, axis=-1) / jnp.maximum(jnp.sum(rated, axis=-1), 1)


def weighted_reward(attributes: chex.Array, weights: chex.Array) -> jax.Array:
  """One reward of several attributes: their weighted sum.

  Args:
    attributes: predicted or given ratings, `[..., a]`.
    weights: weight of each, of either sign, `[a]`; an attribute of weight 0 may be infinite.

  Returns:
    Rewards, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known weight is not finite.

  Reference: Wang et al., HelpSteer2, NeurIPS 2024, https://arxiv.org/abs/2406.08673.
  """
  check_arrays(attributes=(attributes, "[..., a]"), weights=(weights, "[a]"))
  check_range("weights", weights, "(-inf, inf)")
  attributes = as_accumulator(attributes)
  return jnp.sum(weighted(_along_last(weights, attributes), attributes), axis=-1)


def _along_last(weights: chex.Array, values: jax.Array) -> jax.Array:
  """The weights with the leading axes of the values."""
  return jnp.broadcast_to(as_accumulator(weights), values.shape)
