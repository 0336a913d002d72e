"""Whether a model leans on the wording of a benchmark: paired tests before and after rephrasing.

An item is answered twice, as the benchmark words it and in other words. Answers are right or wrong,
bool or 0 and 1; another number, NaN included, in a JAX array makes the test NaN.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_flags,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)
from jaxlab.metrics.regression import least_squares_line


class McNemarResult(NamedTuple):
  """A paired test of two classifiers; scalars.

  Attributes:
    statistic: of the test; the smaller of the two counts if it is exact.
    p_value: two-sided.
    only_first: items that the first alone gets right, int32.
    only_second: items that the second alone gets right, int32.
  """

  statistic: chex.Array
  p_value: chex.Array
  only_first: chex.Array
  only_second: chex.Array


class OverfitResult(NamedTuple):
  """Accuracy on a benchmark and on its rephrased items; scalars.

  Attributes:
    accuracy_original: share of the items that are right.
    accuracy_perturbed: share of the rephrased items that are right.
    difference: the first less the second.
    relative_difference: the difference over the first; 0 if no item is right.
    statistic: of McNemar's test.
    p_value: of McNemar's test, two-sided.
    significant: whether the p-value lies below the level, bool.
    overfit: whether the accuracy falls significantly, bool.
  """

  accuracy_original: chex.Array
  accuracy_perturbed: chex.Array
  difference: chex.Array
  relative_difference: chex.Array
  statistic: chex.Array
  p_value: chex.Array
  significant: chex.Array
  overfit: chex.Array


class OverfitTrend(NamedTuple):
  """A line through the accuracy drops of several models; scalars.

  Attributes:
    slope: change of the drop per unit of the covariate; 0 if all models have the same covariate.
    intercept: drop at covariate 0.
    r2: share of the variance that the line explains; 1 if all drops are equal.
  """

  slope: chex.Array
  intercept: chex.Array
  r2: chex.Array


def mcnemar_test(
  first_correct: chex.Array,
  second_correct: chex.Array,
  *,
  exact: bool = False,
  correction: bool = False,
) -> McNemarResult:
  """McNemar's test of whether two answers to the same items are right equally often.

  Only the b items that the first alone gets right and the c that the second alone does matter.

  Args:
    first_correct: whether the first answer to each item is right, `[N]`.
    second_correct: whether the second one is, `[N]`.
    exact: whether to take the binomial distribution of b among b + c, better below about 25; else
      chi-squared with 1 degree of freedom.
    correction: whether to correct chi-squared for continuity; without effect if exact.

  Returns:
    A `McNemarResult`, float32: statistic `(b - c)^2 / (b + c)`, or `(|b - c| - 1)^2 / (b + c)` if
    corrected, or `min(b, c)` if exact. Without any difference the statistic is 0 and p is 1.

  Raises:
    ValueError: if shapes differ or a known answer is neither 0 nor 1.

  Reference: McNemar, Note on the sampling error of the difference between correlated proportions or
  percentages, Psychometrika 1947, https://doi.org/10.1007/BF02295996.
  """
  check_arrays(first_correct=(first_correct, "[N]"), second_correct=(second_correct, "[N]"))
  first, of_first = as_flags("first_correct", first_correct)
  second, of_second = as_flags("second_correct", second_correct)
  only_first, only_second = (
    jnp.sum(part, dtype=jnp.int32) for part in (first & ~second, second & ~first)
  )
  if exact:
    statistic = jnp.minimum(only_first, only_second).astype(jnp.float32)
    p_value = _binomial_p_value(only_first, only_second, first.shape[0])
  else:
    total = only_first + only_second
    distance = jnp.abs(only_first - only_second).astype(jnp.float32) - float(correction)
    statistic = jnp.where(total > 0, jnp.square(distance) / jnp.maximum(total, 1), 0.0)
    p_value = jax.scipy.special.erfc(jnp.sqrt(0.5 * statistic))
  defined = jnp.all(of_first & of_second)
  statistic, p_value = (jnp.where(defined, x, jnp.nan) for x in (statistic, p_value))
  return McNemarResult(statistic, p_value, only_first, only_second)


def _binomial_p_value(ours: jax.Array, theirs: jax.Array, num_items: int) -> jax.Array:
  """Probability that n fair coins fall at least as unevenly.

  Probabilities are taken relative to that of the middle, of which the logarithm is 0: sums that
  start at an end would lose digits.
  """
  total = ours + theirs
  middle = total // 2
  steps = jnp.arange(num_items // 2 + 1)
  # From middle - i to the count below, they shrink by (middle - i) / (n - middle + i + 1).
  above = total - middle + steps[:-1] + 1
  below = jnp.maximum(middle - steps[:-1], 0)
  logs = jnp.cumsum(jnp.log1p((below - above) / above))
  shares = jnp.exp(jnp.concatenate([jnp.zeros(1, logs.dtype), logs]))
  tail = jnp.sum(jnp.where(steps >= middle - jnp.minimum(ours, theirs), shares, 0.0))
  # If n is even the two halves share the middle.
  whole = 2.0 * jnp.sum(shares) - (total % 2 == 0)
  return jnp.minimum(2.0 * tail / whole, 1.0)


def benchmark_overfit_test(
  original_correct: chex.Array, perturbed_correct: chex.Array, *, alpha: chex.Numeric = 0.05
) -> OverfitResult:
  """Tests whether a model gets fewer items of a benchmark right once they are rephrased.

  Args:
    original_correct: whether the model is right on each item, `[N]`.
    perturbed_correct: whether it is right on the item in other words, `[N]`.
    alpha: level of the test, in (0, 1).

  Returns:
    An `OverfitResult`, from the chi-squared `mcnemar_test` at every size; the numbers are float32.

  Raises:
    ValueError: if `alpha` lies outside (0, 1), there is no item, shapes differ or a known answer is
      neither 0 nor 1.

  Reference: Cohen-Inger et al., Forget What You Know about LLMs Evaluations - LLMs are Like a
  Chameleon, Findings of EMNLP 2025, https://arxiv.org/abs/2502.07445.
  """
  check_range("alpha", alpha, "(0, 1)")
  check_arrays(
    original_correct=(original_correct, "[N]"), perturbed_correct=(perturbed_correct, "[N]")
  )
  check_filled(original_correct=original_correct)
  test = mcnemar_test(original_correct, perturbed_correct)
  right, of_original = as_flags("original_correct", original_correct)
  still_right, of_perturbed = as_flags("perturbed_correct", perturbed_correct)
  size = right.shape[0]
  counts = [jnp.sum(x, dtype=jnp.int32) for x in (right, still_right)]
  lost = test.only_first - test.only_second
  relative = lost / jnp.maximum(counts[0], 1)
  defined = jnp.all(of_original & of_perturbed)
  shares = (
    counts[0] / size,
    counts[1] / size,
    lost / size,
    jnp.where(counts[0] > 0, relative, 0.0),
  )
  shares = [jnp.where(defined, x, jnp.nan) for x in shares]
  significant = test.p_value < alpha
  return OverfitResult(*shares, test.statistic, test.p_value, significant, significant & (lost > 0))


def holm_adjust(p_values: chex.Array) -> jax.Array:
  """Adjusts p-values of several tests so that any false alarm has the level of one test.

  Args:
    p_values: of m tests, `[m]`, in [0, 1].

  Returns:
    Adjusted p-values in the same order, `[m]`, in float32 or wider: the largest
    `(m - j + 1) p_(j)` of the j smallest, at most 1. NaN stays NaN, and its test counts as one.

  Raises:
    ValueError: if a known p-value lies outside [0, 1].

  Reference: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
  Statistics 1979, https://www.jstor.org/stable/4615733.
  """
  check_arrays(p_values=(p_values, "[m]"))
  check_range("p_values", p_values, "[0, 1]")
  p_values = as_accumulator(p_values)
  size = p_values.shape[0]
  order = jnp.argsort(p_values)
  left = jnp.arange(size, 0, -1, dtype=p_values.dtype)
  ranked = jax.lax.cummax(jnp.minimum(left * p_values[order], 1.0))
  return ranked[jnp.argsort(order)]


def overfit_trend(differences: chex.Array, covariate: chex.Array) -> OverfitTrend:
  """Least-squares line of accuracy drops against a property of the models.

  Args:
    differences: accuracy drops of m models, `[m]`, such as `OverfitResult.difference`.
    covariate: their accuracies or, for example, logarithms of their sizes, `[m]`.

  Returns:
    An `OverfitTrend`, in float32 or wider.

  Raises:
    ValueError: if there are fewer than two models or shapes differ.

  Reference: Cohen-Inger et al., Findings of EMNLP 2025, https://arxiv.org/abs/2502.07445.
  """
  check_arrays(differences=(differences, "[m]"), covariate=(covariate, "[m]"))
  check_at_least(2, **{"the number of differences": jnp.shape(differences)[0]})
  differences, covariate = as_accumulator(differences, covariate)
  return OverfitTrend(*least_squares_line(covariate, differences))
