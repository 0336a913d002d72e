"""Scenes of several digits on a canvas, of which an annotator names one."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_pair,
  is_known,
)
from jaxlab._programs import compiled_once

_NUM_CLASSES, _NUM_CELLS = 10, 4


class CanvasBatch(NamedTuple):
  """Scenes and what is in them.

  Attributes:
    images: the digits on 0, float32 `[b, size, size, 1]`.
    label_maps: class of the object in whose square a pixel's center lies, int32 `[b, size, size]`;
      -1 for the background.
    single_label: class of the largest object, int32 `[b]`.
    label_sets: classes of all objects, bool `[b, 10]`.
  """

  images: chex.Array
  label_maps: chex.Array
  single_label: chex.Array
  label_sets: chex.Array


def sample_canvas(
  key: chex.PRNGKey,
  digits: chex.Array,
  labels: chex.Array,
  *,
  batch_size: int,
  size: int = 28,
  num_objects: int = 3,
  scale: Sequence[chex.Numeric] = (1.0, 1.6),
) -> CanvasBatch:
  """Draws scenes of digits that do not overlap.

  The objects of a scene are drawn uniformly, with replacement, and lie in different quarters of the
  canvas, each at a uniform position inside its quarter.

  Args:
    key: random key.
    digits: images of single digits, `[m, s, s]`, such as scikit-learn's of 8 by 8 pixels.
    labels: their classes, int `[m]`, in [0, 10).
    batch_size: number b of scenes.
    size: side of the canvas, in pixels.
    num_objects: objects of a scene, 1 to 4.
    scale: smallest and largest magnification, which is drawn uniformly; a magnified digit must fit
      into a quarter.

  Returns:
    A `CanvasBatch`; digits are interpolated bilinearly. The single label is that of the largest
    magnification, so it does not depend on how much ink a class takes. An object whose traced label
    lies outside the classes gets no label.

  Raises:
    ValueError: if `batch_size` or `size` < 1, `num_objects` lies outside 1 to 4, `scale` is not two
      positive numbers in order, its digits do not fit into a quarter, a known label lies outside
      [0, 10), or there are no digits.

  Reference: a small problem for Yun et al., Re-labeling ImageNet, CVPR 2021,
  https://arxiv.org/abs/2101.05022.
  """
  check_at_least(1, batch_size=batch_size, size=size)
  if not 1 <= num_objects <= _NUM_CELLS:
    raise ValueError(f"num_objects must lie in [1, {_NUM_CELLS}], got {num_objects}.")
  check_pair("scale", scale, "(0, inf)")
  check_arrays(digits=(digits, "[m, s, s]"), labels=(labels, "int [m]"))
  check_filled(digits=digits)
  digits = as_accumulator(digits)
  cell = size // 2
  if is_known(scale[1]) and scale[1] * digits.shape[1] > cell:
    raise ValueError(
      f"scale must make digits of {digits.shape[1]} pixels fit into {cell}, got {scale}."
    )
  return _scenes(
    key,
    digits,
    as_classes("labels", labels, _NUM_CLASSES).astype(jnp.int32),
    batch_size=batch_size,
    size=size,
    num_objects=num_objects,
    scale=tuple(scale),
  )


@compiled_once
def _scenes(key, digits, labels, *, batch_size, size, num_objects, scale) -> CanvasBatch:
  keys = jax.random.split(key, 4)
  objects = (batch_size, num_objects)
  chosen = jax.random.randint(keys[0], objects, 0, len(digits))
  zoom = jax.random.uniform(keys[1], objects, minval=scale[0], maxval=scale[1])
  cells = jax.vmap(lambda key: jax.random.permutation(key, _NUM_CELLS))(
    jax.random.split(keys[2], batch_size)
  )[:, :num_objects]
  side = zoom * digits.shape[1]
  corner = jnp.stack([cells // 2, cells % 2], axis=-1) * (size // 2)
  room = (size // 2 - side)[..., None]
  start = corner + room * jax.random.uniform(keys[3], (*objects, 2))

  def paint(digit, zoom, start):
    return jax.image.scale_and_translate(
      digit, (size, size), (0, 1), jnp.stack([zoom, zoom]), start, method="linear"
    )

  layers = jax.vmap(jax.vmap(paint))(digits[chosen], zoom, start)
  classes = labels[chosen]
  known = jnp.where(classes < _NUM_CLASSES, classes, -1)
  centers = jnp.arange(size) + 0.5
  offset = centers[None, None, None] - start[..., None]
  inside = (offset >= 0) & (offset < side[..., None, None])
  inside = inside[:, :, 0, :, None] & inside[:, :, 1, None]
  # Squares are disjoint, so the largest of a pixel's classes is its only one.
  label_maps = jnp.max(jnp.where(inside, known[..., None, None], -1), axis=1)
  largest = jnp.argmax(side, axis=1)[:, None]
  return CanvasBatch(
    jnp.sum(layers, axis=1)[..., None],
    label_maps,
    jnp.take_along_axis(known, largest, axis=1)[:, 0],
    jnp.any(jax.nn.one_hot(known, _NUM_CLASSES, dtype=bool), axis=1),
  )
