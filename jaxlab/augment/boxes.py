"""Boxes and segments that are pasted from one example into another, and a saliency map."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, reaches

# Keeps the side of a box from falling below a whole number of pixels by rounding alone.
_ROUNDING = 1e-6
_SURROUND_RADII = (1, 2, 4)


class BoxMix(NamedTuple):
  """Images with pasted pixels.

  Attributes:
    images: the images, in their shape and dtype.
    ratio: share of its own pixels that each image keeps, float32 `[b]`.
  """

  images: chex.Array
  ratio: chex.Array


def box_mix(images: chex.Array, partners: chex.Array, masks: chex.Array) -> BoxMix:
  """Takes the partner's pixels where the mask is 1.

  Args:
    images: `[b, h, w, c]`, or signals `[b, t, c]`.
    partners: the same shape, such as `images[permutation]`.
    masks: 1 where the partner is pasted and 0 elsewhere, `[b, h, w]` or `[b, t]`.

  Returns:
    A `BoxMix`; its ratio is 1 minus the share of pasted pixels, NaN for a mask with NaN.

  Reference: Yun et al., CutMix, ICCV 2019, section 3, https://arxiv.org/abs/1905.04899.
  """
  check_arrays(
    images=(images, "[b, ..., c]"), partners=(partners, "[b, ..., c]"), masks=(masks, "[b, ...]")
  )
  images, partners, masks = jnp.asarray(images), jnp.asarray(partners), jnp.asarray(masks)
  taken = 1 - reaches(0.5, masks.astype(jnp.float32))
  counts = jnp.sum(taken, axis=tuple(range(1, taken.ndim)))
  mixed = jnp.where((taken == 1)[..., None], partners.astype(images.dtype), images)
  return BoxMix(mixed, 1.0 - counts / max(math.prod(taken.shape[1:]), 1))


def box_masks(centers: chex.Array, ratio: chex.Numeric, *, height: int, width: int) -> jax.Array:
  """Masks of boxes that leave about the share `ratio` of each image, clipped at the borders.

  Args:
    centers: row and column of each center, `[b, 2]`.
    ratio: share that is kept, `[b]` or a scalar, in [0, 1]; the sides are those of the image
      times sqrt(1 - ratio), rounded down to even numbers.
    height: height h of the images in pixels.
    width: width w.

  Returns:
    1 in the box and 0 elsewhere, float32 `[b, h, w]`; NaN for a traced ratio of NaN.

  Raises:
    ValueError: if a known ratio lies outside [0, 1], `height` < 1 or `width` < 1.

  Reference: Yun et al., CutMix, ICCV 2019, section 3.2, https://arxiv.org/abs/1905.04899.
  """
  check_at_least(1, height=height, width=width)
  check_arrays(centers=(centers, "[b, 2]"), ratio=(ratio if np.ndim(ratio) else None, "[b]"))
  centers = jnp.asarray(centers)
  scale = jnp.sqrt(1.0 - _row_ratios(ratio, centers.shape[0]))
  rows = _span(centers[:, 0], height * scale, height)
  columns = _span(centers[:, 1], width * scale, width)
  return rows[:, :, None] * columns[:, None, :]


def segment_masks(centers: chex.Array, ratio: chex.Numeric, *, length: int) -> jax.Array:
  """Masks of segments that leave about the share `ratio` of each signal, clipped at the ends.

  Args:
    centers: position of each center, `[b]`.
    ratio: share that is kept, `[b]` or a scalar, in [0, 1].
    length: length t of the signals.

  Returns:
    1 in the segment and 0 elsewhere, float32 `[b, t]`; NaN for a traced ratio of NaN.

  Raises:
    ValueError: if a known ratio lies outside [0, 1] or `length` < 1.

  Reference: Yun et al., CutMix, ICCV 2019, section 3.2, https://arxiv.org/abs/1905.04899.
  """
  check_at_least(1, length=length)
  check_arrays(centers=(centers, "[b]"), ratio=(ratio if np.ndim(ratio) else None, "[b]"))
  centers = jnp.asarray(centers)
  kept = _row_ratios(ratio, centers.shape[0])
  return _span(centers, length * (1.0 - kept), length)


def center_surround_saliency(images: chex.Array) -> jax.Array:
  """How much each pixel differs from its neighborhood, at three scales.

  Args:
    images: `[b, h, w, c]`.

  Returns:
    The mean over channels of the distances to the box means of sides 3, 5 and 9 (borders repeated
    outward), `[b, h, w]`, in float32 or wider.

  Reference: Montabone and Soto, Human detection using a mobile platform and novel features derived
  from a visual saliency mechanism, Image and Vision Computing 2010; the use for mixing is that of
  Uddin et al., SaliencyMix, ICLR 2021, https://arxiv.org/abs/2006.01791.
  """
  check_arrays(images=(images, "[b, h, w, c]"))
  images = as_accumulator(images)
  contrasts = (jnp.abs(images - _box_mean(images, radius)) for radius in _SURROUND_RADII)
  return jnp.mean(sum(contrasts), axis=-1)


def _row_ratios(ratio: chex.Numeric, batch_size: int) -> jax.Array:
  check_range("ratio", ratio, "[0, 1]")
  return jnp.broadcast_to(as_accumulator(ratio), (batch_size,))


def _span(centers: jax.Array, side: jax.Array, size: int) -> jax.Array:
  """1 where positions lie within half a side of each center, else 0, `[b, size]`."""
  half = jnp.floor(side + _ROUNDING).astype(jnp.int32)[:, None] // 2
  centers, positions = centers[:, None], jnp.arange(size)[None]
  inside = (positions >= centers - half) & (positions < centers + half)
  return jnp.where(jnp.isnan(side)[:, None], jnp.nan, inside.astype(jnp.float32))


def _box_mean(images: jax.Array, radius: int) -> jax.Array:
  side = 2 * radius + 1
  border = (radius, radius)
  sums = jnp.pad(images, ((0, 0), border, border, (0, 0)), mode="edge")
  for window in ((1, side, 1, 1), (1, 1, side, 1)):
    zero = np.zeros((), sums.dtype)  # One of JAX's could be traced, and has no derivative.
    sums = jax.lax.reduce_window(sums, zero, jax.lax.add, window, (1, 1, 1, 1), "VALID")
  return sums / side**2
