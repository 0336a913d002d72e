import colorsys
import functools

import jax
import numpy as np
import pytest

from jaxlab.data.shape_scenes import sample_shape_scenes

draw = functools.partial(sample_shape_scenes, num_samples=40, size=24)


@pytest.fixture(scope="module")
def scenes():
  return jax.device_get(draw(jax.random.key(0), classes=(2, 7)))


def test_shapes_types_and_families(scenes):
  assert scenes.images.shape == (40, 24, 24, 3) and scenes.images.dtype == np.float32
  assert scenes.masks.shape == (40, 24, 24) and scenes.masks.dtype == np.int32
  assert set(np.unique(scenes.masks)) == {0, 3, 8}
  assert np.all(np.any(scenes.masks > 0, axis=(1, 2)))


def test_same_key_same_scenes(scenes):
  again = jax.jit(lambda key: draw(key, classes=(2, 7)))(jax.random.key(0))
  np.testing.assert_allclose(again.images, scenes.images, atol=1e-5)
  np.testing.assert_array_equal(again.masks, scenes.masks)
  other = draw(jax.random.key(1), classes=(2, 7))
  assert np.any(np.asarray(other.masks) != scenes.masks)


def test_every_family_has_its_hues_and_form():
  shares = []
  for family in range(12):
    made = jax.device_get(
      sample_shape_scenes(
        jax.random.key(family), num_samples=12, classes=[family], clutter=0, noise=0.0
      )
    )
    inside = made.masks == family + 1
    shares.append(inside.mean())
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in made.images[inside].clip(0, 1)]
    distance = np.abs((np.array(hues) - 5 * family / 12 + 0.5) % 1 - 0.5)
    assert distance.max() < 1 / 16 + 1e-3
  assert min(shares) > 0.02 and max(shares) < 0.5
  # A T covers more than a star.
  assert shares[8] > shares[9]


def test_noise_is_that_of_the_pixels():
  quiet = np.asarray(draw(jax.random.key(2), classes=range(12), noise=0.0).images)
  loud = np.asarray(draw(jax.random.key(2), classes=range(12), noise=0.3).images)
  assert np.std(loud - quiet) == pytest.approx(0.3, rel=0.02)
  assert quiet.min() >= 0 and quiet.max() <= 1


def test_clutter_covers_more_and_hides():
  few = np.asarray(draw(jax.random.key(3), classes=[0], clutter=0).masks)
  many = np.asarray(draw(jax.random.key(3), classes=[0], clutter=4).masks)
  assert (many > 0).mean() > (few > 0).mean()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"classes": ()}, "classes"),
    ({"classes": (0, 12)}, "classes.*12"),
    ({"classes": (-1,)}, "classes.*-1"),
    ({"classes": (0,), "num_samples": 0}, "num_samples.*0"),
    ({"classes": (0,), "size": 0}, "size.*0"),
    ({"classes": (0,), "clutter": -1}, "clutter.*-1"),
  ],
)
def test_errors(arguments, words):
  with pytest.raises(ValueError, match=words):
    sample_shape_scenes(jax.random.key(0), **({"num_samples": 1} | arguments))
