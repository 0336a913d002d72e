"""Augmentation and smoothing of standardized signals `[b, T, c]`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_range

_BLUR_RADIUS = 6
_MAX_SHIFT = 2


def jitter_signals(key: chex.PRNGKey, signals: chex.Array) -> jax.Array:
  """Perturbs each signal without changing its class: gain, shift, offset, noise, sometimes blur.

  The one-dimensional counterpart of the color jitter, small affine maps, blur and noise used in
  test-time adaptation of image classifiers: y = g x(shifted by s) + o + .05 noise with
  g ~ U(.7, 1.3), s ~ U{-2..2} (edge values are repeated), o ~ U(-.2, .2), then with probability 1/2
  a Gaussian blur of standard deviation U(.001, .5). All draws are per row.

  Args:
    key: random key.
    signals: standardized signals, `[b, T, c]`.

  Returns:
    The perturbed signals, in the shape and dtype of `signals`.

  Reference: Döbler et al., Robust Mean Teacher, CVPR 2023, section 3.3,
  https://arxiv.org/abs/2211.13081.
  """
  check_arrays(signals=(signals, "float [b, T, c]"))
  signals = jnp.asarray(signals)
  rows, length, _ = signals.shape
  wide = as_accumulator(signals)
  uniform_key, noise_key = jax.random.split(key)
  # One draw for all that differs by row: it compiles and runs faster than five.
  uniform = jax.random.uniform(uniform_key, (5, rows, 1, 1), wide.dtype)
  gain, offset, std = 0.7 + 0.6 * uniform[0], 0.4 * uniform[1] - 0.2, 0.001 + 0.499 * uniform[2]
  shift = jnp.floor((2 * _MAX_SHIFT + 1) * uniform[3]).astype(jnp.int32) - _MAX_SHIFT
  index = jnp.clip(jnp.arange(length)[None, :, None] - shift, 0, length - 1)
  moved = jnp.take_along_axis(wide, index, axis=1)
  noise = 0.05 * jax.random.normal(noise_key, wide.shape, wide.dtype)
  noisy = gain * moved + offset + noise
  blurred = blur_signals(noisy, std[:, 0, 0])
  return jnp.where(uniform[4] < 0.5, blurred, noisy).astype(signals.dtype)


def blur_signals(signals: chex.Array, std: chex.Numeric) -> jax.Array:
  """Smooths signals by a Gaussian kernel of radius 6, normalized, with edge padding.

  Args:
    signals: `[b, T, c]`.
    std: standard deviation of the kernel in samples, a scalar or one per row, `[b]`.

  Returns:
    The smoothed signals, in the shape and dtype of `signals`.

  Raises:
    ValueError: if `std` is not positive.
  """
  check_range("std", std, "(0, inf)")
  check_arrays(signals=(signals, "float [b, T, c]"), std=(std if np.ndim(std) else None, "[b]"))
  signals = jnp.asarray(signals)
  wide = as_accumulator(signals)
  rows, length, _ = signals.shape
  std = jnp.broadcast_to(jnp.asarray(std, wide.dtype), (rows,))[:, None]
  offsets = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  kernel = jnp.exp(-jnp.square(offsets[None] / std) / 2)
  kernel = kernel / kernel.sum(-1, keepdims=True)
  padded = jnp.pad(wide, ((0, 0), (_BLUR_RADIUS, _BLUR_RADIUS), (0, 0)), mode="edge")
  blurred = sum(kernel[:, i, None, None] * padded[:, i : i + length] for i in range(offsets.size))
  return blurred.astype(signals.dtype)
