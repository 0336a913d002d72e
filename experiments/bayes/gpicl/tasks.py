"""Images of half of the classes as many tasks, and data that no training has seen."""

import collections
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import metrics, samplers

OWN, NEW, UNSEEN = "own tasks", "new tasks", "new tasks, unseen classes"
SIGNALS = "new tasks, mnist1d"

# Keys of a seed, the same for all rows of the table.
Keys = collections.namedtuple("Keys", "init fit tasks watch test")


class Task(NamedTuple):
  """The data of a seed: rows of the base classes, of the other ones, and of mnist1d."""

  train: Split
  held_out: Split
  unseen: Split
  signals: Split


def keys_of(key: chex.PRNGKey) -> Keys:
  """Splits the key of a seed."""
  return Keys(*jax.random.split(key, len(Keys._fields)))


def draw(config, seed: int) -> Task:
  """Draws the base classes, their rows, and signals, anew for every seed."""
  dataset, num = datasets.describe(config.dataset), config.num_classes
  parts = dataset.splits(*dataset.num_rows, seed=seed)
  images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
  pool = Split(images.reshape(len(labels), -1), labels)
  order = np.random.default_rng(seed).permutation(dataset.num_classes)
  counts = config.train_per_class, config.held_out_per_class
  train, held_out = _of_classes(pool, order[:num], counts)
  (unseen,) = _of_classes(pool, order[num : 2 * num], (sum(counts),))
  mean = train.inputs.mean(0)
  deviation = (train.inputs - mean).std()
  images = (x._replace(inputs=(x.inputs - mean) / deviation) for x in (train, held_out, unseen))
  made = datasets.describe("mnist1d")
  (signals,) = made.splits(made.num_classes * config.signals_per_class, seed=seed)
  signals = Split(signals.inputs[..., 0], signals.labels)
  return Task(*images, *_of_classes(signals, np.arange(num), (config.signals_per_class,)))


def _of_classes(pool: Split, classes: np.ndarray, counts: tuple[int, ...]) -> list[Split]:
  """Disjoint parts of the pool, with as many rows of each class as `counts` says, labeled from 0.

  Raises:
    ValueError: if a class has too few rows.
  """
  chosen = [np.flatnonzero(pool.labels == c)[: sum(counts)] for c in classes]
  fewest = min(map(len, chosen))
  if fewest < sum(counts):
    raise ValueError(f"a class has {fewest} rows, but {sum(counts)} are asked for.")
  parts = np.split(np.stack(chosen), np.cumsum(counts)[:-1], axis=1)
  names = np.arange(len(classes), dtype=np.int32)
  return [Split(pool.inputs[part.ravel()], np.repeat(names, part.shape[1])) for part in parts]


def sequences(config, key: chex.PRNGKey, rows: Split, number: int, **options):
  """`samplers.sample_task_sequences` of these rows, in the sizes of the configuration."""
  return samplers.sample_task_sequences(
    key,
    *rows,
    batch_size=number,
    sequence_length=config.sequence_length,
    output_dim=config.output_dim,
    num_classes=config.num_classes,
    **options,
  )


def conditions_of(num_tasks: int = 0) -> list[str]:
  """The conditions of `test_sequences`, in order."""
  return [NEW, UNSEEN, SIGNALS, *([OWN] if num_tasks else [])]


def test_sequences(config, keys: Keys, task: Task, num_tasks: int = 0):
  """A `TaskBatch` with a leading axis of conditions; few tasks of a training are one of them."""
  rows = {NEW: task.held_out, UNSEEN: task.unseen, SIGNALS: task.signals, OWN: task.held_out}
  own, found = {"num_tasks": num_tasks, "task_key": keys.tasks}, []
  for i, name in enumerate(conditions_of(num_tasks)):
    key, options = jax.random.fold_in(keys.test, i), own if name == OWN else {}
    found.append(sequences(config, key, rows[name], config.num_test, **options))
  return jax.tree.map(lambda *x: jnp.stack(x), *found)


def score(config, logits: chex.Array, labels: chex.Array) -> dict[str, jax.Array]:
  """How right scores `[b, n, k]` are by position `[n]`, at either end, and what is gained."""
  accuracy = metrics.accuracy_by_position(logits, labels)
  return {
    "accuracy": accuracy,
    "first accuracy": accuracy[0],
    "last accuracy": jnp.mean(accuracy[-config.window :]),
    "improvement": metrics.learning_improvement(accuracy[None], window=config.window),
  }
