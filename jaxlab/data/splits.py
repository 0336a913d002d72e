"""Splits of the rows of a labeled set."""

from typing import NamedTuple

import chex
import jax
import numpy as np

from jaxlab._checks import check_at_least


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
