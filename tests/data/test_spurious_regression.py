import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxlab import data


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(size=(400, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def digits(images):
  return data.rotated_digits(jax.random.key(0), images)


def test_colors_encode_the_angle_at_the_requested_rate(digits):
  shares = np.asarray(digits.degrees) / 60.0
  assert shares.min() >= 0.0 and shares.max() <= 1.0 and 0.45 < shares.mean() < 0.55
  honest = np.isclose(digits.colors, shares, atol=1e-6)
  np.testing.assert_allclose(np.asarray(digits.colors)[~honest], 1 - shares[~honest], atol=1e-6)
  assert abs(honest.mean() - 0.8) < 3 * np.sqrt(0.16 / 400)


def test_channels_are_tinted(digits):
  image, color = np.asarray(digits.images), np.asarray(digits.colors)[:, None, None]
  assert image.shape == (400, 16, 16, 3)
  gray = 2 * image[..., 1]
  np.testing.assert_allclose(image[..., 0], gray * color, atol=1e-6)
  np.testing.assert_allclose(image[..., 2], gray * (1 - color), atol=1e-6)


def test_rotation_equals_scipy(images, digits):
  """Compares the inner part only: SciPy's spline of order 1 treats the border differently."""
  yy, xx = np.mgrid[:16, :16]
  inner = np.hypot(yy - 7.5, xx - 7.5) < 6.5
  for i in range(3):
    large = np.asarray(jax.image.resize(images[i], (16, 16), "bilinear"))
    turned = scipy.ndimage.rotate(large, float(digits.degrees[i]), reshape=False, order=1)
    np.testing.assert_allclose(2 * digits.images[i, ..., 1][inner], turned[inner], atol=1e-4)


def test_corners_turn_to_zero(digits):
  steep = np.asarray(digits.degrees) > 40
  np.testing.assert_array_equal(np.asarray(digits.images)[steep, 0, 0], 0.0)


def test_jit_matches_and_draws_depend_on_the_key(images, digits):
  compiled = jax.jit(data.rotated_digits)(jax.random.key(0), images)
  np.testing.assert_allclose(compiled.images, digits.images, atol=1e-5)
  other = data.rotated_digits(jax.random.key(1), images[:2], spurious_prob=1.0, max_degrees=90.0)
  np.testing.assert_allclose(other.degrees, 90.0 * other.colors, rtol=1e-5)
  assert np.any(other.degrees != digits.degrees[:2])


def test_bad_arguments(images):
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="spurious_prob"):
    data.rotated_digits(key, images, spurious_prob=1.1)
  for degrees in (0.0, 361.0):
    with pytest.raises(ValueError, match="max_degrees"):
      data.rotated_digits(key, images, max_degrees=degrees)
  with pytest.raises(ValueError, match=r"images must have shape \[n, 8, 8\], got \[2, 8, 8, 1\]"):
    data.rotated_digits(key, jnp.zeros((2, 8, 8, 1)))
