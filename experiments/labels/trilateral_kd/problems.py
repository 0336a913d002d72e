"""Rows on which the label or the teacher is wrong, and the teacher that learned its errors."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.kit.datasets import Dataset, Split
from experiments.kit.train import accuracy, adamw_cosine, classification_loss, predict, train
from jaxlab import models

BOTH, TEACHER, LABEL = GROUPS = "both right", "only the teacher right", "only the label right"


class Problem(NamedTuple):
  """The data of a seed: n training rows, and m clean ones behind them."""

  inputs: chex.Array  # `[n + m, ...]`.
  labels: chex.Array  # Those given to training rows, and the true ones of clean rows, `[n + m]`.
  targets: chex.Array  # What the teacher is taught, `[n]`.
  truth: chex.Array  # True labels of the training rows, `[n]`.
  validation: Split
  test: Split

  @property
  def clean(self) -> Split:
    """The clean rows."""
    num = len(self.truth)
    return Split(self.inputs[num:], self.labels[num:])


def draw_problem(dataset: Dataset, *sizes: int, error_rate: float, seed: int) -> Problem:
  """Draws a problem whose errors no average cures: NumPy arrays.

  Sizes are of training, clean, validation and test rows. An error names the next class. In the
  first half of the classes labels err, in the second half the teacher does, at the same rate.
  """
  rows, clean, validation, test = dataset.splits(*sizes, seed=seed)
  truth, num_classes = rows.labels, dataset.num_classes
  errs = np.random.default_rng([seed, 1]).random(len(truth)) < error_rate
  wrong = ((truth + 1) % num_classes).astype(np.int32)
  label_errs = truth < num_classes // 2
  labels, targets = (np.where(errs & side, wrong, truth) for side in (label_errs, ~label_errs))
  inputs = np.concatenate([rows.inputs, clean.inputs])
  labels = np.concatenate([labels, clean.labels])
  return Problem(inputs, labels, targets, truth, validation, test)


def network(config, dataset: Dataset, widths: tuple[int, ...]) -> nn.Module:
  """A student or a teacher, by its widths."""
  if config.network == "mlp":
    return models.MLP(dataset.num_classes, widths)
  return models.ConvEncoder(widths[:-1], widths[-1], dataset.num_classes)


def teach(config, dataset: Dataset, key, problem: Problem) -> dict[str, jax.Array]:
  """Trains the teacher until it knows its targets by heart.

  Gives its `logits` of training and clean rows, `[n + m, k]`, who is right how often, and how well
  its doubt of the label tells rows where it alone is right from those where the label is.
  """
  module, num = network(config, dataset, config.teacher), len(problem.truth)

  optimizer = adamw_cosine(config.teacher_rate, config.teacher_steps, weight_decay=0.0)
  rows = Split(problem.inputs[:num], problem.targets)
  sizes = {"num_steps": config.teacher_steps, "batch_size": config.batch_size}
  variables = train(key, module, classification_loss(module), optimizer, rows, **sizes).variables
  logits = predict(module, variables, jnp.asarray(problem.inputs)).logits
  says, sides = jnp.argmax(logits, axis=-1), groups(problem, logits)
  right = {name: jnp.mean(x) for name, x in sides.items()}
  doubt = 1 - jax.nn.softmax(logits)[jnp.arange(num), problem.labels[:num]]
  return {
    "logits": logits,
    "fits its targets": jnp.mean(says[:num] == problem.targets),
    "accuracy": accuracy(module, variables, problem.test),
    "right": right[BOTH] + right[TEACHER],
    "labels right": right[BOTH] + right[LABEL],
    "both wrong": 1 - sum(right.values()),
    "AUROC": separation(doubt, sides[TEACHER], sides[LABEL]),
  }


def groups(problem: Problem, logits: chex.Array) -> dict[str, chex.Array]:
  """Which training rows have a right teacher, a right label or both, bool `[n]`."""
  num = len(problem.truth)
  teacher = logits[:num].argmax(-1) == problem.truth
  label = problem.labels[:num] == problem.truth
  return {BOTH: teacher & label, TEACHER: teacher & ~label, LABEL: label & ~teacher}


def mean_where(values: chex.Array, where: chex.Array) -> jax.Array:
  """Mean of some of the values, 0 if they are none."""
  return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def separation(scores: chex.Array, positive: chex.Array, negative: chex.Array) -> jax.Array:
  """Area under the ROC curve of two groups of rows; other rows do not count.

  Scores are finite, `[n]`; `positive` and `negative` rows, bool `[n]`, should be high and low.
  """
  below = jnp.sort(jnp.where(negative, scores, jnp.inf))
  # A tie counts a half.
  ranks = [jnp.searchsorted(below, scores, side=side) for side in ("left", "right")]
  return mean_where(sum(ranks) / 2, positive) / jnp.maximum(jnp.sum(negative), 1)
