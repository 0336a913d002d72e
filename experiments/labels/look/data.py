"""Ten classes, of which pre-training sees only two halves, and what is shifted at random."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.datasets import Dataset, Split
from experiments.kit.views import shift_signals
from jaxlab import augment

FINE, COARSE = LABELS = "fine", "coarse"


class Problem(NamedTuple):
  """The data of a seed; labels are the true classes."""

  train: Split
  validation: Split  # It chooses by coarse labels.
  probe: Split  # Equally many rows of each class.
  test: Split
  halves: chex.Array  # The coarse label of each class, int32 `[k]`.

  def labeled(self, name: str, labels: str) -> Split:
    """A split with fine or with coarse labels."""
    split = getattr(self, name)
    halves = jnp.asarray(self.halves)
    return split if labels == FINE else split._replace(labels=halves[split.labels])


def draw_problem(dataset: Dataset, *sizes: int, seed: int) -> Problem:
  """Draws rows for pre-training, validation, probes and tests, and which classes are one half."""
  train, validation, rest = dataset.splits(*sizes[:2], sum(sizes[2:]), seed=seed)
  per_class = sizes[2] // dataset.num_classes
  places = [np.sum(rest.labels[:i] == label) for i, label in enumerate(rest.labels)]
  is_probe = np.array(places) < per_class
  probe, test = (Split(*(x[rows] for x in rest)) for rows in (is_probe, ~is_probe))
  order = np.random.default_rng([seed, 1]).permutation(dataset.num_classes)
  halves = (order >= dataset.num_classes // 2).astype(np.int32)
  return Problem(train, validation, probe, test, halves)


def shift(key: chex.PRNGKey, inputs: chex.Array, *, max_shift: int) -> jax.Array:
  """Moves every image or signal by up to `max_shift` places; zeros enter."""
  if inputs.ndim == 4:
    return augment.random_shift(key, inputs, max_shift=max_shift)
  return shift_signals(key, inputs, max_shift=max_shift)
