"""Thresholds that split values into two groups."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_flags, check_arrays, check_at_least, check_filled

_MAX_INT = np.iinfo(np.int32).max


def otsu_threshold(
  values: chex.Array, *, num_bins: int = 256, mask: chex.Array | None = None
) -> jax.Array:
  """Otsu's threshold: splits values so that the two means are as far apart as they can be.

  Args:
    values: `[n]`.
    num_bins: equal bins between the smallest and the largest value, at least 2.
    mask: which values count, bool `[n]`; None for all.

  Returns:
    The center of the first bin that maximizes `between_class_variance`, a scalar in float32 or
    wider; the value if all are equal, and NaN if none counts or one is not finite.

  Raises:
    ValueError: if `num_bins` < 2 or `values` is empty.

  Reference: Otsu, A Threshold Selection Method from Gray-Level Histograms, IEEE Transactions on
  Systems, Man, and Cybernetics 1979.
  """
  variance, low, width = _between(values, num_bins, mask)
  center = jnp.argmax(variance) + 0.5
  return jnp.where(width == 0, low, low + center * width)


def between_class_variance(values: chex.Array, *, num_bins: int = 256) -> jax.Array:
  """How well each edge between two bins splits values into two groups.

  Args:
    values: `[n]`.
    num_bins: equal bins between the smallest and the largest value, at least 2.

  Returns:
    Size times size times squared distance of the means of the two groups, for the edge behind each
    bin but the last, `[num_bins - 1]`, in float32 or wider; 0 if all values are equal.

  Raises:
    ValueError: if `num_bins` < 2 or `values` is empty.

  Reference: Otsu, 1979.
  """
  variance, _, width = _between(values, num_bins, None)
  return variance * jnp.square(width)


def _between(values, num_bins: int, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The criterion in units of a bin's width, the lowest value, and the width."""
  check_at_least(2, num_bins=num_bins)
  check_arrays(values=(values, "[n]"), mask=(mask, "[n]"))
  check_filled(values=values)
  values = as_accumulator(values)
  counted = jnp.ones(values.shape, bool) if mask is None else as_flags("mask", mask)[0]
  low = jnp.min(jnp.where(counted, values, jnp.inf))
  high = jnp.max(jnp.where(counted, values, -jnp.inf))
  low = jnp.where(jnp.isfinite(high - low), low, jnp.nan)
  spread = jnp.where(high > low, high - low, 1.0)
  bins = jnp.floor((values - low) / spread * num_bins)
  bins = jnp.clip(jnp.where(counted, bins, 0), 0, num_bins - 1).astype(jnp.int32)
  counts = jax.ops.segment_sum(counted.astype(jnp.int32), bins, num_bins)
  # Exact in integers: the criterion is the same at all edges between two groups, and the first
  # must win. Only sums of very many values need floats.
  kind = jnp.int32 if values.shape[0] * num_bins < _MAX_INT else values.dtype
  sums = jnp.cumsum(counts.astype(kind) * jnp.arange(num_bins).astype(kind))
  below = jnp.cumsum(counts)
  above, rest = below[-1] - below, sums[-1] - sums
  below, above, sums, rest = (x[:-1].astype(values.dtype) for x in (below, above, sums, rest))
  distance = sums / jnp.maximum(below, 1) - rest / jnp.maximum(above, 1)
  variance = below * above * jnp.square(distance)
  width = jnp.where(high > low, spread / num_bins, jnp.where(high == low, 0.0, jnp.nan))
  return variance, low, width
