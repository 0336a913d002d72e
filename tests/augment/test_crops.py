"""Random changes of image batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(1.0, 2.0, (60, 4, 5, 2)).astype(np.float32)


def test_crops_are_windows_of_the_padded_image():
  crop = jax.jit(functools.partial(augment.random_crop, padding=1))
  views = np.asarray(crop(jax.random.key(0), IMAGES))
  assert views.dtype == np.float32
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  corners = []
  for image, view in zip(padded, views):
    for y in range(3):
      for x in range(3):
        if np.array_equal(image[y : y + 4, x : x + 5], view):
          corners.append((y, x))
  assert len(corners) == 60  # One window each.
  assert len(set(corners)) == 9


def test_no_padding_leaves_images_as_they_are():
  crop = jax.jit(functools.partial(augment.random_crop, padding=0))
  np.testing.assert_array_equal(crop(jax.random.key(0), IMAGES), IMAGES)


def test_flips_mirror_half_of_the_images_left_to_right():
  views = np.asarray(jax.jit(augment.random_flip)(jax.random.key(0), IMAGES))
  mirrored = 0
  for image, view in zip(IMAGES, views):
    if np.array_equal(view, image[:, ::-1]):
      mirrored += 1
    else:
      np.testing.assert_array_equal(view, image)
  assert 18 <= mirrored <= 42  # Three standard errors about 30.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_dtypes_are_kept(dtype):
  images = jax.ShapeDtypeStruct((2, 4, 5, 2), dtype)
  for view in (augment.random_crop, augment.random_flip):
    output = jax.eval_shape(view, jax.random.key(0), images)
    assert output.shape == images.shape and output.dtype == dtype


def test_lists_are_arrays():
  assert jax.eval_shape(lambda: augment.random_crop(KEY, IMAGES.tolist())).shape == IMAGES.shape
  assert jax.eval_shape(lambda: augment.random_flip(KEY, IMAGES.tolist())).shape == IMAGES.shape


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
    augment.random_crop(jax.random.key(0), IMAGES, padding=-1)
  for view in (augment.random_crop, augment.random_flip):
    with pytest.raises(ValueError, match="images must have shape"):
      view(jax.random.key(0), IMAGES[0])


def test_jitter_of_images_shifts_mirrors_and_scales():
  """A vertical and a horizontal ramp show shift, mirror image, gain and offset of each row."""
  down, right = np.mgrid[:9, :9] / 20 + 0.3
  images = np.broadcast_to(np.stack([down, right], -1), (400, 9, 9, 2)).astype(np.float32)
  out = np.asarray(jax.jit(augment.jitter_images)(KEY, images), np.float64)
  inner = out[:, 2:-2, 2:-2]  # No edge value has come in.
  slopes = np.polyfit(np.arange(5) / 20, np.moveaxis(inner[..., 0].mean(2), 1, 0), 1)[0]
  assert 0.69 < slopes.min() < 0.73 and 1.27 < slopes.max() < 1.31
  mirrored = np.polyfit(np.arange(5), np.moveaxis(inner[..., 1].mean(1), 1, 0), 1)[0] < 0
  assert 0.4 < mirrored.mean() < 0.6
  np.testing.assert_array_equal(out, np.clip(out, 0, 1))
  # In the middle, ramps are gain x (.5 - shift / 20) + offset, mirrored or not.
  vertical, horizontal = np.moveaxis(inner.mean((1, 2)), -1, 0)
  assert 0.17 < vertical.min() < 0.3 and 0.75 < vertical.max() < 0.89
  between = 20 * (vertical - horizontal) / slopes
  np.testing.assert_allclose(between, between.round(), atol=0.25)
  assert set(between.round()) == set(range(-4, 5))


def test_jitter_of_images_keeps_shape_dtype_and_gradient():
  half = jnp.full((2, 4, 4, 3), 0.5, jnp.bfloat16)
  out = jax.eval_shape(augment.jitter_images, KEY, half)
  assert out.shape == half.shape and out.dtype == jnp.bfloat16
  grad = jax.jit(jax.grad(lambda x: augment.jitter_images(KEY, x).sum()))(half)
  assert np.isfinite(np.asarray(grad, np.float32)).all()


def slow_resize(image, box, size):
  """Bilinear reading of the box at the centers of the pixels of the crop; only to magnify."""
  height, width = image.shape[:2]
  (top, left), (bottom, right) = box[:2] * (height, width), box[2:] * (height, width)
  out = np.zeros((size, size, image.shape[2]))
  for i, j in np.ndindex(size, size):
    y = top + (i + 0.5) * (bottom - top) / size - 0.5
    x = left + (j + 0.5) * (right - left) / size - 0.5
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    row, column = min(int(y), height - 2), min(int(x), width - 2)
    corner = image[row : row + 2, column : column + 2]
    down, across = [1 - y + row, y - row], [1 - x + column, x - column]
    out[i, j] = np.einsum("a,b,abc->c", down, across, corner)
  return out


def test_resized_crops_read_their_boxes():
  crop = jax.jit(functools.partial(augment.random_resized_crop, size=6))
  crops, boxes = jax.device_get(crop(KEY, IMAGES))
  sides = boxes[:, 2:] - boxes[:, :2]
  assert np.all(boxes >= 0) and np.all(boxes <= 1 + 1e-6) and np.all(sides > 0)
  for image, view, box in zip(IMAGES[:20], crops, np.float64(boxes)):
    np.testing.assert_allclose(view, slow_resize(image, box, 6), rtol=1e-4)


def test_area_and_shape_of_crops():
  crop = jax.jit(functools.partial(augment.random_resized_crop, size=1, scale=(0.1, 0.4)))
  boxes = np.asarray(crop(KEY, IMAGES).boxes)
  sides = (boxes[:, 2:] - boxes[:, :2]) * (4, 5)
  area, ratio = sides.prod(1) / 20, sides[:, 1] / sides[:, 0]
  assert 0.1 < area.min() < 0.13 and 0.37 < area.max() < 0.4
  assert 0.75 < ratio.min() < 0.79 and 1.27 < ratio.max() < 1.3333
  middle = boxes.reshape(-1, 2, 2).mean(1)
  assert np.all(np.abs(middle.mean(0) - 0.5) < 0.06)


def test_a_crop_of_the_whole_image_is_the_image():
  whole = functools.partial(augment.random_resized_crop, scale=(1, 1), ratio=(1.0, 1.0))
  square = IMAGES[..., :4, :]
  crops, boxes = jax.device_get(jax.jit(functools.partial(whole, size=4))(KEY, square))
  np.testing.assert_allclose(crops, square, rtol=1e-5)
  np.testing.assert_allclose(boxes, np.broadcast_to([0, 0, 1, 1], (60, 4)), atol=1e-6)
  small = jax.eval_shape(functools.partial(whole, size=3), KEY, square.astype(np.uint8))
  assert small.images.shape == (60, 3, 3, 2) and small.images.dtype == np.float32


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"size": 0}, "size must be at least 1, got 0"),
    ({"scale": (0.5, 0.2)}, r"scale must be two numbers in order, got \(0.5, 0.2\)"),
    ({"scale": (0.0, 0.2)}, r"scale must lie in \(0, inf\), got 0.0"),
    ({"ratio": (0.5, 0.2)}, "ratio must be two numbers in order"),
    ({"ratio": (0.5,)}, r"ratio must be two numbers, got \(0.5,\)"),
  ],
)
def test_bad_crops_are_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    augment.random_resized_crop(KEY, IMAGES, **{"size": 4} | arguments)
