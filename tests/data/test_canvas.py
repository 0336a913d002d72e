import functools

import jax
import numpy as np
import pytest

from jaxlab.data import sample_canvas

RNG = np.random.default_rng(0)
# Of constant brightness, by which a scene shows which digit it was.
LABELS = RNG.integers(0, 10, 30).astype(np.int32)
DIGITS = np.broadcast_to(np.arange(1, 31, dtype=np.float32)[:, None, None], (30, 8, 8))


@functools.cache
def scenes(num_objects):
  draw = jax.jit(functools.partial(sample_canvas, batch_size=40, num_objects=num_objects))
  return jax.device_get(draw(jax.random.key(num_objects), DIGITS, LABELS))


@pytest.mark.parametrize("num_objects", [1, 3, 4])
def test_scenes_say_what_they_show(num_objects):
  batch = scenes(num_objects)
  assert batch.images.shape == (40, 28, 28, 1) and batch.label_maps.shape == (40, 28, 28)
  quarters = set()
  for image, table, single, members in zip(batch.images[..., 0], *batch[1:]):
    shown = np.round(image).astype(int)
    np.testing.assert_allclose(image, shown, atol=1e-3)
    np.testing.assert_array_equal(table, np.where(shown > 0, LABELS[shown - 1], -1))
    sides, classes = [], []
    for corner in np.ndindex(2, 2):
      cell = shown[14 * corner[0] : 14 * corner[0] + 14, 14 * corner[1] : 14 * corner[1] + 14]
      rows, columns = (np.flatnonzero(cell.any(axis)) for axis in (1, 0))
      if not rows.size:
        continue
      quarters.add(corner)
      # One object, a square of 8 to 12.8 pixels.
      square = cell[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
      assert np.all(square == square[0, 0]) and 8 <= min(square.shape) <= max(square.shape) <= 13
      sides.append(sum(square.shape) / 2)
      classes.append(LABELS[square[0, 0] - 1])
    assert len(classes) == num_objects
    np.testing.assert_array_equal(np.flatnonzero(members), np.unique(classes))
    # Sides are seen to a pixel.
    assert single in np.array(classes)[np.array(sides) >= max(sides) - 1]
  assert len(quarters) == 4


def test_digits_are_magnified():
  ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (1, 8, 8))
  draw = jax.jit(
    functools.partial(sample_canvas, batch_size=40, size=24, num_objects=1, scale=(1.5, 1.5))
  )
  batch = jax.device_get(draw(jax.random.key(0), 1 + ramp, LABELS[:1]))
  assert batch.images.shape == (40, 24, 24, 1)
  for image, table in zip(batch.images[..., 0], batch.label_maps):
    rows, columns = np.nonzero(table >= 0)
    inner = image[rows.min(), columns.min() + 2 : columns.max() - 1]
    np.testing.assert_allclose(np.diff(inner), 1 / 1.5, rtol=1e-4)
    assert columns.max() - columns.min() in (11, 12)


def test_keys_make_scenes_and_unknown_labels_none():
  assert np.any(scenes(3).images[:, 0] != scenes(4).images[:, 0])
  draw = jax.jit(functools.partial(sample_canvas, batch_size=40, num_objects=3))
  again = draw(jax.random.key(3), DIGITS, LABELS)
  np.testing.assert_array_equal(again.images, scenes(3).images)
  unknown = draw(jax.random.key(3), DIGITS, np.where(LABELS == 4, 10, LABELS))
  expected = scenes(3).label_sets.copy()
  expected[:, 4] = False
  np.testing.assert_array_equal(unknown.label_sets, expected)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"size": 0}, "size must be at least 1, got 0"),
    ({"num_objects": 0}, r"num_objects must lie in \[1, 4\], got 0"),
    ({"num_objects": 5}, r"num_objects must lie in \[1, 4\], got 5"),
    ({"scale": (1.5, 1.0)}, "scale must be two numbers in order"),
    ({"scale": (-1.0, 1.0)}, r"scale must lie in \(0, inf\), got -1.0"),
    ({"size": 20}, "scale must make digits of 8 pixels fit into 10"),
  ],
)
def test_errors(arguments, words):
  with pytest.raises(ValueError, match=words):
    sample_canvas(jax.random.key(0), DIGITS, LABELS, **{"batch_size": 2} | arguments)


def test_bad_digits_are_refused():
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
    sample_canvas(jax.random.key(0), DIGITS, LABELS + 1, batch_size=2)
  with pytest.raises(ValueError, match="digits must have shape"):
    sample_canvas(jax.random.key(0), DIGITS[:, :4], LABELS, batch_size=2)
  with pytest.raises(ValueError, match="digits must not be empty"):
    sample_canvas(jax.random.key(0), DIGITS[:0], LABELS[:0], batch_size=2)
