"""Confident learning: how often each class is given in place of another one, by probabilities."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_probabilities,
  check_range,
)
from jaxlab._programs import map_over_rows, varying_carry

# Probabilities may miss their threshold by this.
_SLACK = 1e-6
_LARGEST_NOISE = 0.9999


class NoiseMatrices(NamedTuple):
  """Class-conditional label noise.

  Attributes:
    prior: probability of each true class, `[k]`.
    noise: `noise[i, j]` is the probability of the given class i if the true class is j, `[k, k]`.
      Columns sum to 1; that of a class without counts is 0.
    inverse_noise: `inverse_noise[j, i]` is the probability of the true class j if the class i is
      given, `[k, k]`. Columns sum to 1; that of a class without counts is 0.
  """

  prior: jax.Array
  noise: jax.Array
  inverse_noise: jax.Array


def confident_thresholds(probs: chex.Array, labels: chex.Array) -> jax.Array:
  """The mean probability of each class over the examples that are labeled with it.

  An example counts as confidently of a class if it is as probable as an average example of that
  class, so that classes of which a model is generally less sure are not at a disadvantage.

  Args:
    probs: out-of-sample probabilities, `[n, k]`, such as those of cross-validation.
    labels: given classes, int `[n]`. A traced label outside the classes counts in none.

  Returns:
    Thresholds, `[k]`, float32 or wider: at least 2e-6, and 2 (never reached) for a class without
    examples. A NaN stays in the class of its row.

  Raises:
    ValueError: if k < 2, a known label lies outside the classes, or known probabilities of a row
      are negative or do not sum to 1; the message names the first such row.

  Reference: Northcutt et al., Confident Learning, JAIR 2021, equation 2,
  https://arxiv.org/abs/1911.00068; Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS
  2021, https://arxiv.org/abs/2103.14749.
  """
  return _thresholds(*checked_predictions(probs, labels))


def checked_predictions(probs: chex.Array, labels: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Checks probabilities and labels, and casts them.

  Args:
    probs: `[n, k]`.
    labels: int `[n]`.

  Returns:
    Probabilities in float32 or wider, and labels in int32 or wider.

  Raises:
    ValueError: as `confident_thresholds`.
  """
  check_arrays(probs=(probs, "[n, k]"), labels=(labels, "int [n]"))
  num_classes = jnp.shape(probs)[1]
  check_at_least(2, **{"the number of classes in probs": num_classes})
  labels = as_classes("labels", labels, num_classes)
  check_probabilities("probs", probs)
  # An array of NumPy goes to the device once.
  return as_accumulator(jnp.asarray(probs)), labels


@jax.jit
def _thresholds(probs: jax.Array, labels: jax.Array) -> jax.Array:
  num_classes = probs.shape[1]
  own = jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
  counts = _label_counts(labels, num_classes)

  def mean(values):
    return jax.ops.segment_sum(values, labels, num_classes) / jnp.maximum(counts, 1)

  means = mean(own)
  # A second pass over what is left takes off the rounding errors of a long sum.
  means += mean(own - means[labels])
  return jnp.where(counts > 0, jnp.maximum(means, 2 * _SLACK), 2.0)


def _label_counts(labels: jax.Array, num_classes: int) -> jax.Array:
  return jax.ops.segment_sum(jnp.ones(labels.shape, jnp.int32), labels, num_classes)


@jax.jit
def confident_classes(probs: chex.Array, thresholds: chex.Array) -> jax.Array:
  """The class of which the probabilities of an example are confident.

  Args:
    probs: `[n, k]`.
    thresholds: as `confident_thresholds` gives them, `[k]`.

  Returns:
    The class that reaches its threshold, int32 `[n]`; if several do, the most probable of all
    classes; -1 if none does or a probability is NaN.
  """

  def of_rows(probs):
    confident = probs >= (thresholds - _SLACK)[None]
    num = jnp.where(jnp.isnan(jnp.max(probs, axis=1)), 0, jnp.sum(confident, axis=1))
    most = jnp.argmax(jnp.where((num == 1)[:, None], confident, probs), axis=1)
    return jnp.where(num == 0, -1, most).astype(jnp.int32)

  return map_over_rows(of_rows, probs, width=probs.shape[1])


def confident_joint(
  probs: chex.Array,
  labels: chex.Array,
  *,
  thresholds: chex.Array | None = None,
  calibrate: bool = True,
) -> jax.Array:
  """Counts the examples of each given class that confidently belong to each class.

  An example is of the class whose threshold its probability reaches (up to 1e-6). If it reaches
  several, it is of its most probable class; if none, it is not counted. Rows are taken in blocks:
  a million examples of a thousand classes need no second array of that size.

  Args:
    probs: out-of-sample probabilities, `[n, k]`; a row with a NaN is not counted.
    labels: given classes, int `[n]`. A traced label outside the classes is not counted.
    thresholds: `[k]`; None takes `confident_thresholds`.
    calibrate: whether counts are scaled by `calibrate_confident_joint`, so that they sum to the
      number of examples.

  Returns:
    Counts, int32 `[k, k]`, rows being given and columns true classes. The diagonal is raised to at
    least 1 before counts are scaled.

  Raises:
    ValueError: as `confident_thresholds`.

  Reference: Northcutt et al., Confident Learning, JAIR 2021, equations 1 to 3,
  https://arxiv.org/abs/1911.00068.
  """
  check_arrays(probs=(probs, "[n, k]"), thresholds=(thresholds, "[k]"))
  probs, labels = checked_predictions(probs, labels)
  thresholds = _thresholds(probs, labels) if thresholds is None else as_accumulator(thresholds)
  joint = _joint(probs, labels, thresholds)
  return calibrate_confident_joint(joint, labels) if calibrate else joint


@jax.jit
def _joint(probs: jax.Array, labels: jax.Array, thresholds: jax.Array) -> jax.Array:
  num_classes = probs.shape[1]
  classes = confident_classes(probs, thresholds)
  counts = jnp.zeros((num_classes, num_classes), jnp.int32)
  counts = counts.at[labels, classes].add((classes >= 0).astype(jnp.int32))
  return jnp.where(jnp.eye(num_classes, dtype=bool), jnp.maximum(counts, 1), counts)


def calibrate_confident_joint(joint: chex.Array, labels: chex.Array) -> jax.Array:
  """Scales the rows of a confident joint to the number of examples of each given class.

  `joint[i, j] * n_i / sum_j joint[i, j]` is rounded as by `round_preserving_row_sums`. All of it is
  integer arithmetic and exact, whatever the number of examples.

  Args:
    joint: counts, int `[k, k]`, rows being given classes.
    labels: given classes, int `[n]`; n_i of them are i. A traced label outside counts in none.

  Returns:
    Counts, int32 `[k, k]`, whose rows sum to n_i. A row without counts stays 0.

  Raises:
    ValueError: if k < 2, `joint` is not square, a known count is negative or a known label lies
      outside the classes.

  Reference: Northcutt et al., Confident Learning, JAIR 2021, equation 3,
  https://arxiv.org/abs/1911.00068.
  """
  check_arrays(joint=(joint, "int [k, k]"), labels=(labels, "int [n]"))
  num_classes = jnp.shape(joint)[0]
  check_at_least(2, **{"the number of classes in joint": num_classes})
  check_range("joint", joint, "[0, inf)")
  return _calibrate(jnp.asarray(joint, jnp.int32), as_classes("labels", labels, num_classes))


@jax.jit
def _calibrate(joint: jax.Array, labels: jax.Array) -> jax.Array:
  totals = _label_counts(labels, joint.shape[0])[:, None]
  sums = jnp.maximum(jnp.sum(joint, axis=1, keepdims=True), 1)
  # joint * totals may exceed 32 bits: whole multiples of the sums need no division.
  factors = totals % sums
  fits = jnp.max(joint) <= jnp.iinfo(jnp.int32).max // jnp.maximum(jnp.max(factors), 1)
  quotients, rests = jax.lax.cond(
    fits, lambda a, b, m: jnp.divmod(a * b, m), _multiply_divide, joint, factors, sums
  )
  quotients += joint * (totals // sums)
  up = (2 * rests > sums) | ((2 * rests == sums) & (quotients % 2 == 1))
  rounded = quotients + up
  missing = jnp.where(jnp.any(joint > 0, axis=1), totals[:, 0] - jnp.sum(rounded, axis=1), 0)
  return _distribute(rounded, rests - up * sums, missing)


def _multiply_divide(a: jax.Array, b: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Quotients and rests of `a * b / m` for 0 <= a <= m and 0 <= b < m, without a large product."""

  def next_bit(carry, bit):
    quotient, rest = carry
    rest = 2 * rest + a * ((b >> bit) & 1)
    return (2 * quotient + rest // m, rest % m), None

  bits = jnp.arange(30, -1, -1, dtype=jnp.int32)
  start = (jnp.zeros_like(a), jnp.zeros_like(a))
  return jax.lax.scan(next_bit, varying_carry(next_bit, start, bits), bits)[0]


def _distribute(rounded: jax.Array, rests: jax.Array, missing: jax.Array) -> jax.Array:
  """Adds 1 where rests are largest, or takes off 1 where they are smallest, for all missing."""
  ranks = jnp.argsort(jnp.argsort(rests, axis=1, stable=True), axis=1)
  missing = missing[:, None]
  more, less = ranks >= rests.shape[1] - missing, ranks < -missing
  return rounded + more.astype(rounded.dtype) - less.astype(rounded.dtype)


def round_preserving_row_sums(matrix: chex.Array) -> jax.Array:
  """Rounds the entries of a matrix so that the sum of a row is the rounded sum of its entries.

  Entries are rounded, halves to even. What a row then lacks is added, 1 each, to the entries that
  were rounded down most (the last of equal ones); what it has too much is taken from those that
  were rounded up most (the first of equal ones).

  Args:
    matrix: finite numbers, `[m, k]`.

  Returns:
    int32 `[m, k]`.

  Reference: cleanlab, `round_preserving_row_totals`, https://docs.cleanlab.ai; by an unstable sort
  there, so that ties depend on the machine.
  """
  check_arrays(matrix=(matrix, "[m, k]"))
  return _round(as_accumulator(matrix))


@jax.jit
def _round(matrix: jax.Array) -> jax.Array:
  rounded = jnp.round(matrix)
  missing = jnp.round(jnp.sum(matrix, axis=1)) - jnp.sum(rounded, axis=1)
  rests = matrix - rounded
  return _distribute(rounded.astype(jnp.int32), rests, missing.astype(jnp.int32))


def estimate_joint(joint: chex.Array) -> jax.Array:
  """The joint distribution of given and true classes, from counts.

  Args:
    joint: counts `[k, k]`, rows being given classes; those of `confident_joint`.

  Returns:
    `joint / sum(joint)`, `[k, k]`, float32 or wider; 0 without counts.

  Reference: Northcutt et al., Confident Learning, JAIR 2021, equation 3,
  https://arxiv.org/abs/1911.00068.
  """
  check_arrays(joint=(joint, "[k, k]"))
  joint = as_accumulator(joint)
  return joint / _positive(jnp.sum(joint))


def _positive(sums: jax.Array) -> jax.Array:
  """Sums of counts as divisors."""
  return jnp.maximum(sums, 1e-30)


def noise_matrices(joint: chex.Array) -> NoiseMatrices:
  """The noise process that a joint distribution of given and true classes implies.

  Args:
    joint: counts `[k, k]`, rows being given classes, calibrated or not.

  Returns:
    `NoiseMatrices` in float32 or wider. The prior follows from Bayes' rule on the diagonal, is kept
    in [1e-6, 1] and normalized; if `joint` is calibrated, it is the shares of the columns. Last,
    probabilities off the diagonals are cut to 0.9999, and columns normalized again.

  Reference: Northcutt et al., Confident Learning, JAIR 2021, section 3,
  https://arxiv.org/abs/1911.00068.
  """
  check_arrays(joint=(joint, "[k, k]"))
  joint = as_accumulator(joint)
  given = jnp.sum(joint, axis=1)
  noise = joint / _positive(jnp.sum(joint, axis=0))[None]
  inverse = (joint / _positive(given)[:, None]).T
  prior = jnp.diagonal(inverse) / _positive(jnp.diagonal(noise)) * given
  prior = jnp.clip(prior / _positive(jnp.sum(given)), 1e-6, 1.0)
  return NoiseMatrices(prior / jnp.sum(prior), _clip(noise), _clip(inverse))


def _clip(matrix: jax.Array) -> jax.Array:
  """Cuts probabilities off the diagonal, and normalizes columns."""
  diagonal = jnp.eye(matrix.shape[0], dtype=bool)
  matrix = jnp.where(diagonal, matrix, jnp.clip(matrix, 0.0, _LARGEST_NOISE))
  return matrix / _positive(jnp.sum(matrix, axis=0))[None]
