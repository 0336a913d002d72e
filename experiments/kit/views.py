"""Weak and strong views of images and signals, for semi-supervised and contrastive training."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.kit.datasets import Dataset
from jaxlab import augment

ViewFn = Callable[[chex.PRNGKey, chex.Array], chex.Array]


class ViewFns(NamedTuple):
  """How views of rows `[n, ...]` are made.

  Attributes:
    weak: `(key, inputs) -> inputs of the network`, for guesses and labeled rows.
    strong: likewise, for rows that learn a guess.
    clean: `inputs -> inputs of the network`, for evaluation; a waveform's spectrogram, say.
  """

  weak: ViewFn
  strong: ViewFn
  clean: Callable[[chex.Array], chex.Array] = lambda inputs: inputs


def views_of(dataset: Dataset, *, magnitude: chex.Numeric = 1.0) -> ViewFns:
  """The usual views of a set.

  Args:
    dataset: its description.
    magnitude: strength of what strong views do beyond weak ones.
  """
  weak, strong = (shift_images, jitter_images) if dataset.is_image else (shift_signals, jitter)
  return ViewFns(weak, lambda key, inputs: strong(key, inputs, magnitude=magnitude))


def shift_images(key: chex.PRNGKey, images: chex.Array) -> jax.Array:
  """Moved by up to an eighth of the height along both axes; zeros enter."""
  return augment.random_shift(key, images, max_shift=images.shape[1] // 8)


def augment_images(key: chex.PRNGKey, images: chex.Array) -> jax.Array:
  """A shift, and the random operations of `rand_augment`."""
  shift_key, other_key = jax.random.split(key)
  return augment.rand_augment(other_key, shift_images(shift_key, images))


def jitter_images(
  key: chex.PRNGKey, images: chex.Array, *, magnitude: chex.Numeric = 1.0
) -> jax.Array:
  """Shift, rotation by up to 20 degrees, gain 1 +- .3, and a square of 3/8 of the height erased.

  The magnitude multiplies the angle and the gain.
  """
  shift_key, turn_key, gain_key, erase_key = jax.random.split(key, 4)
  views = shift_images(shift_key, images)
  views = augment.random_rotate_shear(turn_key, views, max_degrees=20 * magnitude, max_shear=0.0)
  gain = 0.3 * magnitude
  views = augment.random_gain(gain_key, views, low=1 - gain, high=1 + gain)
  return augment.random_erase(erase_key, views, size=3 * images.shape[1] // 8)


def shift_signals(key: chex.PRNGKey, signals: chex.Array, *, max_shift: int = 2) -> jax.Array:
  """Moved by up to two steps; zeros enter."""
  num, length, _ = signals.shape
  shifts = jax.random.randint(key, (num, 1, 1), -max_shift, max_shift + 1)
  source = jnp.arange(length)[:, None] - shifts
  moved = jnp.take_along_axis(signals, jnp.clip(source, 0, length - 1), axis=1)
  return jnp.where((source >= 0) & (source < length), moved, 0.0)


def jitter(key: chex.PRNGKey, signals: chex.Array, *, magnitude: chex.Numeric = 1.0) -> jax.Array:
  """Shift, gain 1 +- .4, noise of deviation .2, and a window of 8 steps zeroed.

  The magnitude multiplies gain, deviation and window.
  """
  num, length, _ = signals.shape
  shift_key, uniform_key, noise_key = jax.random.split(key, 3)
  gain, place = jax.random.uniform(uniform_key, (2, num, 1, 1))
  views = shift_signals(shift_key, signals) * (1 + 0.4 * magnitude * (2 * gain - 1))
  views += 0.2 * magnitude * jax.random.normal(noise_key, signals.shape)
  window = jnp.minimum(jnp.round(8 * magnitude), length)
  start = jnp.floor(place * (length - window + 1))
  steps = jnp.arange(length)[:, None]
  return jnp.where((steps >= start) & (steps < start + window), 0.0, views)
