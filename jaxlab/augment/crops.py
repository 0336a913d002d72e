"""Random crops and mirror images of image batches."""

import chex
import jax
import jax.numpy as jnp


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
  chex.assert_rank(images, 4)
  if padding < 0:
    raise ValueError(f"padding must not be negative, got {padding}.")
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
  chex.assert_rank(images, 4)
  mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)
