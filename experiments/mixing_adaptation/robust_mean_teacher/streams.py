"""Source data, and streams of corrupted test data in the orders in which corruptions may come."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import augment


class Stream(NamedTuple):
  """Batches in order: inputs `[m, b, ...]`, labels `[m, b]`, where to start anew, bool `[m]`."""

  inputs: chex.Array
  labels: chex.Array
  resets: chex.Array


def load(config, seed: int) -> tuple[Split, Split]:
  """Source rows and clean test rows per seed; images in [0, 1], the same for every seed."""
  sizes = {"train": config.num_train, "test": config.num_test}
  if config.dataset == "mnist1d":
    return datasets.describe("mnist1d").splits(*sizes.values(), seed=seed)
  return tuple(datasets.raw_images(config.dataset, part, limit=n) for part, n in sizes.items())


def corrupted(
  key: chex.PRNGKey, config, test: Split, severities: Sequence[int], num_samples: int
) -> Split:
  """Batches `[m, b, ...]`, every kind through all severities before the next one."""
  if config.dataset == "mnist1d":
    stream = augment.corruption_stream(
      key,
      *(array[:num_samples] for array in test),
      kinds=config.kinds,
      severities=severities,
      batch_size=config.batch_size,
    )
    return Split(*map(np.asarray, stream))
  parts = []
  for i, kind in enumerate(config.kinds):
    for j, severity in enumerate(severities):
      name = f"{config.dataset}_corrupted/{kind}_{severity}"
      images = datasets.raw_images(name, "test", limit=num_samples)
      part_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
      rows = np.asarray(jax.random.permutation(part_key, len(images.labels)))
      rows = rows[: len(rows) // config.batch_size * config.batch_size]
      parts.append([array[rows.reshape(-1, config.batch_size)] for array in images])
  return Split(*map(np.concatenate, zip(*parts)))


def make_streams(key: chex.PRNGKey, config, test: Split) -> dict[str, Stream]:
  """The streams per seed by the order in which corruptions come.

  - continual: one corruption after the other, `rounds` times over, never told apart;
  - episodic: one round, in which the adapter starts anew at each corruption;
  - gradual: each corruption rises to its severity and falls again;
  - mixed: one round whose batches come in random order.
  """
  keys = dict(zip(("continual", "episodic", "gradual", "mixed"), jax.random.split(key, 4)))
  up = range(1, config.severity + 1)
  whole, swelling = (config.severity,), (*up, *reversed(up[:-1]))
  streams = {}
  for name in config.settings:
    key, draws = keys[name], (whole, config.num_test)
    round_keys = [key]
    if name == "continual":
      round_keys = [jax.random.fold_in(key, i) for i in range(config.rounds)]
    if name == "gradual":
      draws = swelling, config.num_gradual
    rounds = [corrupted(round_key, config, test, *draws) for round_key in round_keys]
    inputs, labels = map(np.concatenate, zip(*rounds))
    if name == "mixed":
      order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), len(labels)))
      inputs, labels = inputs[order], labels[order]
    every = len(labels) // len(config.kinds) if name == "episodic" else len(labels)
    streams[name] = Stream(inputs, labels, np.arange(len(labels)) % every == 0)
  return streams
