"""Resampling until an imperfect verifier accepts: accuracy, reward by attempts, and limits.

A verifier with false positives bounds what resampling can reach, whatever the number of attempts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_flags,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
  is_known,
)


class VerifierStatistics(NamedTuple):
  """Rates of a verifier over the samples of several tasks; scalars, NaN over nothing.

  Attributes:
    single_sample_accuracy: share of samples that are correct.
    acceptance_rate: share of samples that are accepted.
    conditional_accuracy: share of the accepted samples that is correct, averaged over tasks with an
      accepted sample: the accuracy of resampling without a limit.
    conditional_accuracy_worst: the same over all tasks, where those without one count as 0.
    conditional_accuracy_best: the same over all tasks, where those without one count as 1.
    soundness: probability to reject a wrong sample, as the rates above imply it.
    false_positive_rate: share of the wrong samples that is accepted.
    false_negative_rate: share of the correct samples that is rejected.
    generalization_gap: share of samples that are accepted and wrong.
  """

  single_sample_accuracy: chex.Array
  acceptance_rate: chex.Array
  conditional_accuracy: chex.Array
  conditional_accuracy_worst: chex.Array
  conditional_accuracy_best: chex.Array
  soundness: chex.Array
  false_positive_rate: chex.Array
  false_negative_rate: chex.Array
  generalization_gap: chex.Array


class ResamplingValue(NamedTuple):
  """Resampling of tasks of J types, of which nothing is known but that no attempt was accepted.

  Attributes:
    value: expected value of at most k attempts, `[K]`.
    belief: probabilities of the types before attempt k, `[K, J]`; 0 where every task is answered.
    prob_correct: probability that attempt k, if it is made, is accepted and correct, `[K]`.
    prob_false_positive: probability that it is accepted and wrong, `[K]`.
  """

  value: chex.Array
  belief: chex.Array
  prob_correct: chex.Array
  prob_false_positive: chex.Array


def verifier_statistics(accepted: chex.Array, correct: chex.Array) -> VerifierStatistics:
  """How often a verifier accepts samples, and how often it is right.

  Args:
    accepted: whether the verifier accepts each of n samples, bool or 0 and 1, `[tasks, n]`.
    correct: whether each is correct, bool or 0 and 1, `[tasks, n]`.

  Returns:
    A `VerifierStatistics`, in float32 or wider; NaN where an entry of a JAX array is neither 0 nor
    1. The conditional accuracy is NaN if nothing is accepted, the false negative rate if nothing is
    correct, soundness and false positive rate if nothing is wrong.

  Raises:
    ValueError: if a known entry is neither 0 nor 1, or shapes differ.

  Reference: Stroebl et al., Inference Scaling fLaws: The Limits of LLM Resampling with Imperfect
  Verifiers, 2024, https://arxiv.org/abs/2411.17501.
  """
  accepted, correct = _verdicts(accepted, correct)
  right = jnp.mean(accepted * correct, axis=1)
  of_tasks = jnp.mean(accepted, axis=1)
  acceptance, accuracy = jnp.mean(of_tasks), jnp.mean(correct)
  gap = jnp.mean(accepted * (1.0 - correct))
  rejected = jnp.mean((1.0 - accepted) * correct)
  share = _ratio(right, of_tasks, 0.0)
  solvable = jnp.mean(jnp.where(jnp.isnan(of_tasks), jnp.nan, of_tasks > 0))
  worst = jnp.mean(share)
  conditional = _ratio(worst, solvable)
  wrongly = jnp.where(acceptance == 0, 0.0, (1.0 - conditional) * acceptance)
  wrong = jnp.mean(1.0 - correct)
  return VerifierStatistics(
    single_sample_accuracy=accuracy,
    acceptance_rate=acceptance,
    conditional_accuracy=conditional,
    conditional_accuracy_worst=worst,
    conditional_accuracy_best=worst + (1.0 - solvable),
    soundness=_ratio(wrong - wrongly, wrong),
    false_positive_rate=_ratio(gap, wrong),
    false_negative_rate=_ratio(rejected, accuracy),
    generalization_gap=gap,
  )


def resampling_reward_curve(
  accepted: chex.Array,
  correct: chex.Array,
  *,
  attempts: Sequence[int],
  false_positive_cost: chex.Numeric = 0.0,
) -> jax.Array:
  """Mean reward of the first accepted sample, by the number of attempts that are allowed.

  A correct sample gives 1, an accepted wrong one costs `false_positive_cost`, and a task of which
  no sample is accepted gives 0. The mean over all orders of the n samples is exact.

  Args:
    accepted: whether the verifier accepts each of n samples, bool or 0 and 1, `[tasks, n]`.
    correct: whether each is correct, bool or 0 and 1, `[tasks, n]`.
    attempts: numbers of attempts.
    false_positive_cost: cost of an accepted wrong sample, at least 0.

  Returns:
    Mean rewards over tasks, `[len(attempts)]`, in float32 or wider; NaN if there is no task or an
    entry of a JAX array is neither 0 nor 1.

  Raises:
    ValueError: if `attempts` is empty or one of them lies outside [1, n], `false_positive_cost`
      is negative, a known entry is neither 0 nor 1, or shapes differ.

  Reference: Stroebl et al., 2024, https://arxiv.org/abs/2411.17501.
  """
  accepted, correct = _verdicts(accepted, correct)
  check_filled(attempts=attempts)
  check_range("attempts", tuple(attempts), f"[1, {accepted.shape[1]}]")
  check_range("false_positive_cost", false_positive_cost, "[0, inf)")
  cost = as_accumulator(false_positive_cost)
  num_accepted, num_right = jnp.sum(accepted, axis=1), jnp.sum(accepted * correct, axis=1)
  share = _ratio(num_right, num_accepted, 0.0)
  reward = jnp.where(num_accepted == 0, 0.0, share - cost * (1.0 - share))
  first = _first_accept_probs(num_accepted, accepted.shape[1], max(attempts))
  gains = jnp.mean(reward[:, None] * first, axis=0)
  return jnp.cumsum(gains)[np.asarray(attempts) - 1]


def _verdicts(accepted: chex.Array, correct: chex.Array) -> list[jax.Array]:
  """Both as 0.0 and 1.0, or NaN."""
  check_arrays(accepted=(accepted, "[tasks, n]"), correct=(correct, "[tasks, n]"))
  flags = as_flags("accepted", accepted), as_flags("correct", correct)
  return [jnp.where(is_flag, is_set, jnp.nan) for is_set, is_flag in flags]


def _ratio(part: jax.Array, whole: jax.Array, empty: float = jnp.nan) -> jax.Array:
  return jnp.where(whole == 0, empty, part / jnp.where(whole == 0, 1.0, whole))


def _first_accept_probs(num_accepted: jax.Array, num_samples: int, num_attempts: int) -> jax.Array:
  """Probability that attempt k is the first accepted, in a random order, `[tasks, attempts]`.

  `C(n - k, A - 1) / C(n, A)`, each from the one before: no factor exceeds 1.
  """
  left = num_samples - jnp.arange(1, num_attempts)[None]
  num_accepted = num_accepted[:, None]
  ratios = jnp.maximum(left - num_accepted + 1.0, 0.0) / left
  return jnp.cumprod(jnp.concatenate([num_accepted / num_samples, ratios], axis=1), axis=1)


def optimal_num_samples(rewards: chex.Array, attempts: chex.Array) -> jax.Array:
  """The number of attempts with the highest reward; 0 if every reward is negative.

  Args:
    rewards: rewards by number of attempts, `[m]`; NaN never wins.
    attempts: the numbers of attempts, int `[m]`, in any order.

  Returns:
    An int32 scalar (or wider): the smallest number on ties.

  Raises:
    TypeError: if `attempts` are not integers.
    ValueError: if there are no rewards or shapes differ.

  Reference: Stroebl et al., 2024, https://arxiv.org/abs/2411.17501.
  """
  check_arrays(rewards=(rewards, "[m]"), attempts=(attempts, "int [m]"))
  check_filled(rewards=rewards)
  rewards, attempts = jnp.asarray(rewards), jnp.asarray(attempts)
  attempts = attempts.astype(jnp.result_type(attempts, jnp.int32))
  rewards = jnp.where(jnp.isnan(rewards), -jnp.inf, rewards)
  best = jnp.max(rewards)
  largest = jnp.iinfo(attempts.dtype).max
  return jnp.where(best < 0, 0, jnp.min(jnp.where(rewards == best, attempts, largest)))


def false_discovery_by_attempt(
  accepted: chex.Array, correct: chex.Array, *, max_attempts: int
) -> jax.Array:
  """Share of false positives among the tasks whose first accepted sample is that of attempt k.

  It increases with k where hard tasks, whose accepted samples are wrong, are accepted late.

  Args:
    accepted: whether the verifier accepts each of n samples, bool or 0 and 1, `[tasks, n]`.
    correct: whether each is correct, bool or 0 and 1, `[tasks, n]`.
    max_attempts: number of attempts, in [1, n].

  Returns:
    Shares over all orders of the samples, `[max_attempts]`, in float32 or wider; NaN at attempts
    that can be the first accepted for no task, and everywhere if an entry of a JAX array is neither
    0 nor 1.

  Raises:
    ValueError: if `max_attempts` lies outside [1, n], a known entry is neither 0 nor 1, or shapes
      differ.

  Reference: Stroebl et al., 2024, https://arxiv.org/abs/2411.17501.
  """
  accepted, correct = _verdicts(accepted, correct)
  check_range("max_attempts", max_attempts, f"[1, {accepted.shape[1]}]")
  num_accepted, num_wrong = jnp.sum(accepted, axis=1), jnp.sum(accepted * (1.0 - correct), axis=1)
  first = _first_accept_probs(num_accepted, accepted.shape[1], max_attempts)
  wrong = jnp.sum(_ratio(num_wrong, num_accepted, 0.0)[:, None] * first, axis=0)
  return _ratio(wrong, jnp.sum(first, axis=0))


def resampling_value_curve(
  success_probs: chex.Array,
  priors: chex.Array,
  *,
  soundness: chex.Numeric,
  completeness: chex.Numeric = 1.0,
  value_correct: chex.Numeric = 1.0,
  value_false_positive: chex.Numeric = -1.0,
  cost_per_attempt: chex.Numeric = 0.0,
  max_attempts: int,
) -> ResamplingValue:
  """Expected value of resampling tasks of different difficulty, by the number of attempts.

  The longer no attempt is accepted, the likelier the task is a hard one, whose accepted answers are
  mostly wrong.

  Args:
    success_probs: probability of a correct sample in tasks of each type, in [0, 1], `[J]`.
    priors: shares of the types, which sum to 1, `[J]`.
    soundness: probability to reject a wrong sample, in [0, 1].
    completeness: probability to accept a correct one, in [0, 1].
    value_correct: value of an accepted correct sample.
    value_false_positive: value of an accepted wrong sample.
    cost_per_attempt: cost of each attempt that is made.
    max_attempts: number K of attempts, at least 1.

  Returns:
    A `ResamplingValue`, in float32 or wider. The value counts attempt k with the probability that
    it is made.

  Raises:
    ValueError: if a probability lies outside [0, 1], known priors do not sum to 1 within 1e-4, or
      `max_attempts` < 1.

  Reference: Stroebl et al., 2024, https://arxiv.org/abs/2411.17501.
  """
  check_at_least(1, max_attempts=max_attempts)
  priors, right, wrong, reject = _fates(success_probs, priors, soundness, completeness)
  before = jnp.arange(max_attempts)[:, None]
  # Relative to the type that lasts longest, so that late attempts do not underflow.
  longest = jnp.max(jnp.where(priors > 0, reject, 0.0))
  relative = jnp.where(priors > 0, reject / jnp.where(longest == 0, 1.0, longest), 0.0)
  weights = priors[None] * jnp.power(relative[None], before)
  belief = _ratio(weights, jnp.sum(weights, axis=1, keepdims=True), 0.0)
  gain = value_correct * right + value_false_positive * wrong - cost_per_attempt
  gains = jnp.sum(priors[None] * jnp.power(reject[None], before) * gain[None], axis=1)
  return ResamplingValue(
    value=jnp.cumsum(gains),
    belief=belief,
    prob_correct=jnp.sum(belief * right[None], axis=1),
    prob_false_positive=jnp.sum(belief * wrong[None], axis=1),
  )


def resampling_accuracy_ceiling(
  success_probs: chex.Array,
  priors: chex.Array,
  *,
  soundness: chex.Numeric,
  completeness: chex.Numeric = 1.0,
) -> jax.Array:
  """Accuracy of resampling without a limit on attempts.

  Args:
    success_probs: probability of a correct sample in tasks of each type, in [0, 1], `[J]`.
    priors: shares of the types, which sum to 1, `[J]`.
    soundness: probability to reject a wrong sample, in [0, 1].
    completeness: probability to accept a correct one, in [0, 1].

  Returns:
    Probability that the accepted sample is correct, a scalar in float32 or wider. A type of which
    no sample is ever accepted counts as wrong.

  Raises:
    ValueError: if a probability lies outside [0, 1] or known priors do not sum to 1 within 1e-4.

  Reference: Stroebl et al., 2024, https://arxiv.org/abs/2411.17501.
  """
  priors, right, wrong, _ = _fates(success_probs, priors, soundness, completeness)
  return jnp.sum(priors * _ratio(right, right + wrong, 0.0))


def _fates(
  success_probs: chex.Array,
  priors: chex.Array,
  soundness: chex.Numeric,
  completeness: chex.Numeric,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Priors, and probabilities that a sample is accepted and right or wrong, or rejected; `[J]`."""
  check_arrays(success_probs=(success_probs, "[J]"), priors=(priors, "[J]"))
  check_range("success_probs", success_probs, "[0, 1]")
  check_range("priors", priors, "[0, 1]")
  check_range("soundness", soundness, "[0, 1]")
  check_range("completeness", completeness, "[0, 1]")
  if is_known(priors) and abs(np.sum(np.asarray(priors, np.float64)) - 1.0) > 1e-4:
    raise ValueError(f"priors must sum to 1, got {priors}.")
  success, priors, soundness, completeness = as_accumulator(
    success_probs, priors, soundness, completeness
  )
  failure = 1.0 - success
  rejected = (1.0 - completeness) * success + soundness * failure
  return priors, completeness * success, (1.0 - soundness) * failure, rejected
