"""Metrics of how scores order examples."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_flags, check_arrays
from jaxlab.metrics.regression import pearson_correlation


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
  positive = positive[order]
  # Negatives before each position, as integers: sums of ranks have more digits than float32.
  negatives = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(~positive, dtype=jnp.int32)])
  first, last = _ties(scores[order])
  below, upto = negatives[first], negatives[last + 1]
  num_negative = negatives[-1]
  beaten = (below.astype(jnp.float32) + upto) / (2 * jnp.maximum(num_negative, 1))
  num_positive = num - num_negative
  area = jnp.sum(jnp.where(positive, beaten, 0.0)) / jnp.maximum(num_positive, 1)
  defined = (num_positive > 0) & (num_negative > 0) & valid
  return jnp.where(defined, area, jnp.nan)


def _ties(ranked: jax.Array) -> tuple[jax.Array, jax.Array]:
  """First and last place of the entries that are equal to each entry of a sorted array."""
  num = ranked.shape[0]
  steps = jnp.arange(num)
  new = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
  first = jax.lax.cummax(jnp.where(new, steps, 0))
  last = jax.lax.cummin(jnp.where(jnp.roll(new, -1), steps, num), reverse=True)
  return first, last


def average_ranks(x: chex.Array) -> jax.Array:
  """Ranks of numbers from the smallest, 1, to the largest; equal ones share their mean rank.

  Args:
    x: `[n]`.

  Returns:
    Ranks, float32 or wider `[n]`; NaN for NaN, which counts as larger than all others.

  Reference: Spearman, The Proof and Measurement of Association between Two Things, 1904,
  https://doi.org/10.2307/1412159.
  """
  check_arrays(x=(x, "[n]"))
  x = as_accumulator(x)
  if x.shape[0] == 0:
    return x
  order = jnp.argsort(x)
  first, last = _ties(x[order])
  ranks = jnp.zeros_like(x).at[order].set((first + last).astype(x.dtype) / 2 + 1)
  return jnp.where(jnp.isnan(x), jnp.nan, ranks)


def spearman_correlation(a: chex.Array, b: chex.Array) -> jax.Array:
  """Correlation of the ranks of two lists of numbers: 1 if they are in the same order.

  Args:
    a: `[n]`, n >= 1.
    b: `[n]`.

  Returns:
    Scalar in [-1, 1], float32 or wider; 0 if all numbers of a list are equal, NaN if one is NaN.

  Raises:
    ValueError: if the lists are empty or of different lengths.

  Reference: Spearman, The Proof and Measurement of Association between Two Things, 1904,
  https://doi.org/10.2307/1412159.
  """
  check_arrays(a=(a, "[n]"), b=(b, "[n]"))
  return pearson_correlation(average_ranks(a), average_ranks(b))
