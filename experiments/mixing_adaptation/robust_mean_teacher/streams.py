"""Source data, and streams of corrupted test data in the orders in which corruptions may come."""

from collections.abc import Sequence

import chex
import jax
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import augment


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


def make_streams(key: chex.PRNGKey, config, test: Split) -> dict[str, Split]:
  """The streams per seed by the order in which corruptions come: batches `[m, b, ...]`.

  - continual: one corruption after the other, `rounds` times over, never told apart;
  - gradual: each corruption rises to its severity and falls again.
  """
  continual_key, gradual_key = jax.random.split(key)
  rounds = [
    corrupted(jax.random.fold_in(continual_key, i), config, test, (config.severity,), len(test[0]))
    for i in range(config.rounds)
  ]
  streams = {"continual": Split(*map(np.concatenate, zip(*rounds)))}
  if config.num_gradual:
    up = range(1, config.severity + 1)
    severities = (*up, *reversed(up[:-1]))
    streams["gradual"] = corrupted(gradual_key, config, test, severities, config.num_gradual)
  return streams
