"""Small colored scenes with textured shapes, and the mask of each shape's family."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry

_NUM_FAMILIES = 12
_HUE_WIDTH = 1 / 8
_CHUNK = 128


class Scenes(NamedTuple):
  """Images and their segmentation masks.

  Attributes:
    images: f32 `[n, size, size, 3]`, in [0, 1] before noise is added.
    masks: 0 for the background, else 1 + the family, i32 `[n, size, size]`.
  """

  images: chex.Array
  masks: chex.Array


@compiled_once
def sample_shape_scenes(
  key: chex.PRNGKey,
  *,
  num_samples: int,
  classes: Sequence[int],
  size: int = 32,
  clutter: int = 2,
  noise: chex.Numeric = 0.1,
) -> Scenes:
  """Draws scenes of shapes on a textured background.

  Families 0 to 11: disc, ring, square, frame, triangle, cross, bar, L, T, star, ellipse, grid. A
  family has a form, an interval of hues that overlaps those of its two neighbors on the color
  circle, and a frequency of stripes; place, size, rotation and hue are drawn.

  Args:
    key: random key.
    num_samples: number n of scenes.
    classes: families that may appear; every shape's is drawn from them.
    size: height and width, in pixels.
    clutter: shapes beside the first one; later ones hide earlier ones.
    noise: standard deviation of the pixels' Gaussian noise.

  Returns:
    `Scenes`.

  Raises:
    ValueError: if `classes` is empty or holds anything but 0 to 11, `num_samples` or `size` < 1,
      or `clutter` or `noise` < 0.
  """
  classes = tuple(int(c) for c in classes)
  if not classes or min(classes) < 0 or max(classes) >= _NUM_FAMILIES:
    raise ValueError(f"classes must be families in 0..{_NUM_FAMILIES - 1}, got {classes}.")
  check_at_least(1, num_samples=num_samples, size=size)
  check_at_least(0, clutter=clutter)
  check_range("noise", noise, "[0, inf)")
  families = jnp.asarray(classes)
  axis = (jnp.arange(size) + 0.5) / size * 2 - 1
  grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="xy"), axis=-1)

  def scene(key):
    background_key, noise_key, shapes_key = jax.random.split(key, 3)

    def paint(scene, key):
      family_key, place_key = jax.random.split(key)
      family = jax.random.choice(family_key, families)
      inside, colors = _shape(place_key, family, grid)
      image = jnp.where(inside[..., None], colors, scene.images)
      return Scenes(image, jnp.where(inside, family + 1, scene.masks)), None

    empty = Scenes(_background(background_key, grid), jnp.zeros((size, size), jnp.int32))
    keys = jax.random.split(shapes_key, 1 + clutter)
    (image, mask), _ = jax.lax.scan(paint, varying_carry(paint, empty, keys), keys)
    return Scenes(image + noise * jax.random.normal(noise_key, image.shape), mask)

  keys = jax.random.split(key, num_samples)
  return jax.lax.map(scene, keys, batch_size=min(num_samples, _CHUNK))


def _background(key: chex.PRNGKey, grid: jax.Array) -> jax.Array:
  """Two gratings over a dull color."""
  color_key, wave_key, phase_key = jax.random.split(key, 3)
  color = jax.random.uniform(color_key, (3,), minval=0.3, maxval=0.7)
  waves = 4 * jax.random.normal(wave_key, (2, 2))
  phases = jax.random.uniform(phase_key, (2,), maxval=2 * jnp.pi)
  texture = jnp.sum(jnp.sin(grid @ waves.T + phases[None, None]), axis=-1, keepdims=True)
  return color[None, None] + 0.1 * texture


def _shape(key: chex.PRNGKey, family: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which pixels one shape covers, and its colors there."""
  keys = jax.random.split(key, 6)
  center = jax.random.uniform(keys[0], (2,), minval=-0.5, maxval=0.5)
  radius = jax.random.uniform(keys[1], minval=0.5, maxval=0.85)
  angle = jax.random.uniform(keys[2], maxval=2 * jnp.pi)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  local = (grid - center[None, None]) @ jnp.array([[cos, -sin], [sin, cos]]) / radius
  # Steps of five around the twelve hues, so that consecutive families do not have adjacent hues.
  shift = jax.random.uniform(keys[3], minval=-0.5, maxval=0.5) * _HUE_WIDTH
  hue = 5 * family / _NUM_FAMILIES + shift
  frequency = 1.0 + 0.3 * (7 * family % _NUM_FAMILIES)
  phase = jax.random.uniform(keys[4], maxval=2 * jnp.pi)
  stripes = jnp.sin(frequency * jnp.pi * local[..., 0] + phase)
  value = jax.random.uniform(keys[5], minval=0.6, maxval=0.8) + 0.2 * stripes
  return _inside(local[..., 0], local[..., 1])[..., family], _rgb(hue, 0.7, value)


def _inside(x: jax.Array, y: jax.Array) -> jax.Array:
  """Whether points of the square [-1, 1]^2 lie in each family's form, `[..., families]`."""
  ax, ay, r = jnp.abs(x), jnp.abs(y), jnp.hypot(x, y)
  square = jnp.maximum(ax, ay)
  petals = 0.65 + 0.35 * jnp.cos(5 * jnp.arctan2(y, x))
  forms = [
    r < 0.9,
    (r < 1.0) & (r > 0.5),
    square < 0.8,
    (square < 0.9) & (square > 0.45),
    (y > -0.7) & (y + 1.8 * ax < 1.0),
    (jnp.minimum(ax, ay) < 0.3) & (square < 0.95),
    (ax < 1.0) & (ay < 0.35),
    (square < 0.9) & ((x < -0.3) | (y < -0.3)),
    (square < 0.9) & ((y > 0.3) | (ax < 0.3)),
    r < petals,
    jnp.square(x) + jnp.square(y / 0.55) < 1.0,
    (square < 1.0) & ((jnp.abs(ax - 0.5) < 0.2) | (jnp.abs(ay - 0.5) < 0.2)),
  ]
  return jnp.stack(forms, axis=-1)


def _rgb(hue: jax.Array, saturation: float, value: jax.Array) -> jax.Array:
  """Colors of one hue, in turns, with the brightness `value` `[h, w]`."""
  distance = jnp.abs(jnp.mod(6 * hue + jnp.array([0.0, 4.0, 2.0]), 6) - 3) - 1
  color = 1 - saturation * (1 - jnp.clip(distance, 0, 1))
  return value[..., None] * color[None, None]
