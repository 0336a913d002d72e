import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment

box_masks = jax.jit(augment.box_masks, static_argnames=("height", "width"))
segment_masks = jax.jit(augment.segment_masks, static_argnames="length")
center_surround_saliency = jax.jit(augment.center_surround_saliency)


def slow_span(center, side, size):
  half = int(np.floor(side + 1e-6)) // 2
  return range(max(center - half, 0), min(center + half, size))


@pytest.mark.parametrize(("height", "width"), [(8, 6), (5, 9)])
def test_box_masks_match_a_loop(height, width):
  rng = np.random.default_rng(height)
  centers = np.stack([rng.integers(height, size=12), rng.integers(width, size=12)], axis=-1)
  ratio = rng.random(12).astype(np.float32)
  ratio[:2] = 0.0, 1.0
  masks = box_masks(centers, ratio, height=height, width=width)
  expected = np.zeros((12, height, width))
  for i, ((row, column), share) in enumerate(zip(centers, ratio)):
    scale = np.sqrt(1 - np.float64(share))
    for y in slow_span(row, height * scale, height):
      for x in slow_span(column, width * scale, width):
        expected[i, y, x] = 1
  np.testing.assert_array_equal(masks, expected)


def test_segment_masks_match_a_loop():
  rng = np.random.default_rng(0)
  centers, ratio = rng.integers(11, size=20), rng.random(20).astype(np.float32)
  masks = segment_masks(centers, ratio, length=11)
  expected = np.zeros((20, 11))
  for i, (center, share) in enumerate(zip(centers, ratio)):
    for t in slow_span(center, 11 * (1 - np.float64(share)), 11):
      expected[i, t] = 1
  np.testing.assert_array_equal(masks, expected)


def test_masks_at_extreme_ratios_and_at_borders():
  centers = np.array([[4, 4], [4, 4], [0, 0], [7, 7]])
  masks = np.asarray(box_masks(centers, np.array([1.0, 0.0, 0.0, 0.0]), height=8, width=8))
  assert not masks[0].any() and masks[1].all()
  np.testing.assert_array_equal(masks[2:].sum((1, 2)), [16, 25])  # Corners clip.
  assert np.all(segment_masks(np.array([4, 4]), 0.0, length=8))
  # 10 sqrt(1 - .84) is 4, but slightly less in single precision.
  assert np.sum(box_masks(np.array([[5, 5]]), 0.84, height=10, width=10)) == 16


def test_box_mix_pastes_pixels_and_returns_the_kept_share():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (5, 6, 4, 3)).astype(np.uint8)
  partners = rng.integers(0, 255, (5, 6, 4, 3)).astype(np.uint8)
  masks = rng.integers(0, 2, (5, 6, 4)).astype(np.float32)
  mixed = jax.jit(augment.box_mix)(images, partners, masks)
  np.testing.assert_array_equal(mixed.images, np.where(masks[..., None] > 0, partners, images))
  np.testing.assert_allclose(mixed.ratio, 1 - masks.mean((1, 2)), rtol=1e-6)
  assert mixed.images.dtype == np.uint8
  # Covered pixels have no influence, even if they are NaN.
  image, partner = np.full((1, 2, 1), np.nan), np.ones((1, 2, 1))
  covered = jax.jit(augment.box_mix)(image, partner, np.ones((1, 2)))
  np.testing.assert_array_equal(covered.images, np.ones((1, 2, 1)))


def test_saliency_matches_a_loop():
  images = np.random.default_rng(0).normal(size=(2, 6, 7, 2)).astype(np.float32)
  expected = np.zeros((2, 6, 7))
  for radius in (1, 2, 4):
    for y in range(6):
      for x in range(7):
        rows = np.clip(np.arange(y - radius, y + radius + 1), 0, 5)
        columns = np.clip(np.arange(x - radius, x + radius + 1), 0, 6)
        mean = images[:, rows][:, :, columns].mean((1, 2))
        expected[:, y, x] += np.abs(images[:, y, x] - mean).mean(-1)
  result = center_surround_saliency(images)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
  half = center_surround_saliency(images.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  flat = center_surround_saliency(np.full((1, 5, 5, 1), 3.0))
  np.testing.assert_allclose(flat, 0, atol=1e-5)


def test_an_unknown_ratio_is_unknown_in_its_row_and_an_empty_batch_is_empty():
  ratio = jnp.array([0.3, jnp.nan])
  boxes = box_masks(np.array([[3, 3], [4, 2]]), ratio, height=8, width=6)
  segments = segment_masks(np.array([3, 4]), ratio, length=11)
  for masks in (boxes, segments):
    images = np.zeros((*masks.shape, 1), np.float32)
    unknown = np.isnan(masks).reshape(2, -1)
    assert not unknown[0].any() and unknown[1].all()
    kept = jax.jit(augment.box_mix)(images, images, masks).ratio
    np.testing.assert_array_equal(np.isnan(kept), [False, True])
  empty = np.zeros((0, 4, 4, 1), np.float32)
  mixed = jax.eval_shape(augment.box_mix, empty, empty, empty[..., 0])
  assert mixed.ratio.shape == (0,)


def test_errors():
  centers = jnp.zeros((2, 2), jnp.int32)
  for bad in (-0.1, 1.5, np.nan):
    with pytest.raises(ValueError, match="ratio"):
      augment.box_masks(centers, bad, height=4, width=4)
    with pytest.raises(ValueError, match="ratio"):
      augment.segment_masks(centers[:, 0], bad, length=4)
  for sizes in ({"height": 0, "width": 4}, {"height": 4, "width": 0}):
    with pytest.raises(ValueError, match="(height|width) must be at least 1, got 0"):
      augment.box_masks(centers, 0.5, **sizes)
  with pytest.raises(ValueError, match="length must be at least 1, got 0"):
    augment.segment_masks(centers[:, 0], 0.5, length=0)
  with pytest.raises(ValueError, match="centers must have shape"):
    augment.box_masks(centers[:, :1], 0.5, height=4, width=4)
  with pytest.raises(ValueError, match="ratio must have shape"):
    augment.segment_masks(centers[:, 0], [0.1, 0.2, 0.3], length=4)
  with pytest.raises(ValueError, match="masks must have shape"):
    augment.box_mix(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4, 1)))
  with pytest.raises(ValueError, match="images must have shape"):
    augment.center_surround_saliency(jnp.zeros((4, 4, 1)))
