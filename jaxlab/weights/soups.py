"""Mixtures of networks in the space of their parameters."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


def interpolate(start: chex.ArrayTree, end: chex.ArrayTree, weight: chex.Numeric) -> chex.ArrayTree:
  """A point on the line through two networks: `(1 - weight) * start + weight * end`.

  Args:
    start: pytree of arrays, where the weight is 0.
    end: pytree of the same structure and shapes, where the weight is 1.
    weight: place on the line; outside [0, 1] it extrapolates.

  Returns:
    The parameters, in the dtypes of `start`. Leaves that are not floating (counters) are copied
    from it.

  Raises:
    ValueError: if `weight` is not finite, or structures or shapes differ.

  Reference: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022,
  https://arxiv.org/abs/2109.01903; beyond the end: Zheng et al., Weak-to-Strong Extrapolation
  Expedites Alignment, 2024, https://arxiv.org/abs/2404.16792.
  """
  check_range("weight", weight, "(-inf, inf)")

  def move(start, end):
    start, end = jnp.asarray(start), jnp.asarray(end)
    check_arrays(start=(start, "[...]"), end=(end, "[...]"))
    if not jnp.issubdtype(start.dtype, jnp.inexact):
      return start
    first, last = as_accumulator(start, end)
    return ((1 - weight) * first + weight * last).astype(start.dtype)

  return jax.tree.map(move, start, end)
