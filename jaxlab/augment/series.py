"""Scaling of the channels of series `[b, C, T]`."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_filled, check_range


class ChannelStatistics(NamedTuple):
  """Mean and standard deviation of each channel, `[C]` each."""

  mean: chex.Array
  std: chex.Array


def channel_statistics(
  series: chex.Array, *, lengths: chex.Array | None = None
) -> ChannelStatistics:
  """Mean and standard deviation of each channel over all steps of all series.

  Args:
    series: `[b, C, T]`.
    lengths: number of steps of each series, int `[b]`, in [0, T]; later ones do not count. None for
      T.

  Returns:
    `ChannelStatistics` in float32 or wider; the variance is the mean squared deviation. Both are 0
    for a channel without a step, and a constant channel has deviation 0 exactly.

  Raises:
    ValueError: if there is no entry, shapes do not agree, or a known length lies outside [0, T].

  Reference: Leontiou et al., LightWaveS, DCOSS 2022, https://arxiv.org/abs/2204.01379.
  """
  series, counted = _read(series, lengths)
  check_filled(series=series)
  num_steps = jnp.sum(jnp.broadcast_to(counted, series.shape), axis=(0, 2))
  # Deviations from one entry, so that those of a constant are exactly 0.
  start = jnp.where(counted[0, 0, 0], series[0, :, 0], 0.0)
  total = jnp.sum(jnp.where(counted, series - _by_channel(start), 0.0), axis=(0, 2))
  mean = jnp.where(num_steps > 0, start, 0.0) + total / jnp.maximum(num_steps, 1)
  squares = jnp.where(counted, jnp.square(series - _by_channel(mean)), 0.0)
  return ChannelStatistics(
    mean, jnp.sqrt(jnp.sum(squares, axis=(0, 2)) / jnp.maximum(num_steps, 1))
  )


def standardize_channels(
  series: chex.Array,
  *,
  statistics: ChannelStatistics | None = None,
  lengths: chex.Array | None = None,
) -> jax.Array:
  """Subtracts the mean of each channel and divides by its standard deviation plus 1e-8.

  Args:
    series: `[b, C, T]`.
    statistics: those of the training series, for others; None for those of these series.
    lengths: number of steps of each series, int `[b]`, in [0, T]; later ones come out as 0. None
      for T.

  Returns:
    The standardized series in float32 or wider, `[b, C, T]`.

  Raises:
    ValueError: if shapes do not agree, or a known length lies outside [0, T].

  Reference: as `channel_statistics`.
  """
  if statistics is None:
    statistics = channel_statistics(series, lengths=lengths)
  mean, std = statistics
  series, counted = _read(series, lengths)
  form = f"[{series.shape[1]}]"
  check_arrays(**{"statistics.mean": (mean, form), "statistics.std": (std, form)})
  mean, std = map(_by_channel, as_accumulator(mean, std))
  return jnp.where(counted, (series - mean) / (std + 1e-8), 0.0)


def _read(series: chex.Array, lengths: chex.Array | None) -> tuple[jax.Array, jax.Array]:
  """The series, and which entries count, bool `[b, 1, T]` or `[1, 1, 1]`."""
  check_arrays(series=(series, "float [b, C, T]"), lengths=(lengths, "int [b]"))
  series = as_accumulator(series)
  if lengths is None:
    return series, jnp.ones((1, 1, 1), bool)
  check_range("lengths", lengths, f"[0, {series.shape[2]}]")
  return series, jnp.arange(series.shape[2])[None, None] < jnp.asarray(lengths)[:, None, None]


def _by_channel(values: jax.Array) -> jax.Array:
  return values[None, :, None]
