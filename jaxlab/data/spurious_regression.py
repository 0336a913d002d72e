"""Regression from images whose color is spuriously correlated with the target."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range

_SIZE = 16


class RotatedDigits(NamedTuple):
  """Images `[n, 16, 16, 3]`, rotation in degrees `[n]` (the target), color in [0, 1] `[n]`."""

  images: jax.Array
  degrees: jax.Array
  colors: jax.Array


def rotated_digits(
  key: chex.PRNGKey,
  images: chex.Array,
  *,
  spurious_prob: float = 0.8,
  max_degrees: float = 60.0,
) -> RotatedDigits:
  """Rotates digits by a random angle and colors them by it, or by its opposite.

  The color is the easier cue. If the test set reverses its correlation with the angle, only a model
  that uses the rotation does well.

  Args:
    key: random key.
    images: gray digits, `[n, 8, 8]`.
    spurious_prob: probability that the color encodes the angle (else it encodes the opposite).
    max_degrees: angles are uniform between 0 and this, counter-clockwise.

  Returns:
    `RotatedDigits`. The channels are the image times color, 1/2 and 1 - color, the color being
    angle / max_degrees, or 1 minus it.

  Raises:
    ValueError: if `spurious_prob` lies outside [0, 1], `max_degrees` is not in (0, 360], or the
      images are not `[n, 8, 8]`.

  Reference: after RCF-MNIST of Yao et al., C-Mixup, NeurIPS 2022, appendix D,
  https://arxiv.org/abs/2210.05775.
  """
  check_range("spurious_prob", spurious_prob, "[0, 1]")
  check_range("max_degrees", max_degrees, "(0, 360]")
  images = as_accumulator(images)
  check_arrays(images=(images, "[n, 8, 8]"))
  num = images.shape[0]
  angle_key, color_key = jax.random.split(key)
  shares = jax.random.uniform(angle_key, (num,), images.dtype)
  honest = jax.random.bernoulli(color_key, spurious_prob, (num,))
  colors = jnp.where(honest, shares, 1 - shares)
  large = jax.image.resize(images, (num, _SIZE, _SIZE), "bilinear")
  turned = jax.vmap(_rotate)(large, jnp.deg2rad(shares * max_degrees))
  tint = jnp.stack([colors, jnp.full_like(colors, 0.5), 1 - colors], axis=-1)
  return RotatedDigits(turned[..., None] * tint[:, None, None], shares * max_degrees, colors)


def _rotate(image: jax.Array, radians: jax.Array) -> jax.Array:
  """Turns one image about its middle; rows point down."""
  center = (_SIZE - 1) / 2
  down, right = jnp.meshgrid(jnp.arange(_SIZE) - center, jnp.arange(_SIZE) - center, indexing="ij")
  cos, sin = jnp.cos(radians), jnp.sin(radians)
  # Where each pixel of the result comes from.
  source = jnp.stack([cos * down + sin * right, cos * right - sin * down]) + center
  return jax.scipy.ndimage.map_coordinates(image, source, order=1, mode="constant", cval=0.0)
