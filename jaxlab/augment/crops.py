"""Random crops, mirror images and jitter of image batches."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least


def random_crop(key: chex.PRNGKey, images: chex.Array, *, padding: int = 4) -> chex.Array:
  """Shifts every image by up to `padding` pixels along both axes, and fills with zeros.

  The usual augmentation of CIFAR training: pad, then crop to the original size.

  Args:
    key: random key.
    images: `[b, height, width, channels]`.
    padding: the largest shift, in pixels.

  Returns:
    Images of the shape of `images`.

  Raises:
    ValueError: if `padding` is negative.
  """
  check_at_least(0, padding=padding)
  check_arrays(images=(images, "[b, height, width, channels]"))
  images = jnp.asarray(images)
  starts = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
  padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  crop = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:]))
  return crop(padded, starts)


def random_flip(key: chex.PRNGKey, images: chex.Array) -> chex.Array:
  """Mirrors each image left to right with probability 1/2.

  Args:
    key: random key.
    images: `[b, height, width, channels]`.

  Returns:
    Images of the shape of `images`.
  """
  check_arrays(images=(images, "[b, height, width, channels]"))
  images = jnp.asarray(images)
  mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def jitter_images(key: chex.PRNGKey, images: chex.Array) -> jax.Array:
  """Perturbs each image as its class allows: gain, offset, shift, mirror image and a little noise.

  The parts of the color jitter, affine maps, flips and noise of test-time adaptation that need no
  interpolation: y = g x(shifted by s) + o + .005 noise, clipped to [0, 1], with g ~ U(.7, 1.3),
  o ~ U(-.1, .1), s ~ U{-2..2} in both directions (the edge values fill in); half of the images are
  mirrored. Every image draws its own.

  Args:
    key: random key.
    images: values in [0, 1], `[b, height, width, channels]`.

  Returns:
    The perturbed images, in the shape and dtype of `images`.

  Reference: Döbler et al., Robust Mean Teacher, CVPR 2023, section 3.3,
  https://arxiv.org/abs/2211.13081.
  """
  check_arrays(images=(images, "float [b, height, width, channels]"))
  images = jnp.asarray(images)
  gain_key, offset_key, shift_key, mirror_key, noise_key = jax.random.split(key, 5)
  rows, height, width, _ = images.shape
  per_row = (rows, 1, 1, 1)
  gain = jax.random.uniform(gain_key, per_row, images.dtype, 0.7, 1.3)
  offset = jax.random.uniform(offset_key, per_row, images.dtype, -0.1, 0.1)
  shifts = jax.random.randint(shift_key, (rows, 2), -2, 3)

  def shifted(image, shift):
    down = jnp.clip(jnp.arange(height) - shift[0], 0, height - 1)
    right = jnp.clip(jnp.arange(width) - shift[1], 0, width - 1)
    return image[down][:, right]

  moved = random_flip(mirror_key, jax.vmap(shifted)(images, shifts))
  noise = 0.005 * jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.clip(gain * moved + offset + noise, 0, 1)
