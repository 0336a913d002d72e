"""How well scores rank positives above negatives."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_flags, check_arrays


def auroc(scores: chex.Array, labels: chex.Array) -> jax.Array:
  """Area under the receiver operating characteristic, exact with ties.

  The probability that a random positive has a higher score than a random negative, with ties
  counted as one half. It measures how well a score separates two groups, at any threshold.

  Args:
    scores: real scores, higher for positives, `[n]`.
    labels: 1 (or True) for positives and 0 for negatives, `[n]`.

  Returns:
    A scalar in [0, 1], float32; NaN if one of the groups is empty, a score is NaN, or a label of a
    JAX array is neither 0 nor 1.

  Raises:
    ValueError: if a known label is neither 0 nor 1.

  Reference: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 2006, section 7,
  https://doi.org/10.1016/j.patrec.2005.10.010.
  """
  check_arrays(scores=(scores, "[n]"), labels=(labels, "[n]"))
  positive, labeled = as_flags("labels", labels)
  scores = jnp.asarray(scores)
  num = scores.shape[0]
  if num == 0:
    return jnp.array(jnp.nan, jnp.float32)
  valid = jnp.all(~jnp.isnan(scores) & labeled)
  order = jnp.argsort(scores)
  ranked, positive = scores[order], positive[order]
  # Negatives before each position, as integers: sums of ranks have more digits than float32.
  negatives = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(~positive, dtype=jnp.int32)])
  steps = jnp.arange(num)
  new = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
  first = jax.lax.cummax(jnp.where(new, steps, 0))
  last = jax.lax.cummin(jnp.where(jnp.roll(new, -1), steps, num), reverse=True)
  below, upto = negatives[first], negatives[last + 1]
  num_negative = negatives[-1]
  beaten = (below.astype(jnp.float32) + upto) / (2 * jnp.maximum(num_negative, 1))
  num_positive = num - num_negative
  area = jnp.sum(jnp.where(positive, beaten, 0.0)) / jnp.maximum(num_positive, 1)
  defined = (num_positive > 0) & (num_negative > 0) & valid
  return jnp.where(defined, area, jnp.nan)
