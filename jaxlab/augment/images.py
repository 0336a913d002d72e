"""Weak and strong views of image batches: shifts, rotations, gains, erased squares, pasted halves.

Every image of a batch draws its own perturbation. `random_shift` is a usual weak view,
`rand_augment` a strong one; both are called as `view(key, images)`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab.augment.boxes import box_mix
from jaxlab.augment.crops import random_crop

_MAX_DEGREES, _MAX_SHEAR, _MAX_SHARE, _MAX_SHIFT = 30.0, 0.3, 0.5, 0.25
_OPERATIONS = ("identity", "shift", "rotate", "shear", "gain", "contrast", "erase")


def rand_augment(
  key: chex.PRNGKey, images: chex.Array, *, num_ops: int = 3, max_magnitude: chex.Numeric = 1.0
) -> jax.Array:
  """Strong views: every image goes through random operations of random strength.

  An operation is one of: nothing, shift of both axes by .25 m of the height, rotation by 30 m
  degrees, shear by .3 m, gain 1 +- .5 m, contrast 1 +- .5 m around the image's mean, or erasing a
  square of side .5 m of the height; m ~ U(0, max_magnitude) per image and operation, with random
  signs. Zeros fill what enters and what is erased, so standardize images first, or scale them to
  start at 0.

  Args:
    key: random key.
    images: `[n, h, w, c]`, floats.
    num_ops: operations of every image, drawn with replacement, at least 0.
    max_magnitude: largest m, at least 0.

  Returns:
    The views, in the shape and dtype of `images`.

  Raises:
    ValueError: if `num_ops` or `max_magnitude` is negative.

  Reference: Cubuk et al., RandAugment, NeurIPS 2020, https://arxiv.org/abs/1909.13719; the
  operations are those that also suit small images of one channel.
  """
  check_at_least(0, num_ops=num_ops)
  check_range("max_magnitude", max_magnitude, "[0, inf)")
  check_arrays(images=(images, "float [n, h, w, c]"))
  images = jnp.asarray(images)
  uniform = jax.random.uniform(key, (num_ops, 6, len(images)))
  views = as_accumulator(images)
  for i in range(num_ops):
    views = _operate(views, uniform[i], max_magnitude)
  return views.astype(images.dtype)


def _operate(images: jax.Array, uniform: jax.Array, max_magnitude: chex.Numeric) -> jax.Array:
  """One operation of every image; parameters of all others are those that change nothing."""
  height, width = images.shape[1:3]
  kind = jnp.floor(len(_OPERATIONS) * uniform[0]).astype(jnp.int32)
  magnitude = uniform[1] * max_magnitude
  signs = jnp.where(uniform[2:4] < 0.5, -1.0, 1.0)

  def amount(name, scale):
    return jnp.where(kind == _OPERATIONS.index(name), scale * magnitude, 0.0)

  steps = jnp.round(amount("shift", _MAX_SHIFT * height))
  angles = jnp.deg2rad(amount("rotate", _MAX_DEGREES)) * signs[0]
  moved = _warp(images, angles, amount("shear", _MAX_SHEAR) * signs[0], steps[None] * signs)
  per_image = (len(images), 1, 1, 1)
  mean = jnp.mean(moved, axis=(1, 2, 3), keepdims=True)
  contrast = (1.0 + amount("contrast", _MAX_SHARE) * signs[0]).reshape(per_image)
  changed = kind == _OPERATIONS.index("contrast")
  moved = jnp.where(changed.reshape(per_image), mean + contrast * (moved - mean), moved)
  moved = moved * (1.0 + amount("gain", _MAX_SHARE) * signs[0]).reshape(per_image)
  sides = jnp.round(amount("erase", _MAX_SHARE * height)).astype(jnp.int32)
  sides = jnp.minimum(sides, min(height, width))
  return jnp.where(_squares(uniform[4:], sides, height, width), 0.0, moved)


def random_shift(key: chex.PRNGKey, images: chex.Array, *, max_shift: int) -> jax.Array:
  """Shifts every image by whole pixels, uniformly up to a limit on both axes; zeros enter.

  It is `random_crop`, which names the limit after the padding of CIFAR's training.

  Args:
    key: random key.
    images: `[n, h, w, c]`.
    max_shift: the largest shift in pixels, at least 0.

  Returns:
    The shifted images, in the shape and dtype of `images`.

  Raises:
    ValueError: if `max_shift` is negative.
  """
  check_at_least(0, max_shift=max_shift)
  return random_crop(key, images, padding=max_shift)


def random_rotate_shear(
  key: chex.PRNGKey,
  images: chex.Array,
  *,
  max_degrees: chex.Numeric,
  max_shear: chex.Numeric,
) -> jax.Array:
  """Rotates and shears every image about its center, with bilinear interpolation.

  Args:
    key: random key.
    images: `[n, h, w, c]`, floats; zeros lie outside.
    max_degrees: angles are uniform in +- this, at least 0.
    max_shear: columns move by a uniform share of +- this of the rows' distance from the center, at
      least 0.

  Returns:
    The images, in the shape and dtype of `images`.

  Raises:
    ValueError: if `max_degrees` or `max_shear` is negative.
  """
  check_range("max_degrees", max_degrees, "[0, inf)")
  check_range("max_shear", max_shear, "[0, inf)")
  check_arrays(images=(images, "float [n, h, w, c]"))
  images = jnp.asarray(images)
  shares = jax.random.uniform(key, (2, len(images)), minval=-1.0, maxval=1.0)
  angles, shears = jnp.deg2rad(shares[0] * max_degrees), shares[1] * max_shear
  still = jnp.zeros((2, len(images)))
  return _warp(as_accumulator(images), angles, shears, still).astype(images.dtype)


def _warp(images: jax.Array, angles: jax.Array, shears: jax.Array, shifts: jax.Array) -> jax.Array:
  """Rotates by radians, shears and shifts `[2, n]` each image; zeros lie outside."""
  height, width = images.shape[1:3]
  center_down, center_right = (height - 1) / 2, (width - 1) / 2
  down, right = jnp.meshgrid(
    jnp.arange(height) - center_down, jnp.arange(width) - center_right, indexing="ij"
  )

  def one(image, angle, shear, shift):
    # Where each pixel of the result comes from.
    rows, columns = down - shift[0], right - shift[1]
    columns = columns + shear * rows
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = (cos * rows + sin * columns + center_down, cos * columns - sin * rows + center_right)

    def channel(plane):
      return jax.scipy.ndimage.map_coordinates(plane, source, order=1, mode="constant", cval=0.0)

    return jax.vmap(channel, -1, -1)(image)

  return jax.vmap(one, (0, 0, 0, 1))(images, angles, shears, shifts)


def random_erase(
  key: chex.PRNGKey, images: chex.Array, *, size: int, fill_value: chex.Numeric = 0.0
) -> jax.Array:
  """Erases a square of every image, anywhere inside it.

  Args:
    key: random key.
    images: `[n, h, w, c]`.
    size: side of the square in pixels, from 0 to the shorter side of the images.
    fill_value: value in the square.

  Returns:
    The images, in the shape and dtype of `images`.

  Raises:
    ValueError: if `size` is negative or a square does not fit.

  Reference: DeVries and Taylor, Cutout, 2017, https://arxiv.org/abs/1708.04552, whose squares may
  stand out of the image.
  """
  check_at_least(0, size=size)
  check_arrays(images=(images, "[n, h, w, c]"))
  images = jnp.asarray(images)
  height, width = images.shape[1:3]
  if size > min(height, width):
    raise ValueError(f"size must be at most {min(height, width)}, the shorter side, got {size}.")
  uniform = jax.random.uniform(key, (2, len(images)))
  squares = _squares(uniform, jnp.full(len(images), size, jnp.int32), height, width)
  return jnp.where(squares, jnp.asarray(fill_value, images.dtype), images)


def _squares(uniform: jax.Array, sides: jax.Array, height: int, width: int) -> jax.Array:
  """Whether pixels lie in a square of each image, placed by uniform draws `[2, n]`."""

  def along(draws, length):
    starts = jnp.floor(draws * (length - sides + 1)).astype(jnp.int32)[:, None]
    places = jnp.arange(length)[None]
    return (places >= starts) & (places < starts + sides[:, None])

  rows, columns = along(uniform[0], height), along(uniform[1], width)
  return (rows[:, :, None] & columns[:, None])[..., None]


def random_gain(
  key: chex.PRNGKey, images: chex.Array, *, low: chex.Numeric, high: chex.Numeric
) -> jax.Array:
  """Multiplies every image by a random factor.

  Args:
    key: random key.
    images: floats, `[n, ...]`.
    low: smallest factor.
    high: largest factor, at least `low`.

  Returns:
    The images, in the shape and dtype of `images`.

  Raises:
    ValueError: if a known `low` exceeds a known `high`.
  """
  if not isinstance(low, jax.Array):
    check_range("high", high, f"[{low}, inf)")
  check_arrays(images=(images, "float [n, ...]"))
  images = jnp.asarray(images)
  share = jax.random.uniform(key, (len(images), *(1,) * (images.ndim - 1)))
  return (as_accumulator(images) * (low + (high - low) * share)).astype(images.dtype)


def paste_half(key: chex.PRNGKey, images: chex.Array, others: chex.Array) -> jax.Array:
  """Replaces half of every image by that of another view.

  Half of the images get the left half of the other view, the rest the top half. A signal gets the
  first half of the other signal.

  Args:
    key: random key; not read for signals.
    images: `[n, h, w, c]`, or signals `[n, t, c]`.
    others: other views of the same examples, of the same shape.

  Returns:
    The pasted views, in the shape and dtype of `images`; of an odd side the smaller part is
    replaced.

  Reference: Gui et al., Enhancing Sample Utilization through Sample Adaptive Augmentation in
  Semi-Supervised Learning, ICCV 2023, https://arxiv.org/abs/2309.03598.
  """
  is_signal = np.ndim(images) == 3
  form = "[n, t, c]" if is_signal else "[n, h, w, c]"
  check_arrays(images=(images, form), others=(others, form))
  n, *sides, _ = np.shape(images)
  halves = [jnp.arange(side) < side // 2 for side in sides]
  if is_signal:
    masks = jnp.broadcast_to(halves[0][None], (n, *sides))
  else:
    left = jax.random.bernoulli(key, 0.5, (n, 1, 1))
    masks = jnp.where(left, halves[1][None, None], halves[0][None, :, None])
  return box_mix(images, others, masks).images


def adaptive_strong_views(
  key: chex.PRNGKey,
  images: chex.Array,
  naive: chex.Array,
  *,
  strong_fn: Callable[[chex.PRNGKey, chex.Array], chex.Array],
) -> jax.Array:
  """Strong views, and for examples that these no longer teach, two of them pasted together.

  Args:
    key: random key.
    images: `[n, h, w, c]`, or signals `[n, t, c]`.
    naive: which examples are classified confidently after strong augmentation, too, bool `[n]`;
      such as `algorithms.sample_adaptive_augmentation` finds them.
    strong_fn: `(key, images) -> images`, drawing for each image by itself. It is called twice.

  Returns:
    `paste_half` of two views where an example is naive, else the first of them, which is the same
    whatever `naive` says.

  Reference: Gui et al., ICCV 2023, section 3.3, https://arxiv.org/abs/2309.03598.
  """
  check_arrays(images=(images, "[n, ..., c]"), naive=(naive, "[n]"))
  first_key, second_key, paste_key = jax.random.split(key, 3)
  first = jnp.asarray(strong_fn(first_key, images))
  pasted = paste_half(paste_key, first, strong_fn(second_key, images))
  chosen = jnp.asarray(naive).astype(bool).reshape(-1, *(1,) * (first.ndim - 1))
  return jnp.where(chosen, pasted, first)
