"""How good importance weights are."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator


def effective_sample_size(log_w: chex.Array, *, axis: int = -1) -> jax.Array:
  """Number of equally weighted draws that would be worth as much: 1 over the sum of squares.

  Args:
    log_w: logarithms of importance weights, normalized or not, `[...]`.
    axis: that of the draws.

  Returns:
    A number between 1 and the number of draws, float32 or wider, `[...]` without the axis.

  Reference: Kong, A Note on Importance Sampling Using Standardized Weights, 1992.
  """
  log_w = as_accumulator(log_w)
  total, squares = (jax.nn.logsumexp(power * log_w, axis=axis) for power in (1, 2))
  return jnp.exp(2 * total - squares)
