"""Normal distributions as predictions."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


def gaussian_kl(
  mean_p: chex.Array, variance_p: chex.Array, mean_q: chex.Array, variance_q: chex.Array
) -> jax.Array:
  """Divergence between two normal distributions, `KL(p || q)`.

  Args:
    mean_p: means of p, `[...]`.
    variance_p: variances of p, positive, `[...]`.
    mean_q: means of q, `[...]`.
    variance_q: variances of q, positive, `[...]`.

  Returns:
    Nats, at least 0, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known variance is not positive.
  """
  check_arrays(
    mean_p=(mean_p, "[...]"),
    variance_p=(variance_p, "[...]"),
    mean_q=(mean_q, "[...]"),
    variance_q=(variance_q, "[...]"),
  )
  check_range("variance_p", variance_p, "(0, inf)")
  check_range("variance_q", variance_q, "(0, inf)")
  mean_p, variance_p, mean_q, variance_q = as_accumulator(mean_p, variance_p, mean_q, variance_q)
  excess = (variance_p - variance_q) / variance_q
  # Each form of the logarithm keeps its digits where the other has none.
  near = jnp.abs(excess) < 0.5
  log_near = jnp.log1p(jnp.where(near, excess, 0.0))
  log_ratio = jnp.where(near, log_near, jnp.log(variance_p) - jnp.log(variance_q))
  shift = jnp.square(mean_p - mean_q) / variance_q
  return 0.5 * (jnp.maximum(excess - log_ratio, 0.0) + shift)
