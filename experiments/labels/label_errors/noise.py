"""Labels made wrong: where it can be learned, or at random, by class or not."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import data

REGIONS, PAIRED, NEXT, UNIFORM = "regions of classes", "class pairs", "next class", "uniform"
# Classes that lose labels, and those that get them.
PAIRS = ((3, 5), (4, 9), (7, 1), (8, 2))


class Noisy(NamedTuple):
  """Rows whose labels are in part wrong.

  Attributes:
    inputs: float32 `[n, d]`.
    labels: the true classes, int32 `[n]`.
    given: the labels, int32 `[n]`.
  """

  inputs: np.ndarray
  labels: np.ndarray
  given: np.ndarray


def draw(config, noise: str, sizes: Sequence[int], seed: int) -> list[Noisy]:
  """Splits of the data set with wrong labels, all of them drawn by the seed.

  Args:
    config: of the experiment.
    noise: its name.
    sizes: rows of each split; regions are those of the first one.
    seed: of everything.

  Returns:
    The splits, with vectors as inputs.
  """
  splits = datasets.describe(config.dataset).splits(*sizes, seed=seed)
  vectors = [Split(x.inputs.reshape(len(x.labels), -1), x.labels) for x in splits]
  return plant(config, noise, vectors, seed)


def plant(config, noise: str, splits: Sequence[Split], seed: int) -> list[Noisy]:
  """Makes labels wrong; the same share of the classes in every split.

  Args:
    config: of the experiment.
    noise: its name.
    splits: rows with their true classes.
    seed: of the draw.

  Returns:
    The same rows with their labels.
  """
  if noise == REGIONS:
    given = in_tails(splits, PAIRS, fraction=config.fraction)
  else:
    matrix = noise_matrix(config, noise, num_classes=int(splits[0].labels.max()) + 1)
    seeds = np.random.SeedSequence(seed).generate_state(len(splits))
    given = [data.apply_noise_matrix(x.labels, matrix, seed=s) for x, s in zip(splits, seeds)]
  return [Noisy(*split, labels) for split, labels in zip(splits, given)]


def in_tails(
  splits: Sequence[Split], pairs: Sequence[tuple[int, int]], *, fraction: float
) -> list[np.ndarray]:
  """Labels of splits, wrong at both ends of the first principal component of some classes.

  A region at one end is a half-space, which a linear model would learn as well.

  Args:
    splits: rows with their true classes.
    pairs: classes that lose labels, and those that get them.
    fraction: the share of such a class in each split whose label is wrong.

  Returns:
    The labels. Components are those of the first split.
  """
  given = [split.labels.copy() for split in splits]
  for source, target in pairs:
    members = splits[0].inputs[splits[0].labels == source]
    middle = members.mean(axis=0)
    axis = np.linalg.svd(members - middle, full_matrices=False)[2][0]
    for split, labels in zip(splits, given):
      far = np.abs((split.inputs - middle) @ axis)[:, None]
      options = {"source": source, "target": target, "fraction": fraction}
      labels[data.region_noise(far, split.labels, **options).is_flipped] = target
  return given


def noise_matrix(config, noise: str, *, num_classes: int) -> np.ndarray:
  """Probabilities of labels (columns) by true class (rows), of noise that no input changes."""
  right = np.eye(num_classes)
  rate = config.noise_rate
  if noise == PAIRED:
    wrong = right.copy()
    wrong[[source for source, _ in PAIRS]] = right[[target for _, target in PAIRS]]
    rate = config.fraction
  elif noise == NEXT:
    wrong = np.roll(right, 1, axis=1)
  else:
    wrong = (1 - right) / (num_classes - 1)
  return (1 - rate) * right + rate * wrong
