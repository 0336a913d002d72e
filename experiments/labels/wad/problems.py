"""Few labels of target classes, and unlabeled rows of which most are of no target class."""

import math

import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import FewLabels, Split
from jaxlab import data

BRIDGES, NATURAL = PROBLEMS = "bridges between targets", "other classes"
UNKNOWN = -1  # The label of a row that is of no target class.


def draw(config, problem: str, mismatch: float, seed: int) -> FewLabels:
  """The data of a seed; all but the unknown rows is the same for every problem and mismatch."""
  dataset = datasets.describe(config.dataset)
  # A tfds set gives its last part from its test rows.
  parts = (config.num_pool, 1)[: max(len(dataset.num_rows), 1)]
  images, labels = dataset.splits(*parts, seed=seed)[0]
  rng = np.random.default_rng(seed)
  targets = rng.permutation(dataset.num_classes)[: config.num_targets]
  split = data.mismatch_split(
    labels,
    target_classes=targets.tolist(),
    num_labeled=config.num_shots,
    mismatch=mismatch if problem == NATURAL else 0.0,
    num_unlabeled_target=config.num_unlabeled,
    seed=seed,
  )
  place = np.full(dataset.num_classes, UNKNOWN, np.int32)
  place[targets] = np.arange(config.num_targets)
  rest = rng.permutation(split.rest)
  sizes = config.num_validation, config.num_validation + config.num_test
  rows = split.labeled, split.unlabeled, rest[: sizes[0]], rest[sizes[0] : sizes[1]]
  drawn = FewLabels(*(Split(images[r], place[labels[r]]) for r in rows))
  if problem == NATURAL:
    return drawn
  extra = bridges(rng, drawn.unlabeled, num_unknown(config, mismatch), config.bridge_classes)
  both = Split(*map(np.concatenate, zip(drawn.unlabeled, extra)))
  order = rng.permutation(len(both.labels))
  return drawn._replace(unlabeled=Split(*(x[order] for x in both)))


def num_unknown(config, mismatch: float) -> int:
  """Rows of no target class beside the unlabeled target rows."""
  return math.ceil(round(mismatch * config.num_unlabeled / (1 - mismatch), 6))


def bridges(rng: np.random.Generator, split: Split, num: int, num_classes: int) -> Split:
  """Pixelwise maxima of two rows of different classes, of the first `num_classes`."""
  known = np.flatnonzero(split.labels < num_classes)
  first = rng.choice(known, num)
  second = np.empty_like(first)
  for label in range(num_classes):
    places, others = split.labels[first] == label, split.labels[known] != label
    second[places] = rng.choice(known[others], places.sum())
  images = np.maximum(split.inputs[first], split.inputs[second])
  return Split(images, np.full(num, UNKNOWN, split.labels.dtype))
