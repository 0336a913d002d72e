"""Splits of the rows of a labeled set."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_range


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
  labels = _int_vector(labels)
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


class MismatchSplit(NamedTuple):
  """A labeled set of target classes, and unlabeled rows of which some are of no target class.

  Attributes:
    labeled: labeled rows, class by class in the order of the target classes, int64.
    unlabeled: unlabeled rows in random order, int64.
    is_unknown: which of these are of no target class, bool, aligned with `unlabeled`.
    rest: rows of target classes that are neither, such as a test set, int64.
  """

  labeled: np.ndarray
  unlabeled: np.ndarray
  is_unknown: np.ndarray
  rest: np.ndarray


def mismatch_split(
  labels: chex.Array,
  *,
  target_classes: Sequence[int],
  num_labeled: int,
  mismatch: float,
  num_unlabeled_target: int | None = None,
  seed: int = 0,
) -> MismatchSplit:
  """Draws labeled rows, and unlabeled ones of which a given share is of unknown classes.

  The number of unlabeled target rows does not depend on the mismatch, and neither do the rows of
  target classes that are drawn.

  Args:
    labels: classes, int `[n]`.
    target_classes: the classes to be told apart; the caller renumbers labels by their order.
    num_labeled: labeled rows of each target class.
    mismatch: share m of unknown classes among the unlabeled rows, in [0, 1): t target rows get
      ceil(m t / (1 - m)) unknown ones.
    num_unlabeled_target: number t of unlabeled target rows; None for all that are not labeled.
    seed: of the draw.

  Returns:
    A `MismatchSplit` of positions in `labels`.

  Raises:
    ValueError: if `mismatch` lies outside [0, 1), a count is too small, a target class repeats,
      `labels` is no int vector, or there are too few rows; the message says of what.

  Reference: Du et al., Semi-Supervised Learning via Weight-aware Distillation under Class
  Distribution Mismatch, ICCV 2023, section 4, https://arxiv.org/abs/2308.11874.
  """
  check_range("mismatch", mismatch, "[0, 1)")
  check_at_least(1, num_labeled=num_labeled)
  check_at_least(0, num_unlabeled_target=num_unlabeled_target)
  labels = _int_vector(labels)
  if not len(target_classes) or len(set(target_classes)) < len(target_classes):
    raise ValueError(f"target_classes must be distinct and not empty, got {target_classes}.")
  # Streams of their own, so that the mismatch does not change which target rows are drawn.
  target_rng, unknown_rng, order_rng = np.random.default_rng(seed).spawn(3)
  labeled = []
  for c in target_classes:
    rows = np.flatnonzero(labels == c)
    if len(rows) < num_labeled:
      raise ValueError(f"class {c} has {len(rows)} rows, num_labeled={num_labeled} are needed.")
    labeled.append(target_rng.choice(rows, num_labeled, replace=False))
  labeled = np.concatenate(labeled)
  is_target = np.isin(labels, target_classes)
  free = target_rng.permutation(np.setdiff1d(np.flatnonzero(is_target), labeled))
  num_target = len(free) if num_unlabeled_target is None else num_unlabeled_target
  if num_target > len(free):
    raise ValueError(
      f"num_unlabeled_target must be at most the {len(free)} rows left, got {num_target}."
    )
  # Rounded, for .8 * 200 / (1 - .8) is above 800 in floating point.
  num_unknown = math.ceil(round(mismatch * num_target / (1 - mismatch), 6))
  unknown = np.flatnonzero(~is_target)
  if num_unknown > len(unknown):
    raise ValueError(
      f"mismatch={mismatch} needs {num_unknown} rows of unknown classes, got {len(unknown)}."
    )
  unknown = unknown_rng.choice(unknown, num_unknown, replace=False)
  rows = np.concatenate([free[:num_target], unknown])
  order = order_rng.permutation(len(rows))
  return MismatchSplit(
    labeled.astype(np.int64),
    rows[order].astype(np.int64),
    order >= num_target,
    np.sort(free[num_target:]).astype(np.int64),
  )


def _int_vector(labels: chex.Array) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"labels must be an int vector, got {labels.dtype} of shape {labels.shape}.")
  return labels
