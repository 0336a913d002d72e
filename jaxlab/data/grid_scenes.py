"""Small pictures of colored objects on a grid, whose content is known cell by cell."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_at_least, check_range
from jaxlab._programs import compiled_once

SCENE_SHAPES = ("circle", "square", "triangle", "star")
SCENE_COLORS = ("red", "green", "blue", "yellow", "purple")
SCENE_BACKGROUNDS = ("grass", "water", "night", "sand")
GRID_SIDE = 3
_CELL = 8  # Pixels.
_FRAMED_SHARE = 0.25
_NOISE = 0.04

_OBJECT_COLORS = np.array(
  [(0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9), (0.95, 0.9, 0.1), (0.6, 0.1, 0.7)], np.float32
)
_FRAME_COLOR = np.array((0.35, 0.2, 0.1), np.float32)
_PAPER_COLOR = np.array((0.95, 0.95, 0.95), np.float32)
_BACKGROUND_COLORS = np.array(
  [(0.3, 0.45, 0.2), (0.3, 0.5, 0.65), (0.1, 0.1, 0.2), (0.75, 0.65, 0.45)], np.float32
)


class SceneBatch(NamedTuple):
  """Pictures of a grid of 3 x 3 cells, and what is in them.

  Attributes:
    images: float32 `[b, 24, 24, 3]`, in [0, 1].
    shapes: shape in each cell, row by row, int32 `[b, 9]`: 0 circle, 1 square, 2 triangle, 3 star;
      -1 where the cell is empty.
    colors: color of the object, int32 `[b, 9]`: 0 red, 1 green, 2 blue, 3 yellow, 4 purple; -1
      where the cell is empty.
    framed: whether the cell shows a poster of the object in place of the object, bool `[b, 9]`.
    background: int32 `[b]`: 0 grass, 1 water, 2 night, 3 sand.
  """

  images: chex.Array
  shapes: chex.Array
  colors: chex.Array
  framed: chex.Array
  background: chex.Array


@compiled_once
def sample_grid_scenes(
  key: chex.PRNGKey, batch_size: int, *, object_rate: chex.Numeric = 0.5
) -> SceneBatch:
  """Draws pictures with an object, a poster of one, or nothing in each cell.

  Shapes, colors and backgrounds are uniform; a quarter of the objects are on posters.

  Args:
    key: random key.
    batch_size: number b of pictures.
    object_rate: probability that a cell is not empty, in (0, 1].

  Returns:
    A `SceneBatch`.

  Raises:
    ValueError: if `batch_size` is not positive or `object_rate` lies outside (0, 1].

  Reference: a setting in the manner of Qian et al., How Easy is It to Fool Your Multimodal LLMs?,
  2024, https://arxiv.org/abs/2402.13220.
  """
  check_at_least(1, batch_size=batch_size)
  check_range("object_rate", object_rate, "(0, 1]")
  keys = jax.random.split(key, 6)
  cells = (batch_size, GRID_SIDE**2)
  filled = jax.random.uniform(keys[0], cells) < object_rate
  shapes = jax.random.randint(keys[1], cells, 0, len(SCENE_SHAPES), jnp.int32)
  colors = jax.random.randint(keys[2], cells, 0, len(SCENE_COLORS), jnp.int32)
  framed = filled & jax.random.bernoulli(keys[3], _FRAMED_SHARE, cells)
  background = jax.random.randint(keys[4], (batch_size,), 0, len(SCENE_BACKGROUNDS), jnp.int32)
  side = GRID_SIDE * _CELL
  images = _images(shapes, colors, filled, framed, background)
  noise = jax.random.uniform(keys[5], (batch_size, side, side, 3), minval=-_NOISE, maxval=_NOISE)
  return SceneBatch(
    jnp.clip(images + noise, 0.0, 1.0),
    jnp.where(filled, shapes, -1),
    jnp.where(filled, colors, -1),
    framed,
    background,
  )


def _images(shapes, colors, filled, framed, background) -> jax.Array:
  """The pictures without noise."""
  side = GRID_SIDE * _CELL
  forms, border, textures = map(jnp.asarray, (_forms(), _border(), _textures()))
  batch = (len(shapes), GRID_SIDE, GRID_SIDE)
  ground = textures[background].reshape(len(shapes), GRID_SIDE, _CELL, GRID_SIDE, _CELL, 3)
  ground = ground.swapaxes(2, 3)  # Rows and columns of cells, then pixels.
  poster = jnp.where(border[..., None], _FRAME_COLOR[None, None], _PAPER_COLOR[None, None])
  is_poster = framed.reshape(*batch, 1, 1, 1)
  ground = jnp.where(is_poster, jnp.expand_dims(poster, (0, 1, 2)), ground)
  inside = (forms[shapes] & filled[..., None, None]).reshape(*batch, _CELL, _CELL, 1)
  paint = jnp.asarray(_OBJECT_COLORS)[colors].reshape(*batch, 1, 1, 3)
  pixels = jnp.where(inside, paint, ground)
  return pixels.swapaxes(2, 3).reshape(len(shapes), side, side, 3)


def _forms() -> np.ndarray:
  """Which pixels of a cell each shape covers, inside a border of one pixel: `[shapes, 8, 8]`."""
  axis = np.arange(_CELL) - (_CELL - 1) / 2
  x, y = np.abs(axis)[None, :], axis[:, None]
  inside = np.maximum(x, np.abs(y)) < _CELL / 2 - 1
  forms = [
    np.hypot(x, y) < 2.6,
    np.full_like(inside, True),
    x < 1 + (y + 2.5) // 2,
    np.abs(x - np.abs(y)) < 0.5,
  ]
  return np.stack([form & inside for form in forms])


def _border() -> np.ndarray:
  """The pixels of a cell that a poster's frame covers."""
  axis = np.abs(np.arange(_CELL) - (_CELL - 1) / 2)
  return np.maximum(axis[None, :], axis[:, None]) > _CELL / 2 - 1


def _textures() -> np.ndarray:
  """The four backgrounds: upright blades, waves, stars, grains; `[4, 24, 24, 3]`."""
  row, column = np.indices((GRID_SIDE * _CELL,) * 2)
  patterns = [
    0.1 * (column % 2),
    0.15 * np.sin(row * np.pi / 3),
    0.7 * ((7 * row + 11 * column) % 23 == 0),
    0.1 * ((row + column) % 3 == 0),
  ]
  return (_BACKGROUND_COLORS[:, None, None] + np.stack(patterns)[..., None]).astype(np.float32)
