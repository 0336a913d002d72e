"""Split-conformal prediction sets: quantiles of calibration scores, sets, coverage and size.

Scores are non-conformity scores: small where a label is plausible.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_filled,
  check_range,
)

# (n + 1)(1 - alpha) may exceed a whole number by rounding alone.
_ROUNDING = 1e-9


class SetStatistics(NamedTuple):
  """Coverage and size of prediction sets.

  Attributes:
    coverage: share of the sets that hold the true label.
    size: mean number of labels in a set.
    size_covered: mean size of the sets that hold the true label; NaN if none does.
  """

  coverage: chex.Array
  size: chex.Array
  size_covered: chex.Array


def conformal_quantile(scores: chex.Array, *, alpha: float, method: str = "higher") -> jax.Array:
  """Threshold that the score of a fresh exchangeable example exceeds with probability <= alpha.

  Args:
    scores: calibration scores of the true labels, `[n]`.
    alpha: miscoverage, in (0, 1); a Python number, because it determines a rank.
    method: "higher": the ceil((n + 1)(1 - alpha))-th smallest score, +inf if there are fewer;
      "mquantiles": interpolated between two scores as SciPy's `mstats.mquantiles` does, at level
      (1 - alpha)(1 + 1/n) or 1.

  Returns:
    A scalar; NaN if a score is NaN.

  Raises:
    ValueError: if `scores` is empty, `alpha` lies outside (0, 1) or the method is unknown.

  Reference: Vovk et al., Algorithmic Learning in a Random World, 2005; Angelopoulos and Bates,
  A Gentle Introduction to Conformal Prediction, section 1, https://arxiv.org/abs/2107.07511.
  """
  check_arrays(scores=(scores, "[n]"))
  scores = as_accumulator(scores)
  check_range("alpha", alpha, "(0, 1)")
  check_choice("method", method, ("higher", "mquantiles"))
  check_filled(scores=scores)
  num = scores.size
  ascending = jnp.sort(scores)  # NaN comes last.
  ascending = jnp.where(jnp.isnan(ascending[-1]), jnp.nan, ascending)
  if method == "higher":
    rank = math.ceil((num + 1) * (1 - alpha) - _ROUNDING)
    beyond = jnp.where(jnp.isnan(ascending[-1]), jnp.nan, jnp.inf)
    return ascending[rank - 1] if rank <= num else beyond.astype(scores.dtype)
  level = min((1 - alpha) * (1 + 1 / num), 1.0)
  position = num * level + 0.4 + 0.2 * level
  low = max(math.floor(min(max(position, 1), num - 1)), 1)
  share = min(max(position - low, 0.0), 1.0)
  high = min(low, num - 1)
  return (1 - share) * ascending[low - 1] + share * ascending[high]


def prediction_sets(scores: chex.Array, threshold: chex.Numeric) -> jax.Array:
  """The labels whose score does not exceed a threshold.

  Args:
    scores: score of every label, `[b, K]`.
    threshold: a scalar, or one per row, `[b, 1]`.

  Returns:
    Membership, bool `[b, K]`.

  Reference: Angelopoulos and Bates, section 1, https://arxiv.org/abs/2107.07511.
  """
  form = "[b, 1]" if np.ndim(threshold) else "[]"
  check_arrays(scores=(scores, "[b, K]"), threshold=(threshold, form))
  scores, threshold = as_accumulator(scores, threshold)
  return scores <= threshold


def set_statistics(sets: chex.Array, labels: chex.Array) -> SetStatistics:
  """Coverage and size of prediction sets.

  Args:
    sets: membership, bool `[b, K]`.
    labels: the true labels, int `[b]`.

  Returns:
    `SetStatistics` of scalars; NaN if there is no set or a label in a JAX array lies outside
    [0, K).

  Raises:
    ValueError: if a known label lies outside [0, K).
  """
  check_arrays(sets=(sets, "[b, K]"), labels=(labels, "int [b]"))
  sets = jnp.asarray(sets, bool).astype(jnp.float32)
  labels = as_classes("labels", labels, sets.shape[1])
  covered = jnp.take_along_axis(sets, labels[:, None], axis=1)[:, 0]
  size = jnp.sum(sets, axis=1)
  num_covered = jnp.sum(covered)
  size_covered = jnp.sum(covered * size) / jnp.maximum(num_covered, 1.0)
  return SetStatistics(
    coverage=jnp.mean(covered),
    size=jnp.mean(size),
    size_covered=jnp.where(num_covered > 0, size_covered, jnp.nan),
  )


def exit_conformal_thresholds(
  scores: chex.Array, levels: chex.Array, *, alpha: float, min_points: int = 20
) -> jax.Array:
  """A threshold for each exit of a network, from the validation samples that left there.

  The samples that leave at an exit are not a random subset of all, so that a common threshold does
  not give every exit its coverage.

  Args:
    scores: score of the true label at every exit, `[n, L + 1]`.
    levels: the exit each sample took, int `[n]`.
    alpha: miscoverage, in (0, 1); a Python number, because it determines ranks.
    min_points: an exit with at most this many samples uses the scores of all samples at that exit.

  Returns:
    Thresholds, `[L + 1]`: for each exit its `conformal_quantile`, or its largest score if that is
    smaller, so that thresholds stay finite. NaN where a score that counts is NaN, or everywhere if
    a level in a JAX array is no exit.

  Raises:
    ValueError: if there is no sample, `alpha` lies outside (0, 1), `min_points` < 0, or a known
      level lies outside the exits.

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 5 (there one rank higher), https://arxiv.org/abs/2310.09163.
  """
  check_arrays(scores=(scores, "[n, l]"), levels=(levels, "int [n]"))
  check_filled(scores=scores)
  scores = as_accumulator(scores)
  num, num_exits = scores.shape
  levels = as_classes("levels", levels, num_exits)
  check_range("alpha", alpha, "(0, 1)")
  check_at_least(0, min_points=min_points)
  left = levels[:, None] == jnp.arange(num_exits)[None]
  left = left | (jnp.sum(left, axis=0, keepdims=True) <= min_points)
  counts = np.arange(1, num + 1)
  ranks = np.minimum(np.ceil((counts + 1) * (1 - alpha) - _ROUNDING), counts).astype(np.int32)
  rank = jnp.asarray(ranks)[jnp.sum(left, axis=0) - 1]
  ascending = jnp.sort(jnp.where(left, scores, jnp.inf), axis=0)
  thresholds = jnp.take_along_axis(ascending, rank[None] - 1, axis=0)[0]
  missing = jnp.isnan(ascending[-1]) | jnp.any(levels == num_exits)
  return jnp.where(missing, jnp.nan, thresholds)
