"""Random crops, mirror images and jitter of image batches."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_pair


class CropOutput(NamedTuple):
  """Crops, and where they come from.

  Attributes:
    images: the crops, `[b, size, size, channels]`.
    boxes: top, left, bottom and right as shares of the image's height and width, float32 `[b, 4]`.
  """

  images: chex.Array
  boxes: chex.Array


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


def random_resized_crop(
  key: chex.PRNGKey,
  images: chex.Array,
  *,
  size: int,
  scale: Sequence[chex.Numeric] = (0.08, 1.0),
  ratio: Sequence[chex.Numeric] = (0.75, 1.3333),
) -> CropOutput:
  """Cuts a box of random area, shape and position out of every image, and resizes it to a square.

  The usual augmentation of ImageNet training. Boxes begin and end between pixels, too.

  Args:
    key: random key.
    images: `[b, height, width, channels]`; integers give float32.
    size: side of the crops, in pixels.
    scale: smallest and largest area, as shares of the image's; drawn uniformly. The sides are cut
      to those of the image.
    ratio: smallest and largest width over height, in pixels; its logarithm is drawn uniformly.

  Returns:
    A `CropOutput`; the images in the dtype of `images`, resized bilinearly.

  Raises:
    ValueError: if `size` < 1, or `scale` or `ratio` is not two positive numbers of which the second
      is at least the first.

  Reference: Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6,
  https://arxiv.org/abs/1409.4842; Yun et al., Re-labeling ImageNet, CVPR 2021,
  https://arxiv.org/abs/2101.05022.
  """
  check_at_least(1, size=size)
  for name, ends in (("scale", scale), ("ratio", ratio)):
    check_pair(name, ends, "(0, inf)")
  check_arrays(images=(images, "[b, height, width, channels]"))
  images = jnp.asarray(images)
  dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
  rows, height, width, channels = images.shape
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  area = jax.random.uniform(area_key, (rows,), minval=scale[0], maxval=scale[1])
  log_ratio = jax.random.uniform(
    ratio_key, (rows,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])
  )
  # In shares of the image, whose own shape counts.
  aspect = jnp.exp(log_ratio) * (height / max(width, 1))
  sides = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=-1)
  sides = jnp.minimum(sides, 1.0)
  starts = jax.random.uniform(place_key, (rows, 2)) * (1 - sides)
  pixels = jnp.array([[height, width]], jnp.float32)

  def crop(image, start, side):
    zoom = size / side
    return jax.image.scale_and_translate(
      image, (size, size, channels), (0, 1), zoom, -start * zoom, method="linear"
    )

  crops = jax.vmap(crop)(as_accumulator(images), starts * pixels, sides * pixels)
  return CropOutput(crops.astype(dtype), jnp.concatenate([starts, starts + sides], axis=-1))


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
