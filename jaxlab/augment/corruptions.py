"""Corruptions of signals at five severities, and streams of corrupted batches."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_choice, check_range
from jaxlab.augment.image_corruptions import corrupt_images
from jaxlab.augment.interpolation import batch_labels
from jaxlab.augment.signals import blur_signals

# The constant of each kind at severities 1 to 5; the order is that of a stream.
_CONSTANTS = {
  "gaussian_noise": (0.2, 0.4, 0.6, 0.8, 1.0),
  "shot_noise": (0.2, 0.4, 0.6, 0.8, 1.0),
  "impulse_noise": (0.02, 0.04, 0.07, 0.11, 0.16),
  "blur": (0.5, 0.75, 1.0, 1.5, 2.0),
  "motion": (2, 3, 4, 5, 7),
  "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
  "brightness": (0.3, 0.6, 0.9, 1.2, 1.5),
  "drift": (0.5, 1.0, 1.5, 2.0, 3.0),
  "elastic": (0.5, 1.0, 1.5, 2.0, 3.0),
  "pixelate": (2, 3, 4, 5, 6),
  "quantize": (0.25, 0.5, 0.75, 1.0, 1.5),
  "occlusion": (3, 5, 7, 9, 12),
}

SIGNAL_CORRUPTIONS = tuple(_CONSTANTS)


class CorruptionStream(NamedTuple):
  """Batches of one corruption after the other, in the order of the stream.

  Attributes:
    inputs: the corrupted batches, `[m, b, ...]`.
    labels: their labels, `[m, b, ...]`.
  """

  inputs: chex.Array
  labels: chex.ArrayTree


def corrupt_signals(
  key: chex.PRNGKey, signals: chex.Array, *, kind: str, severity: chex.Numeric
) -> jax.Array:
  """Corrupts standardized signals, the one-dimensional counterpart of common image corruptions.

  With constants c at severities 1 to 5:

  - gaussian_noise: x + c ε, c = .2, .4, .6, .8, 1;
  - shot_noise: x + c sqrt(abs(x) + .1) ε, c as before;
  - impulse_noise: with probability .02, .04, .07, .11, .16 a value becomes 3 or -3;
  - blur: Gaussian kernel of standard deviation .5, .75, 1, 1.5, 2;
  - motion: mean of the last 2, 3, 4, 5, 7 values;
  - contrast: mean over time + c (x - mean), c = .75, .5, .4, .3, .15;
  - brightness: x + c, c = .3, .6, .9, 1.2, 1.5;
  - drift: x + c u (2t / (T - 1) - 1), u ~ U(-1, 1) per row, c = .5, 1, 1.5, 2, 3;
  - elastic: the value at t + c sin(2π(2t / T + φ)), linearly interpolated, φ ~ U(0, 1) per row, c
    as before;
  - pixelate: blocks of 2, 3, 4, 5, 6 values become their mean (the last block may be short);
  - quantize: c round(x / c), c = .25, .5, .75, 1, 1.5;
  - occlusion: a run of 3, 5, 7, 9, 12 values at a uniform start becomes 0, in every channel.

  Where a window reaches past an end, the edge value is repeated.

  Args:
    key: random key; deterministic kinds ignore it.
    signals: standardized signals, `[b, T, c]`.
    kind: one of `SIGNAL_CORRUPTIONS`.
    severity: an integer in 1..5, which may be traced; outside, a traced one gives NaN.

  Returns:
    The corrupted signals, in the shape and dtype of `signals`.

  Raises:
    ValueError: if the kind is unknown (the message lists the names), `severity` lies outside 1..5,
      or the signals are shorter than the longest run of an occlusion.

  Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
  and Perturbations, ICLR 2019, https://arxiv.org/abs/1903.12261, for images.
  """
  check_choice("kind", kind, _CONSTANTS)
  check_range("severity", severity, "[1, 5]")
  check_arrays(signals=(signals, "float [b, T, c]"), severity=(severity, "int []"))
  signals = jnp.asarray(signals)
  longest = max(_CONSTANTS["occlusion"])
  if kind == "occlusion" and signals.shape[1] < longest:
    raise ValueError(
      f"kind 'occlusion' needs signals of at least {longest} values, got {signals.shape[1]}."
    )
  return _corrupted(key, signals, jnp.asarray(severity), kind)


@partial(jax.jit, static_argnames="kind")
def _corrupted(key, signals, severity, kind):
  """One program per kind: the constant is looked up, so that severities share the program."""
  constant = jnp.asarray(_CONSTANTS[kind])[jnp.clip(severity, 1, 5) - 1]
  corrupted = _FUNCTIONS[kind](key, as_accumulator(signals), constant)
  known = (severity >= 1) & (severity <= 5)
  return jnp.where(known, corrupted, jnp.nan).astype(signals.dtype)


def corruption_stream(
  key: chex.PRNGKey,
  signals: chex.Array,
  labels: chex.ArrayTree,
  *,
  kinds: Sequence[str],
  severities: Sequence[int],
  batch_size: int,
) -> CorruptionStream:
  """Builds the stream of batches in which one corruption follows another.

  Every kind goes through all severities before the next begins: `severities=(5,)` is the continual
  stream, `(1, 2, 3, 4, 5, 4, 3, 2, 1)` the gradual one. Each kind at each severity shows all
  samples once, in a new random order; an incomplete batch is dropped.

  Args:
    key: random key for the orders and the corruptions.
    signals: clean, standardized signals, `[n, T, c]`, or images in [0, 1], `[n, h, w, c]`.
    labels: their labels, pytree of arrays `[n, ...]`.
    kinds: names from `SIGNAL_CORRUPTIONS` (for images, `IMAGE_CORRUPTIONS`), in order; names may
      repeat.
    severities: integers in 1..5, in order.
    batch_size: number b of rows per batch, at most n.

  Returns:
    A `CorruptionStream` of m = kinds x severities x floor(n / b) batches.

  Raises:
    ValueError: if `batch_size` lies outside [1, n], `kinds` or `severities` is empty, or for the
      reasons of `corrupt_signals` and `corrupt_images`.

  Reference: Döbler et al., Robust Mean Teacher, CVPR 2023, section 4,
  https://arxiv.org/abs/2211.13081.
  """
  is_images = np.ndim(signals) == 4
  check_arrays(signals=(signals, "float [n, h, w, c]" if is_images else "float [n, T, c]"))
  signals = jnp.asarray(signals)
  labels = batch_labels(labels, len(signals))
  if not 1 <= batch_size <= len(signals):
    raise ValueError(f"batch_size must lie in [1, {len(signals)}], got {batch_size}.")
  if not len(kinds) or not len(severities):
    raise ValueError(f"kinds {kinds} and severities {severities} must not be empty.")
  check_arrays(severities=(severities, "int [*]"))
  check_range("severities", severities, "[1, 5]")
  return _stream(key, signals, labels, jnp.asarray(severities), tuple(kinds), batch_size)


@partial(jax.jit, static_argnames=("kinds", "batch_size"))
def _stream(key, signals, labels, severities, kinds, batch_size):
  used = len(signals) // batch_size * batch_size
  corrupt = corrupt_signals if signals.ndim == 3 else corrupt_images

  def corrupted(kind, inputs):
    key, severity = inputs
    order_key, noise_key = jax.random.split(key)
    rows = jax.random.permutation(order_key, len(signals))[:used]
    targets = jax.tree.map(lambda leaf: leaf[rows], labels)
    return corrupt(noise_key, signals[rows], kind=kind, severity=severity), targets

  parts = []
  for i, kind in enumerate(kinds):
    keys = jax.random.split(jax.random.fold_in(key, i), len(severities))
    parts.append(jax.lax.map(partial(corrupted, kind), (keys, severities)))
  stream = CorruptionStream(*jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
  return jax.tree.map(lambda leaf: leaf.reshape(-1, batch_size, *leaf.shape[2:]), stream)


def _gaussian_noise(key, x, c):
  return x + c * jax.random.normal(key, x.shape, x.dtype)


def _shot_noise(key, x, c):
  return x + c * jnp.sqrt(jnp.abs(x) + 0.1) * jax.random.normal(key, x.shape, x.dtype)


def _impulse_noise(key, x, c):
  hit_key, sign_key = jax.random.split(key)
  hit = jax.random.bernoulli(hit_key, c, x.shape)
  return jnp.where(hit, 3 * jax.random.rademacher(sign_key, x.shape, x.dtype), x)


def _blur(key, x, c):
  return blur_signals(x, c)


def _motion(key, x, c):
  time = jnp.arange(x.shape[1])
  window = range(max(_CONSTANTS["motion"]))
  values = (jnp.where(i < c, x[:, jnp.maximum(time - i, 0)], 0) for i in window)
  return sum(values) / c


def _contrast(key, x, c):
  mean = x.mean(1, keepdims=True)
  return mean + c * (x - mean)


def _brightness(key, x, c):
  return x + c


def _drift(key, x, c):
  slope = jax.random.uniform(key, (x.shape[0], 1, 1), x.dtype, -1.0, 1.0)
  # The divisor is at least 1, so that a signal of one value gets the start of the line.
  time = jnp.arange(x.shape[1]) / max(x.shape[1] - 1, 1)
  return x + c * slope * (2 * time - 1)[None, :, None]


def _elastic(key, x, c):
  length = x.shape[1]
  phase = jax.random.uniform(key, (x.shape[0], 1), x.dtype)
  time = jnp.arange(length)[None]
  position = time + c * jnp.sin(2 * jnp.pi * (2 * time / length + phase))
  position = jnp.clip(position, 0, length - 1)[..., None]
  left = jnp.floor(position).astype(jnp.int32)
  right = jnp.minimum(left + 1, length - 1)
  low, high = (jnp.take_along_axis(x, index, axis=1) for index in (left, right))
  return low + (position - left) * (high - low)


def _pixelate(key, x, c):
  length = x.shape[1]
  start = jnp.arange(length) // c * c
  end = jnp.minimum(start + c, length)
  total = sum(
    jnp.where((start + i < end)[None, :, None], x[:, jnp.minimum(start + i, length - 1)], 0)
    for i in range(max(_CONSTANTS["pixelate"]))
  )
  return total / (end - start)[None, :, None]


def _quantize(key, x, c):
  return c * jnp.round(x / c)


def _occlusion(key, x, c):
  start = jax.random.randint(key, (x.shape[0], 1), 0, x.shape[1] - c + 1)
  time = jnp.arange(x.shape[1])[None]
  return jnp.where(((time >= start) & (time < start + c))[..., None], 0, x)


_FUNCTIONS = {
  "gaussian_noise": _gaussian_noise,
  "shot_noise": _shot_noise,
  "impulse_noise": _impulse_noise,
  "blur": _blur,
  "motion": _motion,
  "contrast": _contrast,
  "brightness": _brightness,
  "drift": _drift,
  "elastic": _elastic,
  "pixelate": _pixelate,
  "quantize": _quantize,
  "occlusion": _occlusion,
}
