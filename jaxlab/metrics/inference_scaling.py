"""Repeated sampling: coverage of k samples, accuracy of selection, cost, and optimal policies.

All values at k are estimated from one pool of n >= k samples per problem, by an exact formula where
there is one.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
)
from jaxlab.metrics.calibration import confidence_calibration_error


class GreedyCalibration(NamedTuple):
  """Confidence of a model in its greedy answers, and their accuracy; scalars.

  Attributes:
    mean_confidence: mean probability of the greedy answer.
    accuracy: share of right greedy answers.
    overconfidence: mean confidence less accuracy.
    expected_calibration_error: absolute difference of confidence and accuracy within bins of
      confidence, averaged over answers.
  """

  mean_confidence: chex.Array
  accuracy: chex.Array
  overconfidence: chex.Array
  expected_calibration_error: chex.Array


def pass_at_k(num_correct: chex.Array, *, num_samples: int, k: int) -> jax.Array:
  """Probability that at least one of k samples is right, drawn from n without replacement.

  It is an unbiased estimate of the probability to solve a problem with k new samples.

  Args:
    num_correct: number c of right samples per problem, int `[...]`, in [0, n]; values of a JAX
      array are clipped.
    num_samples: number n of samples per problem.
    k: number of samples that are drawn.

  Returns:
    `1 - C(n - c, k) / C(n, k)`, `[...]`, float32.

  Raises:
    ValueError: if `k` < 1 or `k` > `num_samples`, or a known `num_correct` lies outside [0, n].

  Reference: Chen et al., Evaluating Large Language Models Trained on Code, 2021, equation 1,
  https://arxiv.org/abs/2107.03374.
  """
  weights = _best_of_k_weights(num_samples, (k,))[0]
  check_arrays(num_correct=(num_correct, "int [...]"))
  check_range("num_correct", num_correct, f"[0, {num_samples}]")
  num_correct = jnp.asarray(num_correct).astype(jnp.int32)
  return _coverages(weights)[jnp.clip(num_correct, 0, num_samples)]


def _best_of_k_weights(num_samples: int, ks: Sequence[int]) -> np.ndarray:
  """Probability that the sample of each rank, best first, is the best of a random k-subset.

  Computed on the host in double precision: neither binomials nor log-gammas fit into float32.
  """
  if len(ks) == 0:
    raise ValueError(f"ks must hold at least one k, got {ks}.")
  for k in ks:
    if not 1 <= k <= num_samples:
      raise ValueError(f"k must lie in [1, {num_samples}], the number of samples, got {k}.")
  k, behind = np.asarray(ks)[:, None], num_samples - np.arange(1, num_samples)
  ratios = np.maximum(behind + 1 - k, 0) / behind
  return np.cumprod(np.concatenate([k / num_samples, ratios], axis=1), axis=1)


def _coverages(weights: np.ndarray) -> jax.Array:
  """pass@k for every number of right samples from 0 to n, as if these were ranked first."""
  return jnp.asarray(np.concatenate([[0.0], np.minimum(np.cumsum(weights), 1.0)]), float)


def coverage_curve(correct: chex.Array, *, ks: Sequence[int]) -> jax.Array:
  """Share of problems that k samples solve, for several k from one pool.

  Args:
    correct: whether each of n samples is right, bool or 0 and 1, `[problems, n]`.
    ks: numbers of samples.

  Returns:
    Mean of `pass_at_k` over problems, `[len(ks)]`, float32; NaN if there is no problem or an entry
    is NaN.

  Raises:
    ValueError: if `ks` is empty or one of them lies outside [1, n].

  Reference: Brown et al., Large Language Monkeys, 2024, section 2, https://arxiv.org/abs/2407.21787.
  """
  check_arrays(correct=(correct, "[problems, n]"))
  correct = jnp.asarray(correct)
  weights = _best_of_k_weights(correct.shape[1], ks)
  num_correct = jnp.sum(correct.astype(bool), axis=1)
  coverage = jnp.stack([jnp.mean(_coverages(row)[num_correct]) for row in weights])
  return jnp.where(jnp.any(jnp.isnan(correct)), jnp.nan, coverage)


def best_of_k_accuracy(scores: chex.Array, correct: chex.Array, *, ks: Sequence[int]) -> jax.Array:
  """Probability that the best-scored of k samples, drawn without replacement, is right.

  Args:
    scores: scores of n samples, `[problems, n]`; the last one wins on ties.
    correct: whether each is right, bool or 0 and 1, `[problems, n]`.
    ks: numbers of samples.

  Returns:
    Accuracies, exact for the pool, `[problems, len(ks)]`, in float32 or wider; NaN for problems
    with a score of NaN.

  Raises:
    ValueError: if `ks` is empty or one of them lies outside [1, n].

  Reference: Brown et al., Large Language Monkeys, 2024, section 4.1,
  https://arxiv.org/abs/2407.21787.
  """
  check_arrays(scores=(scores, "[problems, n]"), correct=(correct, "[problems, n]"))
  # Scores keep their type: integers that differ may be equal in float32.
  scores, correct = jnp.asarray(scores), as_accumulator(correct)
  weights = jnp.asarray(_best_of_k_weights(scores.shape[1], ks), correct.dtype)
  best_first = jnp.argsort(scores, axis=1, stable=True)[:, ::-1]
  ranked = jnp.take_along_axis(correct, best_first, axis=1)
  accuracies = jnp.einsum("pn,kn->pk", ranked, weights, precision="highest")
  return jnp.where(jnp.any(jnp.isnan(scores), axis=1, keepdims=True), jnp.nan, accuracies)


def selection_accuracy_curve(
  key: chex.PRNGKey,
  answers: chex.Array,
  correct: chex.Array,
  *,
  ks: Sequence[int],
  scores: chex.Array | None = None,
  method: Literal["majority", "weighted_majority", "best_of_n"] = "majority",
  num_subsets: int = 100,
) -> jax.Array:
  """Accuracy of choosing one answer out of k samples without a verifier, for several k.

  Coverage counts problems with a right sample; this metric counts problems where it is selected.

  Args:
    key: random key for the subsets that vote.
    answers: answer of each of n samples, int `[problems, n]`; equal numbers are equal answers, and
      a negative number means no answer.
    correct: whether each answer is right, bool or 0 and 1, `[problems, n]`.
    ks: numbers of samples.
    scores: scores of the samples, `[problems, n]`; not needed for "majority".
    method: "majority", the most frequent answer; "weighted_majority", the answer with the largest
      sum of scores; "best_of_n", the answer with the best score, which is exact (see
      `best_of_k_accuracy`).
    num_subsets: number of random subsets per problem over which votes are averaged; they are
      nested from one k to the next.

  Returns:
    Mean accuracies, `[len(ks)]`, in float32 or wider; NaN if there is no problem or a vote is NaN.
    Answers tied for the most votes share the credit; a subset without an answer is wrong.

  Raises:
    ValueError: if `ks` is empty, one of them lies outside [1, n], the method is unknown or lacks
      its `scores`, or `num_subsets` < 1.

  Reference: Brown et al., Large Language Monkeys, 2024, section 4.1,
  https://arxiv.org/abs/2407.21787; Wang et al., Self-Consistency, ICLR 2023,
  https://arxiv.org/abs/2203.11171.
  """
  check_choice("method", method, ("majority", "weighted_majority", "best_of_n"))
  if method != "majority" and scores is None:
    raise ValueError(f"scores must be given for method {method!r}, got None.")
  check_at_least(1, num_subsets=num_subsets)
  check_arrays(
    answers=(answers, "int [problems, n]"),
    correct=(correct, "[problems, n]"),
    scores=(scores, "[problems, n]"),
  )
  answers = jnp.asarray(answers)
  if method == "best_of_n":
    # A sample without an answer may still have the best score; it then counts as wrong.
    right = (answers >= 0) * as_accumulator(correct)
    return jnp.mean(best_of_k_accuracy(scores, right, ks=ks), axis=0)
  _best_of_k_weights(answers.shape[1], ks)
  weights, correct = as_accumulator(1.0 if method == "majority" else scores, correct)
  weights = jnp.broadcast_to(weights, answers.shape)
  sizes = jnp.asarray(ks)
  return _vote_accuracies(key, answers, weights, correct, sizes, num_subsets=num_subsets)


@functools.partial(jax.jit, static_argnames="num_subsets")
def _vote_accuracies(key, answers, weights, correct, sizes, *, num_subsets):
  def of_problem(problem):
    key, *samples = problem
    places = jnp.tile(jnp.arange(answers.shape[1]), (num_subsets, 1))
    places = jax.random.permutation(key, places, axis=1, independent=True)
    credit = jax.vmap(lambda row: jax.vmap(lambda k: _vote_credit(row < k, *samples))(sizes))
    return jnp.mean(credit(places), axis=0)

  keys = jax.random.split(key, answers.shape[0])
  # One problem at a time: all subsets of all problems would not fit into memory.
  return jnp.mean(jax.lax.map(of_problem, (keys, answers, weights, correct)), axis=0)


def _vote_credit(
  chosen: jax.Array, answers: jax.Array, weights: jax.Array, correct: jax.Array
) -> jax.Array:
  """Share of the winning answers among the chosen samples that is right."""
  order = jnp.argsort(answers)
  ranked = answers[order]
  groups = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ranked[1:] != ranked[:-1]]))
  counted = chosen[order] & (ranked >= 0)

  def totals(values):
    return jax.ops.segment_sum(jnp.where(counted, values[order], 0), groups, groups.size)

  count = totals(jnp.ones_like(weights))
  votes = jnp.where(count > 0, totals(weights), -jnp.inf)
  tied = (count > 0) & (votes == jnp.max(votes))
  right = totals(correct) / jnp.maximum(count, 1)
  credit = jnp.sum(jnp.where(tied, right, 0.0)) / jnp.maximum(jnp.sum(tied), 1)
  return jnp.where(jnp.any(jnp.isnan(votes)), jnp.nan, credit)


def inference_flops(
  *,
  num_params: chex.Numeric,
  prompt_tokens: chex.Numeric,
  generated_tokens: chex.Numeric,
  num_samples: chex.Numeric,
) -> jax.Array:
  """Floating-point operations to draw n samples for one prompt: two per parameter and token.

  Args:
    num_params: parameters of the model, at least 0; the arguments are broadcast.
    prompt_tokens: tokens of the prompt, read once, at least 0.
    generated_tokens: tokens of one sample, at least 0.
    num_samples: number of samples, at least 1.

  Returns:
    Operations, float32.

  Raises:
    ValueError: if an argument is negative or `num_samples` < 1.

  Reference: Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1,
  https://arxiv.org/abs/2001.08361; Brown et al., Large Language Monkeys, 2024, section 2.3,
  https://arxiv.org/abs/2407.21787.
  """
  check_range("num_params", num_params, "[0, inf)")
  check_range("prompt_tokens", prompt_tokens, "[0, inf)")
  check_range("generated_tokens", generated_tokens, "[0, inf)")
  check_range("num_samples", num_samples, "[1, inf)")
  num_params, prompt, generated, num_samples = jnp.broadcast_arrays(
    *(
      jnp.asarray(value, float)
      for value in (num_params, prompt_tokens, generated_tokens, num_samples)
    )
  )
  return 2.0 * num_params * (prompt + num_samples * generated)


def optimal_coverage_policy(
  answer_posterior: chex.Array, *, num_samples: chex.Numeric
) -> jax.Array:
  """The distribution over answers whose N samples most likely include the right one.

  With one sample, the best policy always gives the most likely answer. With more samples it becomes
  less confident, and in the limit it is uniform over all possible answers.

  Args:
    answer_posterior: probability q that each answer is right, `[..., K]`, in any order.
    num_samples: number of samples N, any real number >= 1.

  Returns:
    The policy p that maximizes `sum(q * (1 - (1 - p)^N))`, `[..., K]`, in float32 or wider. Equal
    posteriors get equal mass, even if all are 0; with N = 1 the first of the largest gets all mass.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite, a known posterior is negative, or K = 0.

  Reference: Chen et al., Rethinking Fine-Tuning when Scaling Test-Time Compute, NeurIPS 2025,
  section 3, https://arxiv.org/abs/2502.07154; the closed form follows from the conditions of
  Karush, Kuhn and Tucker.
  """
  check_arrays(answer_posterior=(answer_posterior, "[..., K]"), num_samples=(num_samples, "[]"))
  check_range("num_samples", num_samples, "[1, inf)")
  check_range("answer_posterior", answer_posterior, "[0, inf)")
  posterior = as_accumulator(answer_posterior)
  check_at_least(1, K=posterior.shape[-1])
  num_samples = jnp.asarray(num_samples, posterior.dtype)
  one = num_samples == 1.0
  power = 1.0 / jnp.where(one, 1.0, num_samples - 1.0)
  last = _last_active(jax.lax.stop_gradient(posterior), power)
  # The m active answers get p = 1 - (m - 1) c / sum(c) for costs c = q^-power. With gaps 1 - c to
  # the last one's cost, c = 1, this is a sum of terms that are not negative: nothing cancels.
  active = posterior >= last
  count = jnp.sum(active, axis=-1, keepdims=True)
  possible = active & (last > 0)
  excess = jnp.where(possible, posterior - last, 0.0) / jnp.where(possible, last, 1.0)
  gaps = -jnp.expm1(-power * jnp.log1p(jnp.minimum(excess, jnp.finfo(excess.dtype).max)))
  total = jnp.sum(gaps, axis=-1, keepdims=True)
  policy = (jnp.maximum(1.0 - total, 0.0) + (count - 1) * gaps) / (count - total)
  places = jax.lax.broadcasted_iota(jnp.int32, posterior.shape, posterior.ndim - 1)
  first = places == jnp.argmax(posterior, axis=-1, keepdims=True)
  policy = jnp.where(one, first.astype(policy.dtype), jnp.where(active, policy, 0.0))
  missing = jnp.any(jnp.isnan(posterior), axis=-1, keepdims=True)
  return jnp.where(missing, jnp.nan, policy)


def _last_active(posterior: jax.Array, power: jax.Array) -> jax.Array:
  """Posterior of the least likely answer that the policy gives, `[..., 1]`.

  An answer is given if the costs of the likelier ones fall short of its own by less than that.
  """
  ranked = jnp.sort(posterior, axis=-1)[..., ::-1]
  before = jnp.concatenate([ranked[..., :1], ranked[..., :-1]], axis=-1)
  ranks = jax.lax.broadcasted_iota(ranked.dtype, ranked.shape, ranked.ndim - 1)
  steps = jnp.expm1(power * jnp.log1p((before - ranked) / ranked))
  steps *= jnp.power(ranked[..., :1] / before, power)
  shortfall = jnp.cumsum(ranks * steps, axis=-1)
  # Infinity and NaN (impossible answers) are not less.
  active = shortfall < jnp.power(ranked[..., :1] / ranked, power)
  count = jnp.maximum(jnp.sum(active, axis=-1, keepdims=True), 1)
  return jnp.take_along_axis(ranked, count - 1, axis=-1)


def greedy_calibration(
  greedy_log_probs: chex.Array, correct: chex.Array, *, num_bins: int = 10
) -> GreedyCalibration:
  """Compares the confidence of a model in its greedy answers with their accuracy.

  Args:
    greedy_log_probs: log-probabilities of the greedy answers in nats, `[n]`.
    correct: whether they are right, bool or 0 and 1, `[n]`.
    num_bins: number of bins of equal width, closed on the right.

  Returns:
    A `GreedyCalibration`, in float32 or wider.

  Raises:
    ValueError: if `num_bins` < 1 or there is no answer.

  Reference: Chen et al., NeurIPS 2025, section 4, https://arxiv.org/abs/2502.07154; Guo et al., On
  Calibration of Modern Neural Networks, ICML 2017, equation 5, https://arxiv.org/abs/1706.04599.
  """
  check_arrays(greedy_log_probs=(greedy_log_probs, "[n]"), correct=(correct, "[n]"))
  log_probs, correct = as_accumulator(greedy_log_probs, correct)
  confidence = jnp.exp(log_probs)
  error = confidence_calibration_error(confidence, correct, num_bins=num_bins)
  mean, accuracy = jnp.mean(confidence), jnp.mean(correct)
  return GreedyCalibration(mean, accuracy, mean - accuracy, error)
