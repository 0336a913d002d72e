"""Corruptions of images against SciPy, Pillow and closed forms."""

import colorsys
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate, gaussian_filter

from jaxlab.augment.image_corruptions import IMAGE_CORRUPTIONS, corrupt_images

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
  """Smooth random colors."""
  noise = np.random.default_rng(0).standard_normal((2, 32, 32, 3))
  smooth = gaussian_filter(noise, (0, 2, 2, 0), mode="wrap")
  return (0.5 + smooth / np.abs(smooth).max() / 2.1).astype(np.float32)


def _corrupt(x, kind, severity):
  return np.asarray(corrupt_images(KEY, x, kind=kind, severity=severity))


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_every_kind_at_every_size(images, kind):
  for shape in ((1, 8, 8, 1), (2, 32, 32, 3), (1, 20, 13, 3)):
    x = images[: shape[0], : shape[1], : shape[2], : shape[3]]
    changes = []
    for severity in (1, 3, 5):
      out = _corrupt(x, kind, severity)
      assert out.shape == x.shape and out.dtype == np.float32
      assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
      changes.append(np.abs(out - x).mean())
    assert changes[-1] > 0
    if kind != "elastic_transform":  # Its first severities move the whole image.
      assert changes[0] <= changes[1] + 0.01 and changes[1] <= changes[2] + 0.01


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_constant_images_and_half_precision(kind):
  for value in (0.0, 1.0):
    x = jnp.full((1, 8, 8, 3), value, jnp.bfloat16)
    out = corrupt_images(KEY, x, kind=kind, severity=5)
    assert out.dtype == jnp.bfloat16 and bool(jnp.isfinite(out).all())
    if kind not in ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "fog"):
      np.testing.assert_allclose(np.asarray(out, np.float32), value, atol=0.01)


def test_severity_may_be_traced(images):
  traced = jax.jit(lambda s: corrupt_images(KEY, images, kind="pixelate", severity=s))(3)
  np.testing.assert_allclose(traced, _corrupt(images, "pixelate", 3), atol=1e-6)


@pytest.mark.parametrize(
  ("side", "std"), [(8, 0.1), (32, 0.1), (85, 0.24), (224, 0.38), (300, 0.38)]
)
def test_constants_follow_the_logarithm_of_the_side(side, std):
  # 85 pixels are half-way between 32 and 224 on a logarithmic scale.
  x = np.full((1, side, side, 3), 0.5, np.float32)
  inside = np.random.default_rng(0).normal(0.5, std, 10**6).clip(0, 1).std()
  np.testing.assert_allclose(_corrupt(x, "gaussian_noise", 5).std(), inside, rtol=0.1)


def test_shot_and_impulse_noise_have_the_published_strength():
  x = np.full((4, 32, 32, 3), 0.3, np.float32)
  shot = _corrupt(x, "shot_noise", 5)
  np.testing.assert_allclose(shot.mean(), 0.3, atol=0.01)
  np.testing.assert_allclose(shot.std(), np.sqrt(0.3 / 50), rtol=0.05)
  np.testing.assert_allclose(shot * 50, np.round(shot * 50), atol=1e-4)
  impulse = _corrupt(x, "impulse_noise", 5)
  np.testing.assert_allclose((impulse != x).mean(), 0.07, rtol=0.2)
  assert set(np.unique(impulse)) == {np.float32(0), np.float32(0.3), np.float32(1)}


def test_gaussian_blur_matches_scipy(images):
  expected = gaussian_filter(images.astype(np.float64), (0, 1, 1, 0), mode="reflect")
  np.testing.assert_allclose(_corrupt(images, "gaussian_blur", 5), expected, atol=1e-4)


def test_defocus_blur_matches_correlation_with_a_disc(images):
  offsets = np.arange(-4, 5)
  disc = (offsets**2 + offsets[:, None] ** 2 <= 1.5**2).astype(float)
  kernel = gaussian_filter(disc, 0.1)[..., None]
  expected = [correlate(image, kernel / kernel.sum(), mode="reflect") for image in images]
  np.testing.assert_allclose(_corrupt(images, "defocus_blur", 5), expected, atol=1e-4)


def test_motion_blur_smears_along_a_line():
  x = np.zeros((300, 41, 41, 1), np.float32)
  x[:, 20, 20] = 1.0
  out = _corrupt(x, "motion_blur", 5)[..., 0]
  np.testing.assert_allclose(out.sum((1, 2)), 1.0, atol=1e-4)
  place = np.arange(41) - 20
  down, across = (out * place[:, None]).sum((1, 2)), (out * place).sum((1, 2))
  angle = np.arctan2(down, across)
  assert -np.pi / 4 <= angle.min() < -0.7 and 0.7 < angle.max() <= np.pi / 4
  # One-sided: nothing behind the pixel except by interpolation between two neighbors.
  assert out[:, :, :19].max() < 1e-5


def test_brightness_changes_the_hsv_value(images):
  def loop(pixel):
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))

  x = images[:1, :6, :6].copy()
  x[0, 0, 0] = 0.0
  expected = np.apply_along_axis(loop, -1, x)
  np.testing.assert_allclose(_corrupt(x, "brightness", 5), expected, atol=1e-5)


def test_contrast_keeps_the_mean_of_each_channel(images):
  out = _corrupt(images, "contrast", 5)
  np.testing.assert_allclose(out.mean((1, 2)), images.mean((1, 2)), atol=1e-5)
  np.testing.assert_allclose(out.std((1, 2)), 0.15 * images.std((1, 2)), rtol=1e-3)


def test_fog_brightens_unevenly_and_keeps_white():
  x = np.zeros((2, 32, 32, 3), np.float32)
  x[:, 0] = 1.0
  out = _corrupt(x, "fog", 5)
  # (x + c plasma) max / (max + c) with plasma in [0, 1], c = 1.5 and max = 1.
  haze = out[:, 1:] * 2.5 / 1.5
  assert 0 <= haze.min() < 0.3 and 0.7 < haze.max() <= 1.0001
  np.testing.assert_array_equal(out[..., 0], out[..., 2])
  black = np.zeros((1, 32, 32, 3), np.float32)
  np.testing.assert_array_equal(_corrupt(black, "fog", 5), black)


def test_pixelate_matches_pillow(images):
  picture = Image.fromarray(np.asarray(images[0, ..., 0]))
  expected = np.asarray(picture.resize((20, 20), Image.BOX).resize((32, 32), Image.BOX))
  ours = _corrupt(images[:1], "pixelate", 5)[0, ..., 0]
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_elastic_transform_moves_pixels_by_a_bounded_distance():
  """Two ramps show where each pixel was taken from."""
  ramp = np.linspace(0, 1, 32, dtype=np.float32)
  x = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :]), -1)[None].repeat(20, 0)
  for severity, most in ((1, 9.0), (5, 5.0)):
    moved = 31 * (_corrupt(x, "elastic_transform", severity) - x)[:, 8:-8, 8:-8]
    assert np.abs(moved).mean() > 0.3 and np.abs(moved).max() < most
  # The first severity is purely affine.
  flat = (31 * _corrupt(x, "elastic_transform", 1))[:, 12:20, 12:20]
  np.testing.assert_allclose(np.diff(flat, 2, axis=1), 0, atol=1e-3)
  np.testing.assert_allclose(np.diff(flat, 2, axis=2), 0, atol=1e-3)


@pytest.mark.parametrize(("mode", "severity"), [("RGB", 1), ("RGB", 5), ("L", 3)])
def test_jpeg_compression_is_close_to_pillow(images, mode, severity):
  quality = (80, 65, 58, 50, 40)[severity - 1]
  pixels = np.round(images[0] * 255).astype(np.uint8)[:29]  # Not a multiple of 8.
  pixels = pixels if mode == "RGB" else pixels[..., :1]
  buffer = io.BytesIO()
  Image.fromarray(pixels.squeeze()).save(buffer, "JPEG", quality=quality, subsampling=0)
  theirs = np.asarray(Image.open(buffer), np.float32).reshape(pixels.shape)
  ours = 255 * _corrupt(pixels[None] / np.float32(255), "jpeg_compression", severity)[0]
  # Pillow rounds colors and results to integers.
  assert np.abs(ours - theirs).mean() < 1.3
  assert np.abs(ours - theirs).mean() < 0.5 * np.abs(pixels - theirs).mean()


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_every_kind_of_key_and_no_shape_broadcast_by_accident(images, kind, impl):
  def corrupt(x):
    return corrupt_images(jax.random.key(0, impl=impl), x, kind=kind, severity=2)

  with jax.numpy_rank_promotion("raise"):
    assert jax.eval_shape(corrupt, images).shape == images.shape


def test_unknown_pixels_stay_unknown_in_shot_noise(images):
  x = images.copy()
  x[0, 3, 4, 1] = np.nan
  np.testing.assert_array_equal(np.isnan(_corrupt(x, "shot_noise", 1)), np.isnan(x))
  corrupt = jax.jit(lambda s: corrupt_images(KEY, x[1:], kind="contrast", severity=s))
  assert np.isnan(corrupt(0)).all() and np.isnan(corrupt(6)).all() and np.isfinite(corrupt(1)).all()


def test_gradients_are_finite(images):
  for kind in ("brightness", "fog", "elastic_transform", "defocus_blur"):
    x = jnp.asarray(images[:1, :8, :8]).at[0, 0, 0].set(0.0)
    loss = jax.jit(lambda x, kind=kind: corrupt_images(KEY, x, kind=kind, severity=2).sum())
    grads = jax.grad(loss)(x)
    assert np.isfinite(grads).all()


def test_errors(images):
  with pytest.raises(ValueError, match=r"'gaussian_noise', .*'jpeg_compression', got 'snow'"):
    corrupt_images(KEY, images, kind="snow", severity=1)
  with pytest.raises(ValueError, match=r"severity must lie in \[1, 5\], got 0"):
    corrupt_images(KEY, images, kind="fog", severity=0)
  with pytest.raises(ValueError, match="images must have shape"):
    corrupt_images(KEY, images[0], kind="fog", severity=1)
  with pytest.raises(TypeError, match="images must be of type float, got uint8"):
    corrupt_images(KEY, np.zeros((1, 8, 8, 3), np.uint8), kind="fog", severity=1)
