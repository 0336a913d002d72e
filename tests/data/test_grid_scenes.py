import jax
import numpy as np
import pytest

from jaxlab.data import grid_scenes

SIZE = 2000
sample = jax.jit(grid_scenes.sample_grid_scenes, static_argnums=1)


@pytest.fixture(scope="module")
def scenes():
  return jax.device_get(sample(jax.random.key(0), SIZE, object_rate=0.4))


def cells(images):
  """Pixels by row and column of cells, `[b, 9, 8, 8, 3]`."""
  return images.reshape(-1, 3, 8, 3, 8, 3).swapaxes(2, 3).reshape(-1, 9, 8, 8, 3)


def test_contents_are_drawn_at_their_rates(scenes):
  filled = scenes.shapes >= 0
  np.testing.assert_array_equal(filled, scenes.colors >= 0)
  assert not np.any(scenes.framed & ~filled)
  assert abs(filled.mean() - 0.4) < 0.015 and abs(scenes.framed[filled].mean() - 0.25) < 0.02
  for values, count in ((scenes.shapes[filled], 4), (scenes.colors[filled], 5)):
    assert np.all(np.abs(np.bincount(values, minlength=count) / len(values) - 1 / count) < 0.03)
  assert np.all(np.abs(np.bincount(scenes.background) / SIZE - 0.25) < 0.05)


def test_pixels_show_the_contents(scenes):
  assert scenes.images.shape == (SIZE, 24, 24, 3) and scenes.images.dtype == np.float32
  assert scenes.images.min() >= 0 and scenes.images.max() <= 1
  pixels = cells(scenes.images)
  filled = scenes.shapes >= 0
  # Every shape covers the middle of its cell.
  middle, colors = pixels[filled][:, 4, 4], grid_scenes._OBJECT_COLORS[scenes.colors[filled]]
  assert np.all(np.abs(middle - colors) < 0.05)
  assert np.all(np.abs(pixels[scenes.framed][:, 0, 3] - grid_scenes._FRAME_COLOR) < 0.05)
  # Shapes are told apart by the pixels that have the object's color.
  near = np.abs(pixels - grid_scenes._OBJECT_COLORS[scenes.colors][:, :, None, None]).max(-1) < 0.05
  for shape, size in enumerate((24, 36, 24, 12)):
    counts = near[filled & scenes.framed & (scenes.shapes == shape)].sum((1, 2))
    np.testing.assert_array_equal(counts, size)


def test_backgrounds_differ_and_shapes_do_not_overlap(scenes):
  empty = cells(scenes.images)[:, 0][scenes.shapes[:, 0] < 0]
  means = empty.mean((1, 2))
  background = scenes.background[scenes.shapes[:, 0] < 0]
  centers = np.stack([means[background == i].mean(0) for i in range(4)])
  nearest = np.argmin(np.abs(means[:, None] - centers).sum(-1), axis=1)
  np.testing.assert_array_equal(nearest, background)


def test_a_rate_of_one_fills_every_cell_and_keys_decide():
  full, again = (sample(jax.random.key(1), SIZE, object_rate=1.0) for _ in range(2))
  assert np.all(np.asarray(full.shapes) >= 0)
  np.testing.assert_array_equal(full.images, again.images)


@pytest.mark.parametrize("rate", [0.0, 1.5, float("nan")])
def test_bad_rates_are_named(rate):
  with pytest.raises(ValueError, match=r"object_rate must lie in \(0, 1\]"):
    grid_scenes.sample_grid_scenes(jax.random.key(0), 2, object_rate=rate)
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    grid_scenes.sample_grid_scenes(jax.random.key(0), 0)
