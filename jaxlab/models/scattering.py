"""Scattering features of series: two levels of fixed wavelet-like kernels, four numbers a level."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
  is_known,
)
from jaxlab._programs import map_over_rows, varying_carry

_TAPS = 9
_KERNELS = np.full((84, _TAPS), -1, np.int8)
for _row, _ends in zip(_KERNELS[::-1], itertools.combinations(range(_TAPS), 3)):
  _row[list(_ends)] = 2  # Combinations come in the opposite order.


def base_kernels(indices: chex.Array) -> jax.Array:
  """The kernels of nine taps, six of which are -1 and three 2.

  Args:
    indices: numbers of kernels in the lexicographic order of their taps, int `[...]`, in [0, 84);
      traced ones outside are clipped.

  Returns:
    Taps, f32 `[..., 9]`, whose sum is 0.

  Raises:
    ValueError: if a known index lies outside [0, 84).
    TypeError: if the indices are no integers.

  Reference: Dempster et al., MiniRocket, KDD 2021, https://arxiv.org/abs/2012.08791.
  """
  check_arrays(indices=(indices, "int [...]"))
  check_range("indices", indices, f"[0, {len(_KERNELS)})")
  indices = jnp.asarray(indices).astype(jnp.int32)
  return jnp.asarray(_KERNELS, jnp.float32).at[indices].get(mode="clip")


def scattering_kernels(*, num_channels: int, max_dilation_log2: int = 5) -> np.ndarray:
  """All triples of a channel, a kernel and a dilation.

  Args:
    num_channels: number C of channels.
    max_dilation_log2: largest exponent of a dilation 2^j.

  Returns:
    Channel, number of the kernel and exponent, i32 `[C * 84 * (max_dilation_log2 + 1), 3]`, in
    this lexicographic order.

  Raises:
    ValueError: if `num_channels` < 1 or `max_dilation_log2` < 0.

  Reference: as `scatter_features`.
  """
  check_at_least(1, num_channels=num_channels)
  check_at_least(0, max_dilation_log2=max_dilation_log2)
  sizes = (num_channels, len(_KERNELS), max_dilation_log2 + 1)
  return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=-1).astype(np.int32)


def scatter_features(
  series: chex.Array, kernels: chex.Array, *, max_dilation_log2: int = 5, num_levels: int = 2
) -> jax.Array:
  """Features of series under given kernels.

  Level 1 filters a channel by a dilated kernel, with zeros outside of the series, and scales by
  2^(-1.5 j). Level 2 filters every second absolute value of level 1 by the same kernel. A level has
  four features: the share of positive values, the largest absolute value, the longest stretch of
  positive values that a value at most 0 follows as a share of the length, and the smallest absolute
  value. The taps filter differences from the one in the middle, which is the same, as the taps sum
  to 0, and gives exact zeros where a series is constant.

  Args:
    series: `[b, C, T]`, T >= 2.
    kernels: channel, number of the kernel (`base_kernels`) and exponent of the dilation, int
      `[n, 3]`; traced ones outside of their ranges are clipped.
    max_dilation_log2: largest exponent.
    num_levels: 1 or 2; one level takes less than two thirds of the time.

  Returns:
    Features, float32 or wider, `[b, n, 4 * num_levels]`, level 1 first. NaN in a channel makes all
    features of its kernels NaN.

  Raises:
    ValueError: if T < 2, `max_dilation_log2` < 0, `num_levels` is neither 1 nor 2, or a known
      channel, kernel or exponent lies outside of its range.

  Reference: Leontiou et al., LightWaveS, DCOSS 2022, https://arxiv.org/abs/2204.01379.
  """
  _check_series(series, max_dilation_log2)
  check_choice("num_levels", num_levels, (1, 2))
  check_arrays(kernels=(kernels, "int [n, 3]"))
  limits = (jnp.shape(series)[1], len(_KERNELS), max_dilation_log2 + 1)
  if is_known(kernels):
    for i, name in enumerate(("channels", "indices", "exponents")):
      check_range(f"{name} of kernels", np.asarray(kernels)[:, i], f"[0, {limits[i]})")
  kernels = jnp.clip(jnp.asarray(kernels).astype(jnp.int32), 0, jnp.array(limits)[None] - 1)
  return _scatter(as_accumulator(series), kernels, max_dilation_log2, num_levels)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _scatter(series, kernels, max_dilation_log2, num_levels):
  # Series are neighbors in memory, so that every operation is one on vectors of them.
  padded, reach = _padded(series.transpose(2, 1, 0), max_dilation_log2)

  def of_kernel(kernel):
    channel, index, exponent = kernel
    weights = base_kernels(index)
    values = _filtered(padded[:, channel], weights[:, None, None], exponent, reach)
    features = _summaries(values)
    if num_levels == 2:
      deeper = _padded(_every_second(values), max_dilation_log2)
      features += _summaries(_filtered(deeper[0], weights[:, None, None], exponent, deeper[1]))
    return jnp.stack(features)

  return jax.lax.map(of_kernel, kernels).transpose(2, 0, 1)


def scatter_all_features(series: chex.Array, *, max_dilation_log2: int = 5) -> jax.Array:
  """Features of series under all kernels, for what is selected from.

  Args:
    series: `[b, C, T]`, T >= 2.
    max_dilation_log2: largest exponent of a dilation.

  Returns:
    What `scatter_features` gives for `scattering_kernels`, up to rounding, at a fraction of its
    cost: `[b, C * 84 * (max_dilation_log2 + 1), 8]`.

  Raises:
    ValueError: if T < 2 or `max_dilation_log2` < 0.

  Reference: as `scatter_features`.
  """
  _check_series(series, max_dilation_log2)
  return _scatter_all(as_accumulator(series), max_dilation_log2)


@functools.partial(jax.jit, static_argnums=1)
def _scatter_all(series, max_dilation_log2):
  batch, channels, length = series.shape
  weights = jnp.asarray(_KERNELS.T, series.dtype)[:, None, None]
  exponents = jnp.arange(max_dilation_log2 + 1)

  def of_rows(rows):
    padded, reach = _padded(rows.T[:, :, None], max_dilation_log2)

    def of_exponent(exponent):
      values = _filtered(padded, weights, exponent, reach)
      deeper = _padded(_every_second(values), max_dilation_log2)
      deeper = _filtered(deeper[0], weights, exponent, deeper[1])
      return jnp.stack(_summaries(values) + _summaries(deeper))

    return jax.lax.map(of_exponent, exponents).transpose(2, 3, 0, 1)

  rows = series.reshape(batch * channels, length)
  features = map_over_rows(of_rows, rows, width=length * len(_KERNELS))
  return features.reshape(batch, -1, features.shape[-1])


def _check_series(series: chex.Array, max_dilation_log2: int) -> None:
  check_at_least(0, max_dilation_log2=max_dilation_log2)
  check_arrays(series=(series, "float [b, C, T]"))
  check_at_least(2, **{"the number T of steps of series": jnp.shape(series)[2]})


def _padded(values: jax.Array, largest: int) -> tuple[jax.Array, int]:
  """Values `[T, ...]` with zeros before and after, and how many of them."""
  # What is further away than the series is long lies outside.
  reach = min(_TAPS // 2 << largest, values.shape[0])
  return jnp.pad(values, [(reach, reach)] + [(0, 0)] * (values.ndim - 1)), reach


def _filtered(padded: jax.Array, weights: jax.Array, exponent: jax.Array, reach: int) -> jax.Array:
  """One level: padded values under kernels `[9, 1, ...]`, which broadcast with them."""
  length = padded.shape[0] - 2 * reach
  shifts = (jnp.arange(_TAPS) - _TAPS // 2) << exponent
  starts = jnp.clip(shifts, -reach, reach) + reach
  values = padded[reach : reach + length]

  def add(total, taps):
    for weight, start in zip(*taps):
      total += weight * (jax.lax.dynamic_slice_in_dim(padded, start, length) - values)
    return total, None

  # A loop, for XLA would compute the sum again for everything that reads it.
  taps = weights.reshape(3, 3, *weights.shape[1:]), starts.reshape(3, 3)
  total = jnp.zeros(jnp.broadcast_shapes(values.shape, weights.shape[1:]), padded.dtype)
  total, _ = jax.lax.scan(add, varying_carry(add, total, taps), taps)
  return jnp.exp2(-1.5 * exponent).astype(total.dtype) * total


def _every_second(values: jax.Array) -> jax.Array:
  return jnp.abs(values[: values.shape[0] // 2 * 2 : 2])


def _summaries(values: jax.Array) -> list[jax.Array]:
  """The four features of a level `[T, ...]`, each `[...]`."""
  length = values.shape[0]
  sizes = jnp.abs(values)
  high, low = jnp.max(sizes, axis=0), jnp.min(sizes, axis=0)
  words = _packed(values > 0)
  count = jnp.sum(jax.lax.population_count(words), axis=0, dtype=jnp.int32)
  # Positive values and stretches know nothing of NaN.
  shares = [
    jnp.where(jnp.isnan(high), jnp.nan, x.astype(high.dtype) / length)
    for x in (count, _longest_closed_run(words, length))
  ]
  return [shares[0], high, shares[1], low]


def _packed(bits: jax.Array) -> jax.Array:
  """Booleans `[T, ...]` as words of 32, `[ceil(T / 32), ...]`: all that follows is of words."""
  num_words = -(-bits.shape[0] // 32)
  widths = [(0, 32 * num_words - bits.shape[0])] + [(0, 0)] * (bits.ndim - 1)
  bits = jnp.pad(bits, widths).reshape(num_words, 32, *bits.shape[1:])
  places = jnp.arange(32, dtype=jnp.uint32).reshape(1, 32, *[1] * (bits.ndim - 2))
  return jnp.sum(jnp.where(bits, jnp.uint32(1) << places, jnp.uint32(0)), axis=1, dtype=jnp.uint32)


def _longest_closed_run(words: jax.Array, length: int) -> jax.Array:
  """Length of the longest run of ones that a zero follows."""
  powers = [1 << i for i in range((length - 1).bit_length())]
  inside = _packed(jnp.ones((length,), bool)).reshape(-1, *[1] * (words.ndim - 1))
  # A place is closed if there is a zero at it or after it.
  closed = ~words & inside
  for size in powers:
    closed |= _later(closed, size)
  starts = {1: words & closed}  # Size -> where runs of at least that size start.
  for size in powers[:-1]:
    starts[2 * size] = starts[size] & _later(starts[size], size)
  # Binary digits of the length, the largest first.
  longest = jnp.zeros(words.shape[1:], jnp.int32)
  current = ~jnp.zeros_like(words)
  for size in reversed(powers):
    longer = starts[size] & _later(current, size)
    found = jnp.any(longer != 0, axis=0)
    longest += jnp.where(found, size, 0)
    current = jnp.where(found[None], longer, current)
  return longest


def _later(words: jax.Array, steps: int) -> jax.Array:
  """At every place of packed booleans the one so many steps later, 0 after the end."""
  whole, rest = divmod(steps, 32)

  def dropped(num):
    return jnp.concatenate([words[num:], jnp.zeros_like(words[:num])])

  if not rest:
    return dropped(whole)
  return (dropped(whole) >> np.uint32(rest)) | (dropped(whole + 1) << np.uint32(32 - rest))
