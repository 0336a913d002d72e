"""Exponential moving averages of parameters."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


def ema_update(
  average: chex.ArrayTree, params: chex.ArrayTree, *, decay: chex.Numeric = 0.999
) -> chex.ArrayTree:
  """Moves an average one step toward parameters: `decay * average + (1 - decay) * params`.

  The average of a training trajectory is less noisy than its last point. It serves as a mean
  teacher or as the weights for evaluation.

  Args:
    average: pytree of arrays.
    params: pytree of the same structure and shapes.
    decay: share of the old average, in [0, 1].

  Returns:
    The new average, in the dtypes of the old one. Leaves that are not floating (counters) are
    copied from `params`.

  Raises:
    ValueError: if `decay` lies outside [0, 1], or structures or shapes differ.

  Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017,
  https://arxiv.org/abs/1703.01780.
  """
  check_range("decay", decay, "[0, 1]")

  def move(old, new):
    old, new = jnp.asarray(old), jnp.asarray(new)
    check_arrays(average=(old, "[...]"), params=(new, "[...]"))
    if not jnp.issubdtype(old.dtype, jnp.inexact):
      return new.astype(old.dtype)
    wide_old, wide_new = as_accumulator(old, new)
    return (decay * wide_old + (1 - decay) * wide_new).astype(old.dtype)

  return jax.tree.map(move, average, params)
