"""The tasks of test-time adaptation: source data, a network, and streams of corrupted test data."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.classification import Split, mnist1d_splits
from jaxlab import augment, data, models


class Stream(NamedTuple):
  """Batches in order: inputs `[m, b, ...]`, labels `[m, b]`, where to start anew, bool `[m]`."""

  inputs: chex.Array
  labels: chex.Array
  resets: chex.Array


class Task(NamedTuple):
  """What adapts to what.

  Attributes:
    module: the network, without its number of seeds or weights.
    train: labelled source data.
    test: clean test data, or None where only the network's shapes are wanted.
    corrupted: `(key, severities, num_samples) -> (inputs [m, b, ...], labels [m, b])`, every kind
      through all severities before the next one.
    augment: `(key, inputs) -> inputs`.
  """

  module: nn.Module
  train: Split
  test: Split
  corrupted: Callable[[chex.PRNGKey, Sequence[int], int], tuple[chex.Array, chex.Array]]
  augment: Callable[[chex.PRNGKey, chex.Array], chex.Array]


def make_module(config) -> nn.Module:
  """The network of a data set."""
  if config.dataset == "cifar10":
    return models.WideResNet(10, depth=config.depth, widen_factor=config.widen_factor)
  return models.ConvNet(10, widths=config.widths, strides=(2,) * len(config.widths))


def make_task(config) -> Task:
  """Data and network of a configuration."""
  make = _cifar10 if config.dataset == "cifar10" else _mnist1d
  return make(config, make_module(config))


def _mnist1d(config, module) -> Task:
  train, test = mnist1d_splits(config.num_train, config.num_test)

  def corrupted(key, severities, num_samples):
    return augment.corruption_stream(
      key,
      test.inputs[:num_samples],
      test.labels[:num_samples],
      kinds=config.kinds,
      severities=severities,
      batch_size=config.batch_size,
    )

  return Task(module, train, test, corrupted, augment.jitter_signals)


def _cifar10(config, module) -> Task:
  """Images stay bytes until they are used: the corrupted ones are fifteen test sets."""
  train, test = (
    _images(data.load_source("cifar10", split=split), limit)
    for split, limit in (("train", config.num_train), ("test", config.num_test))
  )

  def corrupted(key, severities, num_samples):
    parts = []
    for i, kind in enumerate(config.kinds):
      for j, severity in enumerate(severities):
        source = data.load_source(f"cifar10_corrupted/{kind}_{severity}", split="test")
        images = _images(source, num_samples)
        part_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
        rows = jax.random.permutation(part_key, len(images.labels))
        rows = rows[: len(rows) // config.batch_size * config.batch_size]
        rows = rows.reshape(-1, config.batch_size)
        parts.append(jax.tree.map(lambda array, rows=rows: jnp.asarray(array)[rows], images))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

  return Task(module, train, test, corrupted, jitter_images)


def _images(source, limit: int) -> Split:
  arrays = data.as_arrays(source, limit=limit)
  return Split(arrays["image"], arrays["label"].astype(np.int32))


def as_inputs(inputs: chex.Array) -> jax.Array:
  """Bytes as numbers in [0, 1]; signals as they are."""
  return inputs / jnp.float32(255) if inputs.dtype == jnp.uint8 else inputs


def jitter_images(key: chex.PRNGKey, images: chex.Array) -> jax.Array:
  """Perturbs images in [0, 1]: gain, offset, shift by two pixels, flip, little noise, a row each.

  The parts of the authors' chain (colour jitter, affine map, flip, noise) that need no
  interpolation.
  """
  keys = jax.random.split(key, 5)
  rows, height, width, _ = images.shape
  per_row = (rows, 1, 1, 1)
  gain = jax.random.uniform(keys[0], per_row, minval=0.7, maxval=1.3)
  offset = jax.random.uniform(keys[1], per_row, minval=-0.1, maxval=0.1)
  shifts = jax.random.randint(keys[2], (rows, 2), -2, 3)
  flip = jax.random.bernoulli(keys[3], 0.5, per_row)
  noise = 0.005 * jax.random.normal(keys[4], images.shape)

  def shifted(image, shift):
    down = jnp.clip(jnp.arange(height) - shift[0], 0, height - 1)
    right = jnp.clip(jnp.arange(width) - shift[1], 0, width - 1)
    return image[down][:, right]

  moved = jax.vmap(shifted)(images, shifts)
  moved = jnp.where(flip, moved[:, :, ::-1], moved)
  return jnp.clip(gain * moved + offset + noise, 0, 1)


def make_streams(config, task: Task, key: chex.PRNGKey) -> dict[str, Stream]:
  """The streams of a seed by the order in which corruptions come.

  - continual: one corruption after the other, `rounds` times over, never told apart;
  - episodic: one round, in which the adapter starts anew at each corruption;
  - gradual: each corruption rises to its severity and falls again;
  - mixed: one round whose batches come in random order.
  """
  keys = dict(zip(("continual", "episodic", "gradual", "mixed"), jax.random.split(key, 4)))
  streams = {}
  for name in config.settings:
    if name == "continual":
      rounds = [
        task.corrupted(jax.random.fold_in(keys[name], i), (config.severity,), config.num_test)
        for i in range(config.rounds)
      ]
      inputs, labels = (jnp.concatenate(arrays) for arrays in zip(*rounds))
    elif name == "gradual":
      up = range(1, config.severity + 1)
      severities = (*up, *reversed(up[:-1]))
      inputs, labels = task.corrupted(keys[name], severities, config.num_gradual)
    else:
      inputs, labels = task.corrupted(keys[name], (config.severity,), config.num_test)
    if name == "mixed":
      order = jax.random.permutation(jax.random.fold_in(keys[name], 1), len(labels))
      inputs, labels = inputs[order], labels[order]
    every = len(labels) // len(config.kinds) if name == "episodic" else len(labels)
    streams[name] = Stream(inputs, labels, jnp.arange(len(labels)) % every == 0)
  return streams
