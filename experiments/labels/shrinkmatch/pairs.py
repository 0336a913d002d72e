"""Signals of digits with a mark, which half of the rows hide: pairs that stay uncertain."""

import jax
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import FewLabels, Split

# The appended steps of each mark; a hidden one is 0.
MARKS = np.array([[1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, 1, -1], [-1, 1, -1, 1]], np.float32)


def draw(config, index: int, seed: int) -> FewLabels:
  """The data of a seed on one of the sets: labels are `digit * num_marks + mark`."""
  num_marks = config.num_marks[index]
  parts = datasets.few_labels(
    datasets.describe(config.datasets[index]),
    seed,
    num_shots=config.num_shots[index],
    num_unlabeled=config.num_unlabeled[index],
    num_validation=config.num_validation,
    num_test=config.num_test[index],
  )
  if num_marks == 1:
    return parts
  rng = np.random.default_rng([seed, num_marks])
  return FewLabels(*(mark(rng, part, num_marks, config) for part in parts))


def mark(rng: np.random.Generator, split: Split, num_marks: int, config) -> Split:
  """Appends four steps; rows come class by class or in random order, so marks are balanced."""
  num = len(split.labels)
  marks = (np.arange(num) + rng.integers(num_marks)) % num_marks
  hidden = rng.permutation(num) < config.hidden_share * num
  steps = np.where(hidden[:, None], 0, MARKS[marks])
  steps = steps + config.mark_noise * rng.normal(size=steps.shape)
  inputs = np.concatenate([split.inputs, steps[..., None].astype(np.float32)], axis=1)
  return Split(inputs, (split.labels * num_marks + marks).astype(np.int32))


def batch(config, index: int, num_rows: int) -> Split:
  """The shapes of a batch of one of the sets."""
  shapes = datasets.describe(config.datasets[index]).batch(num_rows)
  if config.num_marks[index] == 1:
    return shapes
  _, length, channels = shapes.inputs.shape
  shape = num_rows, length + MARKS.shape[1], channels
  return Split(jax.ShapeDtypeStruct(shape, shapes.inputs.dtype), shapes.labels)
