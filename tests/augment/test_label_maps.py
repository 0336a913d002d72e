import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment


def evaluated(function, *static):
  """The function as one program that gives NumPy arrays."""
  program = jax.jit(function, static_argnames=static)
  return lambda *args, **kwargs: jax.device_get(program(*args, **kwargs))


roi_align = evaluated(augment.roi_align_mean)
pool = evaluated(augment.pool_label_map)
pool_single = evaluated(augment.pool_label_map_single)
sparsify = evaluated(augment.sparsify_label_map, "num_labels")
densify = evaluated(augment.dense_label_map, "num_classes")

RNG = np.random.default_rng(0)
NUM, SIDE, CLASSES = 8, 4, 5
MAPS = RNG.normal(size=(NUM, SIDE, SIDE, CLASSES)).astype(np.float32)
CORNERS = np.sort(RNG.uniform(size=(NUM, 2, 2)), axis=1)
BOXES = CORNERS.reshape(NUM, 4).astype(np.float32)
# A point, a box upside down, a thin one at the border, and one beyond it.
BOXES[:4] = [[0.3, 0.6, 0.3, 0.6], [0.7, 0.1, 0.2, 0.9], [0.95, 0.0, 1, 1], [-0.5, 0.4, 0.7, 1.5]]


def bilinear(table, y, x):
  height, width = table.shape[:2]
  if not (-1 <= y <= height and -1 <= x <= width):
    raise AssertionError("a point outside, which would count 0")
  y, x = max(y, 0.0), max(x, 0.0)
  top, left = math.floor(y), math.floor(x)
  if top >= height - 1:
    top, y = height - 1, height - 1
  if left >= width - 1:
    left, x = width - 1, width - 1
  bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
  down, across = y - top, x - left
  return (
    (1 - down) * (1 - across) * table[top, left]
    + (1 - down) * across * table[top, right]
    + down * (1 - across) * table[bottom, left]
    + down * across * table[bottom, right]
  )


def slow_roi_align(table, box):
  height, width = table.shape[:2]
  y0, x0, y1, x1 = np.clip(np.float64(box), 0, 1)
  top, left = y0 * height - 0.5, x0 * width - 0.5
  tall = max(y1 * height - 0.5 - top, 1.0)
  wide = max(x1 * width - 0.5 - left, 1.0)
  rows, columns = math.ceil(tall), math.ceil(wide)
  points = [
    bilinear(table, top + (i + 0.5) * tall / rows, left + (j + 0.5) * wide / columns)
    for i in range(rows)
    for j in range(columns)
  ]
  return np.mean(points, axis=0)


def test_pooling_matches_a_loop_over_points():
  expected = [slow_roi_align(table, box) for table, box in zip(MAPS, BOXES)]
  value = roi_align(MAPS, BOXES)
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
  probs = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
  np.testing.assert_allclose(pool(MAPS, BOXES), probs, rtol=1e-4)
  np.testing.assert_array_equal(pool_single(MAPS, BOXES), np.eye(CLASSES)[value.argmax(1)])
  # Axes and classes may be exchanged.
  swapped = roi_align(MAPS.swapaxes(1, 2), BOXES[:, [1, 0, 3, 2]])
  np.testing.assert_allclose(swapped, value, rtol=1e-5, atol=1e-6)
  order = RNG.permutation(CLASSES)
  np.testing.assert_allclose(
    roi_align(MAPS[..., order], BOXES), value[:, order], rtol=1e-5, atol=1e-6
  )


def test_constant_maps_and_maps_of_one_pixel():
  constant = np.broadcast_to(MAPS[:, :1, :1], MAPS.shape)
  np.testing.assert_allclose(roi_align(constant, BOXES), MAPS[:, 0, 0], rtol=1e-5)
  np.testing.assert_allclose(roi_align(MAPS[:, :1, :1], BOXES), MAPS[:, 0, 0], rtol=1e-6)


def test_a_box_of_one_pixel_gives_the_pixel():
  rows, columns = np.arange(NUM) % SIDE, np.arange(NUM) // 2
  boxes = np.stack([rows, columns, rows + 1, columns + 1], axis=1) / np.float32(SIDE)
  value = roi_align(MAPS, boxes.astype(np.float32))
  np.testing.assert_allclose(value, MAPS[np.arange(NUM), rows, columns], rtol=1e-6)
  # A smaller one grows from its start.
  tiny = np.concatenate([boxes[:, :2], boxes[:, :2] + 0.01], axis=1).astype(np.float32)
  np.testing.assert_allclose(roi_align(MAPS, tiny), value, rtol=1e-5, atol=1e-6)


def ramps():
  """Coordinates of the pixels in the first two channels."""
  table = np.zeros((NUM, SIDE, SIDE, CLASSES), np.float32)
  table[..., 0], table[..., 1] = np.indices((SIDE, SIDE))
  return table


def test_a_ramp_gives_the_center_of_the_box():
  start = RNG.uniform(0.15, 0.3, (NUM, 2))
  end = RNG.uniform(0.6, 0.8, (NUM, 2))
  boxes = np.concatenate([start, end], axis=1).astype(np.float32)
  value = roi_align(ramps(), boxes)
  np.testing.assert_allclose(value[:, :2], SIDE * (start + end) / 2 - 0.5, rtol=1e-4)


def test_crops_and_boxes_fit_together():
  """The mean of a cropped map of coordinates is what its box is pooled to."""
  maps = ramps()
  crop = evaluated(
    lambda key: augment.random_resized_crop(key, maps, size=6, scale=(0.1, 0.15), ratio=(0.9, 1.1))
  )(jax.random.key(0))
  inner = np.all((crop.boxes[:, :2] > 0.13) & (crop.boxes[:, 2:] < 0.87), axis=1)
  assert inner.any()
  means = np.mean(crop.images, axis=(1, 2))
  np.testing.assert_allclose(roi_align(maps, crop.boxes)[inner], means[inner], rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_map():
  gradient = evaluated(jax.grad(lambda x: augment.pool_label_map(x, BOXES)[:, 0].sum()))(MAPS)
  assert np.isfinite(gradient).all() and np.any(gradient != 0, axis=(1, 2, 3)).all()


def test_extreme_and_missing_values():
  value = pool(1e4 * np.sign(MAPS), BOXES)
  assert np.isfinite(value).all()
  spoiled = np.where((np.arange(NUM) == 2)[:, None], np.nan, BOXES)
  for function in (roi_align, pool_single):
    np.testing.assert_array_equal(np.isnan(function(MAPS, spoiled)).all(1), np.arange(NUM) == 2)


def test_classifier_at_every_position():
  features = RNG.normal(size=(NUM, SIDE, SIDE, 3)).astype(np.float32)
  kernel, bias = RNG.normal(size=(3, CLASSES)), RNG.normal(size=CLASSES)
  value = evaluated(augment.classifier_label_map)(features, kernel, bias)
  np.testing.assert_allclose(value, features @ kernel + bias, rtol=1e-4, atol=1e-5)
  pooled = features.mean((1, 2)) @ kernel + bias
  np.testing.assert_allclose(value.mean((1, 2)), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_labels", [2, CLASSES])
def test_sparse_maps(num_labels):
  maps = MAPS.round()  # Ties.
  sparse = sparsify(maps, num_labels=num_labels)
  dense = np.zeros_like(maps)
  for place in np.ndindex(maps.shape[:3]):
    order = sorted(range(CLASSES), key=lambda c: (-maps[place][c], c))[:num_labels]
    np.testing.assert_array_equal(sparse.indices[place], order)
    np.testing.assert_array_equal(sparse.scores[place], maps[place][order])
    dense[place][order] = maps[place][order]
  np.testing.assert_array_equal(densify(*sparse, num_classes=CLASSES), dense)
  if num_labels == CLASSES:
    np.testing.assert_array_equal(dense, maps)


def test_repeated_and_unknown_classes():
  scores, indices = MAPS[..., :2], np.full((NUM, SIDE, SIDE, 2), 3)
  dense = densify(scores, indices, num_classes=CLASSES)
  np.testing.assert_allclose(dense[..., 3], scores.sum(-1), rtol=1e-6)
  assert np.all(dense[..., :3] == 0)
  indices[0, 1, 2, 0], indices[1, 0, 0, 1] = -1, CLASSES
  unknown = np.isnan(densify(scores, indices, num_classes=CLASSES))
  assert unknown.sum() == 2 * CLASSES and unknown[0, 1, 2].all() and unknown[1, 0, 0].all()


def test_mixed_targets_are_distributions():
  def soft_targets(key):
    targets = augment.pool_label_map(MAPS, BOXES)
    mixed = augment.cutmix(key, jnp.asarray(MAPS), targets)
    ratio = mixed.ratio[:, None]
    return ratio * mixed.labels_a + (1 - ratio) * mixed.labels_b

  targets = evaluated(soft_targets)(jax.random.key(0))
  np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-5)


def test_errors():
  for num_labels in (0, CLASSES + 1):
    with pytest.raises(ValueError, match=rf"num_labels must lie in \[1, 5\], got {num_labels}"):
      augment.sparsify_label_map(MAPS, num_labels=num_labels)
  with pytest.raises(ValueError, match=r"indices must lie in \[0, 3\)"):
    augment.dense_label_map(MAPS[..., :1], np.full((NUM, SIDE, SIDE, 1), 3), num_classes=3)
  with pytest.raises(ValueError, match="boxes must have shape"):
    augment.pool_label_map(MAPS, BOXES[:3])
  with pytest.raises(ValueError, match="bias must have shape"):
    augment.classifier_label_map(MAPS, np.zeros((CLASSES, 3)), np.zeros(2))
