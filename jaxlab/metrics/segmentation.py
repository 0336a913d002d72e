"""Intersection over union of segmentations, by image and by class."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least


class IntersectionAndUnion(NamedTuple):
  """Pixel counts of each class in each image.

  Attributes:
    intersection: pixels of the class that are predicted as it, i32 `[n, num_classes]`.
    union: pixels that are of the class or predicted as it, i32 `[n, num_classes]`.
  """

  intersection: chex.Array
  union: chex.Array


class MeanIoU(NamedTuple):
  """Intersection over union.

  Attributes:
    mean: mean over the classes that occur; 0 if none does.
    per_class: value of each class, 0 for classes that do not occur, `[num_classes]`.
  """

  mean: chex.Array
  per_class: chex.Array


def intersection_and_union(
  predictions: chex.Array, targets: chex.Array, *, num_classes: int, ignore: int = 255
) -> IntersectionAndUnion:
  """Counts the pixels of each class that are in both prediction and target, or in either.

  Counts of several images can be added before the division.

  Args:
    predictions: predicted classes, int `[n, h, w]`.
    targets: true classes, int `[n, h, w]`.
    num_classes: number of classes; other values match no class.
    ignore: target value of pixels that are left out.

  Returns:
    An `IntersectionAndUnion`.

  Raises:
    ValueError: if `num_classes` < 1.

  Reference: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(predictions=(predictions, "int [n, h, w]"), targets=(targets, "int [n, h, w]"))
  predictions, targets = (jnp.asarray(x).astype(jnp.int32) for x in (predictions, targets))
  return _counts(predictions, targets, jnp.int32(ignore), num_classes=num_classes)


# One program: its comparisons with every class are added where they are made, and never stored.
@functools.partial(jax.jit, static_argnames="num_classes")
def _counts(predictions, targets, ignore, *, num_classes):
  counts = (targets != ignore)[..., None]
  classes = jnp.arange(num_classes).reshape(1, 1, 1, -1)
  predicted = (predictions[..., None] == classes) & counts
  true = (targets[..., None] == classes) & counts
  return IntersectionAndUnion(
    intersection=jnp.sum(predicted & true, axis=(1, 2), dtype=jnp.int32),
    union=jnp.sum(predicted | true, axis=(1, 2), dtype=jnp.int32),
  )


def mean_iou_by_class(
  intersection: chex.Array, union: chex.Array, class_ids: chex.Array, *, num_classes: int
) -> MeanIoU:
  """Mean IoU of episodes of one class each: counts are summed over a class's episodes first.

  Args:
    intersection: intersection of each episode's foreground, in pixels, int `[e]`.
    union: union of each episode's foreground, in pixels, int `[e]`.
    class_ids: class of each episode, int `[e]`; episodes outside 0..`num_classes`-1 are left out.
    num_classes: number of classes.

  Returns:
    A `MeanIoU`; classes without an episode or with an empty union are left out of the mean.

  Raises:
    ValueError: if `num_classes` < 1.

  Reference: Boudiaf et al., Few-Shot Segmentation Without Meta-Learning, CVPR 2021, section 4,
  https://arxiv.org/abs/2012.06166.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(
    intersection=(intersection, "int [e]"),
    union=(union, "int [e]"),
    class_ids=(class_ids, "int [e]"),
  )
  intersection, union, class_ids = (
    jnp.asarray(x).astype(jnp.int32) for x in (intersection, union, class_ids)
  )
  member = class_ids[:, None] == jnp.arange(num_classes)[None]

  def by_class(counts):
    # float32 is exact only up to 2^24, and int32 ends at 2^31: the last 12 bits are added apart.
    parts = counts >> 12, counts & 0xFFF
    high, low = (jnp.sum(jnp.where(member, part[:, None], 0), axis=0) for part in parts)
    return as_accumulator(high + (low >> 12)) * 2**12 + (low & 0xFFF)

  intersection, union = by_class(intersection), by_class(union)
  seen = union > 0
  per_class = jnp.where(seen, intersection / jnp.where(seen, union, 1.0), 0.0)
  return MeanIoU(jnp.sum(per_class) / jnp.maximum(jnp.sum(seen), 1), per_class)
