"""Weak and strong views of images."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxlab import augment

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(1.0, 2.0, (40, 8, 6, 2)).astype(np.float32)
OTHERS = -IMAGES
NAIVE = np.arange(40) % 3 == 0


def compiled(function, **arguments):
  return jax.jit(functools.partial(function, **arguments))


def test_shifts_move_whole_pixels_and_zeros_enter():
  views = np.asarray(compiled(augment.random_shift, max_shift=1)(KEY, IMAGES))
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  seen = set()
  for image, view in zip(padded, views):
    seen |= {
      (y, x)
      for y in range(3)
      for x in range(3)
      if np.array_equal(image[y : y + 8, x : x + 6], view)
    }
  assert len(seen) == 9


def test_rotation_and_shear_match_scipy():
  rotate = jax.jit(augment.random_rotate_shear)
  np.testing.assert_allclose(rotate(KEY, IMAGES, max_degrees=0.0, max_shear=0.0), IMAGES, rtol=1e-6)
  shares = jax.random.uniform(KEY, (2, 40), minval=-1.0, maxval=1.0)
  views = rotate(KEY, IMAGES, max_degrees=30.0, max_shear=0.3)
  center = np.array([3.5, 2.5])
  for i in range(5):
    angle, shear = np.deg2rad(30.0 * shares[0, i]), 0.3 * shares[1, i]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, 0.0], [shear, 1.0]])
    for channel in range(2):
      # Zeros around the image, so that SciPy interpolates towards them, too.
      padded = np.pad(IMAGES[i, :, :, channel].astype(np.float64), 1)
      slow = ndimage.affine_transform(
        padded, matrix, center + 1 - matrix @ (center + 1), order=1, mode="constant"
      )
      np.testing.assert_allclose(views[i, :, :, channel], slow[1:-1, 1:-1], atol=1e-4)


def test_erased_squares_lie_inside_everywhere():
  erase = compiled(augment.random_erase, size=3, fill_value=-5.0)
  views = np.asarray(erase(KEY, np.tile(IMAGES, (10, 1, 1, 1))))
  corners = set()
  for view in views:
    rows, columns = np.nonzero(np.all(view == -5, axis=-1))
    assert len(rows) == 9 and np.ptp(rows) == np.ptp(columns) == 2
    corners.add((rows.min(), columns.min()))
  assert len(corners) == 6 * 4
  assert np.all((views == -5) | (views == np.tile(IMAGES, (10, 1, 1, 1))))


def test_gains_are_drawn_for_each_image():
  gain = np.asarray(compiled(augment.random_gain, low=0.5, high=1.5)(KEY, IMAGES)) / IMAGES
  np.testing.assert_allclose(gain, np.broadcast_to(gain[:, :1, :1, :1], gain.shape), rtol=1e-5)
  factors = gain[:, 0, 0, 0]
  assert 0.5 <= factors.min() < 0.6 and 1.4 < factors.max() <= 1.5


def test_rand_augment_keeps_rows_apart_and_leaves_some_images():
  strong = jax.jit(augment.rand_augment, static_argnames="num_ops")
  np.testing.assert_array_equal(strong(KEY, IMAGES, num_ops=0), IMAGES)
  np.testing.assert_allclose(strong(KEY, IMAGES, max_magnitude=0.0), IMAGES, rtol=1e-6)
  views = np.asarray(strong(KEY, IMAGES, num_ops=1))
  same = np.array([np.allclose(a, b, rtol=1e-6) for a, b in zip(views, IMAGES)])
  assert 1 <= same.sum() <= 15  # One operation of seven changes nothing.
  # Others than gain and contrast put zeros into a view.
  assert 10 <= np.sum(np.any(views == 0, axis=(1, 2, 3))) <= 35
  spoiled = np.where(np.arange(40)[:, None, None, None] == 7, 0, IMAGES).astype(np.float32)
  other = np.asarray(strong(KEY, spoiled, num_ops=1))
  np.testing.assert_array_equal(np.delete(other, 7, 0), np.delete(views, 7, 0))
  assert np.isfinite(strong(KEY, IMAGES, max_magnitude=1.0)).all()


def test_pasted_halves():
  views = np.asarray(jax.jit(augment.paste_half)(KEY, IMAGES, OTHERS))
  taken = np.all(views == OTHERS, axis=-1)
  assert np.all(taken | np.all(views == IMAGES, axis=-1))
  left = np.zeros((8, 6), bool)
  left[:, :3] = True
  top = np.zeros((8, 6), bool)
  top[:4] = True
  is_left, is_top = (np.all(taken == half, axis=(1, 2)) for half in (left, top))
  assert np.all(is_left ^ is_top) and 8 < is_left.sum() < 32
  signals = IMAGES.reshape(40, 48, 2)
  pasted = np.asarray(jax.jit(augment.paste_half)(KEY, signals, -signals))
  np.testing.assert_array_equal(pasted[:, :24], -signals[:, :24])
  np.testing.assert_array_equal(pasted[:, 24:], signals[:, 24:])


def test_only_naive_rows_get_pasted_views():
  def strong(key, images):
    return augment.random_gain(key, images, low=0.5, high=1.5)

  views = compiled(augment.adaptive_strong_views, strong_fn=strong)
  none, some, every = (np.asarray(views(KEY, IMAGES, x)) for x in (NAIVE & False, NAIVE, ~NAIVE))
  np.testing.assert_array_equal(some[~NAIVE], none[~NAIVE])
  np.testing.assert_array_equal(every[NAIVE], none[NAIVE])
  first_key = jax.random.split(KEY, 3)[0]
  np.testing.assert_allclose(none, jax.jit(strong)(first_key, IMAGES), rtol=1e-6)
  # Half of a pasted view comes from the second draw.
  assert np.all(np.sum(some[NAIVE] == none[NAIVE], axis=(1, 2, 3)) == 48)


def test_errors():
  with pytest.raises(ValueError, match="max_shift must be at least 0, got -1"):
    augment.random_shift(KEY, IMAGES, max_shift=-1)
  with pytest.raises(ValueError, match="size must be at most 6, the shorter side, got 7"):
    augment.random_erase(KEY, IMAGES, size=7)
  with pytest.raises(ValueError, match=r"high must lie in \[2.0, inf\), got 1.0"):
    augment.random_gain(KEY, IMAGES, low=2.0, high=1.0)
  with pytest.raises(ValueError, match="others must have shape"):
    augment.paste_half(KEY, IMAGES, OTHERS[:2])
  with pytest.raises(ValueError, match="max_degrees"):
    augment.random_rotate_shear(KEY, IMAGES, max_degrees=-1.0, max_shear=0.0)
  with pytest.raises(ValueError, match="num_ops"):
    augment.rand_augment(KEY, IMAGES, num_ops=-1)
