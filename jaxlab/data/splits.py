"""Splits of the rows of a labeled set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from jaxlab._checks import check_arrays, check_at_least


class FewShotSplit(NamedTuple):
  """A few labeled rows, and all others.

  Attributes:
    train: rows to learn from, class by class, i32 `[num_classes * num_shots]`.
    validation: rows to select on, class by class, i32 `[num_classes * num_validation_shots]`.
    rest: whether a row is in neither, bool `[n]`.
  """

  train: np.ndarray
  validation: np.ndarray
  rest: np.ndarray


def few_shot_split(
  key: chex.PRNGKey,
  labels: chex.Array,
  *,
  num_classes: int,
  num_shots: int,
  num_validation_shots: int = 1,
) -> FewShotSplit:
  """Draws a few rows of every class, without replacement, on the host.

  Args:
    key: random key.
    labels: classes, int `[n]`. Rows whose label lies outside [0, num_classes), such as the
      unknown classes of an open set, stay in `rest`.
    num_classes: number of classes.
    num_shots: training rows of each class.
    num_validation_shots: validation rows of each class.

  Returns:
    A `FewShotSplit`.

  Raises:
    ValueError: if `num_classes` or `num_shots` < 1, `num_validation_shots` < 0, `labels` is not
      an int vector, or a class, which the message names, has too few rows.

  Reference: Lee et al., Few-shot Fine-tuning is All You Need for Source-free Domain Adaptation,
  section 4, https://arxiv.org/abs/2304.00792.
  """
  check_at_least(1, num_classes=num_classes, num_shots=num_shots)
  check_at_least(0, num_validation_shots=num_validation_shots)
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"labels must be an int vector, got {labels.dtype} of shape {labels.shape}.")
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
  needed = num_shots + num_validation_shots
  drawn = np.empty((num_classes, needed), np.int32)
  for c in range(num_classes):
    rows = np.flatnonzero(labels == c)
    if len(rows) < needed:
      raise ValueError(f"class {c} has {len(rows)} rows, {needed} are needed.")
    drawn[c] = rng.choice(rows, needed, replace=False)
  rest = np.ones(len(labels), bool)
  rest[drawn] = False
  return FewShotSplit(drawn[:, :num_shots].ravel(), drawn[:, num_shots:].ravel(), rest)


def cross_validated_probabilities(
  fit_fn: Callable[[np.ndarray, np.ndarray], Any],
  predict_fn: Callable[[Any, np.ndarray], chex.Array],
  inputs: chex.Array,
  labels: chex.Array,
  *,
  num_folds: int = 5,
  seed: int = 0,
) -> np.ndarray:
  """Predicts every row by a model that was fitted without it, on the host.

  Folds are stratified: of every class, each has the same number of rows up to one.

  Args:
    fit_fn: `(inputs, labels) -> model`, from the rows of all folds but one.
    predict_fn: `(model, inputs) -> probabilities [m, k]` of the rows of the other fold.
    inputs: `[n, ...]`.
    labels: classes, int `[n]`.
    num_folds: number of folds, at least 2.
    seed: of the folds.

  Returns:
    Probabilities, f32 `[n, k]`.

  Raises:
    ValueError: if `num_folds` < 2 or > n, inputs and labels differ in length, or `predict_fn` does
      not give one row of k probabilities for each row; a model that knows only the classes in its
      own labels does not if a class has one row.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021, section 3,
  https://arxiv.org/abs/2103.14749.
  """
  check_at_least(2, num_folds=num_folds)
  check_arrays(labels=(labels, "int [n]"))
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  if inputs.ndim < 1 or len(inputs) != len(labels):
    raise ValueError(f"inputs must have {len(labels)} rows, got shape {list(inputs.shape)}.")
  if num_folds > len(labels):
    raise ValueError(f"num_folds must be at most {len(labels)}, the rows, got {num_folds}.")
  order = np.random.default_rng(seed).permutation(len(labels))
  order = order[np.argsort(labels[order], kind="stable")]
  folds = np.empty(len(labels), np.int64)
  folds[order] = np.arange(len(labels)) % num_folds
  probs = None
  for fold in range(num_folds):
    held = folds == fold
    model = fit_fn(inputs[~held], labels[~held])
    rows = np.asarray(predict_fn(model, inputs[held]), np.float32)
    if probs is None and rows.ndim == 2:
      probs = np.empty((len(labels), rows.shape[1]), np.float32)
    wanted = [held.sum(), "k" if probs is None else probs.shape[1]]
    if [*rows.shape] != wanted:
      raise ValueError(
        f"predict_fn must give probabilities {wanted[0]} x {wanted[1]} for fold {fold}, got shape "
        f"{list(rows.shape)}."
      )
    probs[held] = rows
  return probs
