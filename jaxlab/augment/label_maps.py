"""Label maps: scores of the classes at every position of an image, and the label of a crop.

A random crop may show another object than the one that the image's label names. An annotator's map
is computed once for an image, and pooled over each crop::

    crop = augment.random_resized_crop(key, images, size=224)
    targets = augment.pool_label_map(label_maps, crop.boxes)

A mirror image of a crop has the same label, for pooling is a mean.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least


class SparseLabelMap(NamedTuple):
  """The largest scores at each position.

  Attributes:
    scores: the largest first, `[n, h, w, k]`.
    indices: their classes, int32 `[n, h, w, k]`.
  """

  scores: chex.Array
  indices: chex.Array


def classifier_label_map(features: chex.Array, kernel: chex.Array, bias: chex.Array) -> jax.Array:
  """A classifier's linear head at every position, in place of after the mean over positions.

  Args:
    features: what the network pools, `[n, h, w, d]`.
    kernel: weights of the head, `[d, k]`.
    bias: its bias, `[k]`.

  Returns:
    Scores of the classes, `[n, h, w, k]`, in float32 or wider. Their mean over positions is the
    score of the image.

  Reference: Yun et al., Re-labeling ImageNet, CVPR 2021, section 3.1,
  https://arxiv.org/abs/2101.05022.
  """
  check_arrays(features=(features, "[n, h, w, d]"), kernel=(kernel, "[d, k]"), bias=(bias, "[k]"))
  features, kernel, bias = as_accumulator(features, kernel, bias)
  scores = jnp.einsum("nhwd,dk->nhwk", features, kernel, precision="highest")
  return scores + bias[None, None, None]


def sparsify_label_map(label_maps: chex.Array, *, num_labels: int = 5) -> SparseLabelMap:
  """Keeps the largest scores at each position, so that maps of many classes can be stored.

  Args:
    label_maps: scores, `[n, h, w, k]`.
    num_labels: scores that are kept, in [1, k].

  Returns:
    A `SparseLabelMap`, in float32 or wider; on ties the lowest class comes first.

  Raises:
    ValueError: if `num_labels` lies outside [1, k].

  Reference: Yun et al., CVPR 2021, section 3.1, https://arxiv.org/abs/2101.05022.
  """
  check_arrays(label_maps=(label_maps, "[n, h, w, k]"))
  label_maps = as_accumulator(label_maps)
  if not 1 <= num_labels <= label_maps.shape[-1]:
    raise ValueError(f"num_labels must lie in [1, {label_maps.shape[-1]}], got {num_labels}.")
  # In the order of `top_k`, 0 comes before -0.
  ordered = jax.lax.stop_gradient(jnp.where(label_maps == 0, 0.0, label_maps))
  indices = jax.lax.top_k(ordered, num_labels)[1].astype(jnp.int32)
  return SparseLabelMap(jnp.take_along_axis(label_maps, indices, axis=-1), indices)


def dense_label_map(scores: chex.Array, indices: chex.Array, *, num_classes: int) -> jax.Array:
  """Scores of all classes from a `SparseLabelMap`, with 0 for those that were not kept.

  Args:
    scores: kept scores, `[n, h, w, k]`.
    indices: their classes, int `[n, h, w, k]`; scores of a repeated class are added.
    num_classes: number m of classes.

  Returns:
    Scores, `[n, h, w, m]`, in float32 or wider; NaN at a position with a traced class outside
    [0, m).

  Raises:
    ValueError: if `num_classes` < 1 or a known class lies outside [0, m).

  Reference: Yun et al., CVPR 2021, and the authors' code, https://arxiv.org/abs/2101.05022.
  """
  check_at_least(1, num_classes=num_classes)
  check_arrays(scores=(scores, "[n, h, w, k]"), indices=(indices, "int [n, h, w, k]"))
  scores = as_accumulator(scores)
  indices = as_classes("indices", indices, num_classes)
  shape = scores.shape[:-1]
  scores, indices = (x.reshape(-1, x.shape[-1]) for x in (scores, indices))
  places = jnp.arange(len(scores))[:, None]
  dense = jnp.zeros((len(scores), num_classes), scores.dtype).at[places, indices].add(scores)
  outside = jnp.any(indices >= num_classes, axis=-1, keepdims=True)
  return jnp.where(outside, jnp.nan, dense).reshape(*shape, num_classes)


def roi_align_mean(label_maps: chex.Array, boxes: chex.Array) -> jax.Array:
  """Mean of each map over a box, at points between which it is interpolated.

  RoIAlign to a single cell. The box is cut to the image, moved by half a pixel of the map to where
  the centers of pixels are whole numbers, and grown to at least one pixel, to the bottom and right.
  Of the box, ceil(height) by ceil(width) equally spaced points are read bilinearly; beyond the
  outermost centers the map goes on unchanged.

  Args:
    label_maps: scores, `[n, h, w, k]`.
    boxes: top, left, bottom and right as shares of the image's height and width, `[n, 4]`, such as
      those of `random_resized_crop`. A bottom above the top counts as a box of one pixel.

  Returns:
    Mean scores, `[n, k]`, in float32 or wider.

  Raises:
    ValueError: if shapes differ.

  Reference: He et al., Mask R-CNN, ICCV 2017, section 3, https://arxiv.org/abs/1703.06870; Yun et
  al., CVPR 2021, section 3.2, https://arxiv.org/abs/2101.05022. The authors' stored maps may have
  their axes exchanged: their code hands (row, column) to an operator of (x, y).
  """
  check_arrays(label_maps=(label_maps, "[n, h, w, k]"), boxes=(boxes, "[n, 4]"))
  label_maps, boxes = as_accumulator(label_maps, boxes)
  boxes = jnp.clip(boxes, 0.0, 1.0)
  rows = _shares(boxes[:, 0], boxes[:, 2], label_maps.shape[1])
  columns = _shares(boxes[:, 1], boxes[:, 3], label_maps.shape[2])
  # A bilinear mean over a grid of points is a weighted mean along one axis after the other.
  return jnp.einsum("nh,nw,nhwk->nk", rows, columns, label_maps, precision="highest")


def _shares(start: jax.Array, end: jax.Array, size: int) -> jax.Array:
  """Weight of each pixel of one axis in the mean over points of an interval, `[n, size]`."""
  first = start * size - 0.5
  extent = jnp.maximum(end * size - 0.5 - first, 1.0)
  num = jnp.ceil(extent)
  places = jnp.arange(size, dtype=start.dtype)
  points = first[:, None] + (places[None] + 0.5) * (extent / num)[:, None]
  points = jnp.clip(points, 0.0, size - 1.0)
  weights = jnp.maximum(1.0 - jnp.abs(points[:, :, None] - places[None, None]), 0.0)
  counted = jnp.where(places[None] < num[:, None], 1.0 / num[:, None], 0.0)
  return jnp.sum(counted[:, :, None] * weights, axis=1)


def pool_label_map(label_maps: chex.Array, boxes: chex.Array) -> jax.Array:
  """Soft label of each crop: the softmax of the map's mean over it.

  Args:
    label_maps: scores, `[n, h, w, k]`.
    boxes: as in `roi_align_mean`, `[n, 4]`; `[0, 0, 1, 1]` gives the label of the whole image.

  Returns:
    Probabilities, `[n, k]`, in float32 or wider.

  Raises:
    ValueError: as `roi_align_mean`.

  Reference: Yun et al., CVPR 2021, section 3.2, https://arxiv.org/abs/2101.05022.
  """
  return jax.nn.softmax(roi_align_mean(label_maps, boxes), axis=-1)


def pool_label_map_single(label_maps: chex.Array, boxes: chex.Array) -> jax.Array:
  """The most likely label of each crop alone: what `pool_label_map` would be with one object.

  Args:
    label_maps: scores, `[n, h, w, k]`.
    boxes: as in `roi_align_mean`, `[n, 4]`.

  Returns:
    One-hot labels, `[n, k]`, in float32 or wider; the lowest class on ties.

  Raises:
    ValueError: as `roi_align_mean`.

  Reference: Yun et al., CVPR 2021, section 4, https://arxiv.org/abs/2101.05022.
  """
  pooled = roi_align_mean(label_maps, boxes)
  onehot = jax.nn.one_hot(jnp.argmax(pooled, axis=-1), pooled.shape[-1], dtype=pooled.dtype)
  return jnp.where(jnp.any(jnp.isnan(pooled), axis=-1, keepdims=True), jnp.nan, onehot)
