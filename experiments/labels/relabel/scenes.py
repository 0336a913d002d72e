"""Scenes of several digits with one label each, and what a crop of one shows."""

import functools

import chex
import jax
import jax.numpy as jnp

from experiments.kit import datasets
from jaxlab import data
from jaxlab.data.canvas import CanvasBatch

NUM_CLASSES = 10
_LENGTHS = 3.0, 7.0  # Of distractor strokes, in pixels of a canvas of 24.
_SIDE = 24


def draw(config, seed: int) -> dict[str, CanvasBatch]:
  """The canvases of a seed; no digit is in two of training, validation and test.

  The annotator's own hold one digit and strokes, training scenes several digits. Both are made of
  the same digits.
  """
  splits = datasets.describe("digits").splits(*config.num_digits, seed=seed)
  return jax.device_get(_draw(config, jax.random.key(seed), splits))


@functools.partial(jax.jit, static_argnums=0)
def _draw(config, key, splits) -> dict[str, CanvasBatch]:
  *keys, stroke_key = jax.random.split(key, 5)
  train, validation, test = splits
  several = config.num_objects
  parts = {
    "own": (train, config.num_canvases, 1),
    "train": (train, config.num_train, several),
    "validation": (validation, config.num_validation, several),
    "test": (test, config.num_test, several),
  }
  scenes = {}
  for key, (name, (digits, num, num_objects)) in zip(keys, parts.items()):
    scenes[name] = data.sample_canvas(
      key,
      digits.inputs[..., 0],
      digits.labels,
      batch_size=num,
      size=config.size,
      num_objects=num_objects,
      scale=config.object_scale,
    )
  own = scenes["own"]
  ink = strokes(stroke_key, len(own.images), size=config.size, num_strokes=config.num_strokes)
  scenes["own"] = own._replace(images=jnp.maximum(own.images, ink))
  return {x: y._replace(label_maps=y.label_maps.astype(jnp.int8)) for x, y in scenes.items()}


def strokes(key: chex.PRNGKey, num: int, *, size: int, num_strokes: int) -> jax.Array:
  """Images `[num, size, size, 1]` of random line segments, about two pixels wide."""
  start_key, angle_key, length_key = jax.random.split(key, 3)
  shape = (num, num_strokes, 1)
  start = size * jax.random.uniform(start_key, (num, num_strokes, 2))
  angle = jax.random.uniform(angle_key, shape, maxval=2 * jnp.pi)
  low, high = (length * size / _SIDE for length in _LENGTHS)
  length = jax.random.uniform(length_key, shape, minval=low, maxval=high)
  direction = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  centers = jnp.stack(jnp.meshgrid(*[jnp.arange(size) + 0.5] * 2, indexing="ij"), axis=-1)

  def one(start, direction, length):
    """Ink of one segment: what of a pixel lies within a pixel of it, about."""
    gaps = centers - start
    along = jnp.clip(gaps @ direction, 0, length)
    distance = jnp.linalg.norm(gaps - along[..., None] * direction, axis=-1)
    return jnp.clip(1.5 - distance, 0, 1)

  return jnp.max(jax.vmap(jax.vmap(one))(start, direction, length[..., 0]), axis=1)[..., None]


def visible_areas(label_maps: chex.Array, boxes: chex.Array) -> jax.Array:
  """Pixels `[n, k]` that each class covers inside the box of a crop; shares of pixels count.

  Args:
    label_maps: class of each pixel, -1 for the background, int `[n, s, s]`.
    boxes: top, left, bottom, right as shares of the side, `[n, 4]`.
  """
  size = label_maps.shape[1]
  edges = jnp.arange(size)[None]

  def shares(start, end):
    start, end = (x[:, None] * size for x in (start, end))
    return jnp.clip(jnp.minimum(end, edges + 1) - jnp.maximum(start, edges), 0, 1)

  rows, columns = shares(boxes[:, 0], boxes[:, 2]), shares(boxes[:, 1], boxes[:, 3])
  return jnp.einsum("nh,nw,nhwk->nk", rows, columns, jax.nn.one_hot(label_maps, NUM_CLASSES))


def whole_boxes(num: int) -> jax.Array:
  """Boxes `[num, 4]` of crops that leave nothing out."""
  return jnp.tile(jnp.array([[0.0, 0.0, 1.0, 1.0]]), (num, 1))


def object_cells(label_maps: chex.Array, grid: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Classes of the objects, and the rows and columns of their centers in a coarser grid.

  An object never leaves its quarter of the scene.

  Args:
    label_maps: class of each pixel, -1 for the background, int `[n, s, s]`.
    grid: side of the coarser grid.

  Returns:
    Three arrays `[n, 4]`; the class is -1 of a quarter without an object.
  """
  num, size, _ = label_maps.shape
  half = size // 2
  quarters = jnp.swapaxes(label_maps.reshape(num, 2, half, 2, half), 2, 3)
  quarters = quarters.reshape(num, 4, half, half)
  inside = (quarters >= 0).astype(jnp.float32)
  total = jnp.maximum(jnp.sum(inside, axis=(2, 3)), 1)
  centers, corners = jnp.arange(half) + 0.5, half * jnp.arange(2)

  def cells(axis, corner):
    mean = jnp.sum(jnp.sum(inside, axis=axis) * centers, axis=-1) / total
    return jnp.floor((mean + corner[None]) * grid / size).astype(jnp.int32)

  rows, columns = cells(3, jnp.repeat(corners, 2)), cells(2, jnp.tile(corners, 2))
  return jnp.max(quarters, axis=(2, 3)), rows, columns
