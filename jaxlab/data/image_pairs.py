"""Pairs of small images, and which of the two has more of something."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_choice
from jaxlab.data.sources import as_arrays, load_source

_SPLITS = ("weak", "student", "test")


class ImagePairs(NamedTuple):
  """Pairs to compare.

  Attributes:
    first: images with values in [0, 1], `[n, 64]`.
    second: other images, `[n, 64]`.
    labels: 1 where the first one has the larger value, else 0, f32 `[n]`.
  """

  first: chex.Array
  second: chex.Array
  labels: chex.Array


class DigitImages(NamedTuple):
  """Images with values in [0, 1], f32 `[n, 64]`, and the digits that they show, i32 `[n]`."""

  images: np.ndarray
  digits: np.ndarray


def digit_images(split: str) -> DigitImages:
  """The images from which `digit_pairs` draws, for a network that is to know more than pairs say.

  Args:
    split: "weak", "student" or "test".

  Returns:
    `DigitImages`: 599 of them, in the order of their digits.

  Raises:
    ValueError: if the split is unknown.
    ImportError: if scikit-learn is needed, to prepare the digits, and missing.

  Reference: as `digit_pairs`.
  """
  check_choice("split", split, _SPLITS)
  return DigitImages(*_digits(split, "digit"))


def digit_pairs(
  key: chex.PRNGKey, *, num_pairs: int, split: str, objective: str = "digit"
) -> ImagePairs:
  """Draws pairs of scikit-learn's handwritten digits that differ in an objective.

  A ranker learns one objective from them while another one may pull against it. Images of the
  three splits are disjoint; they are the same for every key.

  Args:
    key: random key; ordered pairs are drawn uniformly, with replacement.
    num_pairs: number n of pairs.
    split: third of the images: "weak", for a weak supervisor; "student", for what it labels; or
      "test".
    objective: what is compared: "digit", the number that is shown, or "ink", the sum of the pixels.

  Returns:
    `ImagePairs`, in float32.

  Raises:
    ValueError: if `num_pairs` < 1, or the split or the objective is unknown.
    ImportError: if scikit-learn is needed, to prepare the digits, and missing.

  Reference: a small problem for Yang et al., Super(ficial)-alignment, ICLR 2025,
  https://arxiv.org/abs/2406.11431.
  """
  check_at_least(1, num_pairs=num_pairs)
  check_choice("split", split, _SPLITS)
  check_choice("objective", objective, ("digit", "ink"))
  images, values = _digits(split, objective)
  # In the order of their values, all images differ from one but a run around it.
  low, high = (np.searchsorted(values, values, side) for side in ("left", "right"))
  counts = len(values) - (high - low)
  ends = np.cumsum(counts)
  draws = jax.random.randint(key, (num_pairs,), 0, ends[-1])
  first = jnp.searchsorted(ends, draws, side="right")
  second = draws - jnp.asarray(ends - counts)[first]
  second += jnp.where(second < jnp.asarray(low)[first], 0, jnp.asarray(high - low)[first])
  images = jnp.asarray(images)
  return ImagePairs(images[first], images[second], (first > second).astype(jnp.float32))


@functools.cache
def _digits(split: str, objective: str) -> tuple[np.ndarray, np.ndarray]:
  """Images `[n, 64]` of a split, and their values `[n]`, which increase."""
  digits = as_arrays(load_source("digits", split="all"))
  rows = np.random.default_rng(0).permutation(np.argsort(digits["index"]))
  rows = np.split(rows, len(_SPLITS))[_SPLITS.index(split)]
  pixels, labels = digits["image"][rows].reshape(len(rows), -1), digits["label"][rows]
  values = labels if objective == "digit" else pixels.sum(1, dtype=np.int32)
  order = np.argsort(values, kind="stable")
  return np.float32(pixels[order] / 16), values[order].astype(np.int32)


def pool_pixels(images: chex.Array) -> jax.Array:
  """Means over squares of 2 by 2 pixels: what a weak model sees of an image.

  Args:
    images: images of 8 by 8 pixels, `[..., 64]`.

  Returns:
    Means row by row, `[..., 16]`, in float32 or wider.

  Raises:
    ValueError: if there are not 64 pixels.
  """
  check_arrays(images=(images, "[..., 64]"))
  images = as_accumulator(images)
  return jnp.mean(images.reshape(*images.shape[:-1], 4, 2, 4, 2), axis=(-3, -1)).reshape(
    *images.shape[:-1], 16
  )
