"""Random changes of image batches."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import augment

KEY = jax.random.key(0)


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
