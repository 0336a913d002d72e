import colorsys

import jax
import numpy as np
import pytest

from jaxlab.data.shape_scenes import sample_shape_scenes


@jax.jit
def pairs(key):
  """Two families, three shapes per scene."""
  return sample_shape_scenes(key, num_samples=40, classes=(2, 7), size=24)


@jax.jit
def singles(key, noise):
  """All families, one shape per scene."""
  return sample_shape_scenes(
    key, num_samples=128, classes=range(12), size=24, clutter=0, noise=noise
  )


@pytest.fixture(scope="module")
def scenes():
  return jax.device_get(pairs(jax.random.key(0)))


@pytest.fixture(scope="module")
def quiet():
  return jax.device_get(singles(jax.random.key(1), 0.0))


def test_shapes_types_and_families(scenes):
  assert scenes.images.shape == (40, 24, 24, 3) and scenes.images.dtype == np.float32
  assert scenes.masks.shape == (40, 24, 24) and scenes.masks.dtype == np.int32
  assert set(np.unique(scenes.masks)) == {0, 3, 8}
  assert np.all(np.any(scenes.masks > 0, axis=(1, 2)))


def test_same_key_same_scenes(scenes):
  np.testing.assert_array_equal(pairs(jax.random.key(0)).images, scenes.images)
  assert np.any(np.asarray(pairs(jax.random.key(2)).masks) != scenes.masks)


def test_every_family_has_its_hues_and_form(quiet):
  shares = []
  for family in range(12):
    shows = np.any(quiet.masks == family + 1, axis=(1, 2))
    assert np.any(shows)
    inside = quiet.masks[shows] == family + 1
    shares.append(inside.mean())
    colors = quiet.images[shows][inside].clip(0, 1)
    hues = np.array([colorsys.rgb_to_hsv(*color)[0] for color in colors[::5]])
    distance = np.abs((hues - 5 * family / 12 + 0.5) % 1 - 0.5)
    assert distance.max() < 1 / 16 + 1e-3
  assert min(shares) > 0.05 and max(shares) < 0.4


def test_no_clutter_draws_one_shape_and_clutter_covers_more(quiet, scenes):
  assert all(len(np.unique(mask)) == 2 for mask in quiet.masks)
  assert np.any([len(np.unique(mask)) == 3 for mask in scenes.masks])
  assert (scenes.masks > 0).mean() > (quiet.masks > 0).mean()


def test_noise_has_its_standard_deviation(quiet):
  loud = np.asarray(singles(jax.random.key(1), 0.3).images)
  assert np.std(loud - quiet.images) == pytest.approx(0.3, rel=0.02)
  assert quiet.images.min() >= 0 and quiet.images.max() <= 1


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"classes": ()}, "classes"),
    ({"classes": (0, 12)}, "classes.*12"),
    ({"classes": (-1,)}, "classes.*-1"),
    ({"classes": (0,), "num_samples": 0}, "num_samples.*0"),
    ({"classes": (0,), "size": 0}, "size.*0"),
    ({"classes": (0,), "clutter": -1}, "clutter.*-1"),
    ({"classes": (0,), "noise": -0.1}, "noise.*-0.1"),
  ],
)
def test_errors(arguments, words):
  with pytest.raises(ValueError, match=words):
    sample_shape_scenes(jax.random.key(0), **({"num_samples": 1} | arguments))
