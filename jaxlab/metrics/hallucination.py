"""Falsehoods of language models: how many calibration calls for, and which a model knows better.

Statements are rows of a list of all that may be said; probabilities over them are not rescaled.
"""

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
)


def monofact_rate(counts: chex.Array) -> jax.Array:
  """Share of training items whose statement occurs exactly once.

  It is Good and Turing's estimate of the probability that the next item is new.

  Args:
    counts: how often each statement occurs in the training set, int `[Y]`, at least 0.

  Returns:
    `#{y: counts_y = 1} / n` with n the sum of the counts, a float32 scalar; 0 if n = 0.

  Raises:
    ValueError: if a known count is negative.

  Reference: Kalai and Vempala, Calibrated Language Models Must Hallucinate, STOC 2024, section 4,
  https://arxiv.org/abs/2311.14648; Good, The Population Frequencies of Species, Biometrika 1953.
  """
  check_arrays(counts=(counts, "int [Y]"))
  check_range("counts", counts, "[0, inf)")
  counts = _widened(counts)
  total = jnp.sum(counts)
  return jnp.sum(counts == 1) / jnp.maximum(total, 1)


def _widened(counts: chex.Array) -> jax.Array:
  counts = jnp.asarray(counts)
  return counts.astype(jnp.promote_types(counts.dtype, jnp.int32))


def missing_mass(probs: chex.Array, counts: chex.Array) -> jax.Array:
  """True probability of the statements that the training set lacks.

  Args:
    probs: true probability of each statement, `[Y]`, at least 0.
    counts: how often each occurs in the training set, int `[Y]`, at least 0.

  Returns:
    Sum of the probabilities of count 0, a scalar in float32 or wider.

  Raises:
    ValueError: if a known probability or count is negative.

  Reference: Kalai and Vempala, STOC 2024, section 4, https://arxiv.org/abs/2311.14648.
  """
  check_arrays(probs=(probs, "[Y]"), counts=(counts, "int [Y]"))
  check_range("probs", probs, "[0, inf)")
  check_range("counts", counts, "[0, inf)")
  probs = as_accumulator(probs)
  missing = jnp.sum(jnp.where(jnp.asarray(counts) == 0, probs, 0.0))
  return jnp.where(jnp.any(jnp.isnan(probs)), jnp.nan, missing)


def miscalibration(
  model_probs: chex.Array, true_probs: chex.Array, *, num_bins: int | None = None
) -> jax.Array:
  """Distance of a model from the truth averaged over statements that it finds equally likely.

  The truth p is averaged within bins of the model's probabilities g, the model is not, so that a
  model is only calibrated (0) if it is constant in its bins.

  Args:
    model_probs: probability of each statement under the model, `[Y]`, at least 0.
    true_probs: true probability of each, `[Y]`, at least 0.
    num_bins: b bins of about equal mass under the model, which never part statements of equal
      probability: with mass G below a statement, its bin is the number of i < b with `G > i / b`.
      None for one bin per value of `model_probs`.

  Returns:
    Total variation distance `1/2 sum_y |p(B_y) / |B_y| - g_y|`, a scalar in float32 or wider.

  Raises:
    ValueError: if `num_bins` < 1, there is no statement or a known probability is negative.

  Reference: Kalai and Vempala, Calibrated Language Models Must Hallucinate, STOC 2024, section 3,
  https://arxiv.org/abs/2311.14648.
  """
  ranked, truth, first, last = _binned(model_probs, true_probs, num_bins)
  mass = _running_sums(truth, first)[last]
  size = last - jax.lax.cummax(jnp.where(first, jnp.arange(first.size), 0)) + 1
  return 0.5 * jnp.sum(jnp.abs(mass / size - ranked))


def calibration_gap(
  model_probs: chex.Array, true_probs: chex.Array, *, num_bins: int | None = None
) -> jax.Array:
  """Distance of the masses that model and truth give to bins of the model's probabilities.

  It is at most the `miscalibration`, and can be 0 for a model that only repeats its training set.

  Args:
    model_probs: as in `miscalibration`, `[Y]`.
    true_probs: as in `miscalibration`, `[Y]`.
    num_bins: as in `miscalibration`.

  Returns:
    `1/2 sum_B |p(B) - g(B)|`, a scalar in float32 or wider.

  Raises:
    ValueError: if `num_bins` < 1, there is no statement or a known probability is negative.

  Reference: Kalai and Vempala, STOC 2024, https://arxiv.org/abs/2311.14648.
  """
  ranked, truth, first, last = _binned(model_probs, true_probs, num_bins)
  gaps = jnp.abs(_running_sums(truth, first) - _running_sums(ranked, first))
  return 0.5 * jnp.sum(jnp.where(last == jnp.arange(last.size), gaps, 0.0))


def _binned(model_probs, true_probs, num_bins: int | None):
  """Statements by ascending model probability: both probabilities, starts of bins, their ends."""
  check_at_least(1, num_bins=num_bins)
  check_arrays(model_probs=(model_probs, "[Y]"), true_probs=(true_probs, "[Y]"))
  check_filled(model_probs=model_probs)
  check_range("model_probs", model_probs, "[0, inf)")
  check_range("true_probs", true_probs, "[0, inf)")
  ranked, truth = jax.lax.sort(as_accumulator(model_probs, true_probs), num_keys=1)
  places = jnp.arange(ranked.size)
  first = jnp.concatenate([jnp.ones(1, bool), ranked[1:] != ranked[:-1]])
  if num_bins is not None:
    below = jnp.concatenate([jnp.zeros_like(ranked[:1]), jnp.cumsum(ranked)[:-1]])
    below = below[jax.lax.cummax(jnp.where(first, places, 0))]
    edges = jnp.asarray(np.arange(1, num_bins) / num_bins, ranked.dtype)
    # A sum in pieces need not increase by the last digit.
    bins = jax.lax.cummax(jnp.searchsorted(edges, below, side="left"))
    first = jnp.concatenate([jnp.ones(1, bool), bins[1:] != bins[:-1]])
  is_last = jnp.concatenate([first[1:], jnp.ones(1, bool)])
  last = jax.lax.cummin(jnp.where(is_last, places, places.size), reverse=True)
  return ranked, truth, first, last


def _running_sums(values: jax.Array, first: jax.Array) -> jax.Array:
  """Sums from the start of each bin on, in a tree: a plain sum of millions loses its digits."""

  def add(left, right):
    return left[0] | right[0], jnp.where(right[0], right[1], left[1] + right[1])

  return jax.lax.associative_scan(add, (first, values))[1]


def sampled_calibration_gap(
  sample_log_probs: chex.Array,
  fact_log_probs: chex.Array,
  fact_probs: chex.Array,
  *,
  num_bins: int = 10,
) -> jax.Array:
  """`calibration_gap` of a model whose statements are too many to list, from samples of it.

  Args:
    sample_log_probs: log-probabilities under the model of m statements that it generated, `[m]`.
    fact_log_probs: log-probability under the model of every statement that is true with positive
      probability, `[f]`; -inf is allowed.
    fact_probs: true probabilities of these, `[f]`, at least 0.
    num_bins: number b of bins; the quantiles i / b of the samples part them.

  Returns:
    `1/2 sum_B |p(B) - g(B)|`, a scalar in float32 or wider, with g(B) the share of samples in the
    bin, which is 1 / b up to 1 / m unless samples are equally likely.

  Raises:
    ValueError: if `num_bins` < 1, there is no sample or a known probability is negative.

  Reference: Kalai and Vempala, STOC 2024, https://arxiv.org/abs/2311.14648.
  """
  check_at_least(1, num_bins=num_bins)
  check_arrays(
    sample_log_probs=(sample_log_probs, "[m]"),
    fact_log_probs=(fact_log_probs, "[f]"),
    fact_probs=(fact_probs, "[f]"),
  )
  check_filled(sample_log_probs=sample_log_probs)
  check_range("fact_probs", fact_probs, "[0, inf)")
  samples, facts, probs = as_accumulator(sample_log_probs, fact_log_probs, fact_probs)
  missing = jnp.any(jnp.isnan(samples)) | jnp.any(jnp.isnan(facts))
  # The smallest sample that a share of i / b does not exceed; exact, in whole numbers.
  ranks = [-(-i * samples.size // num_bins) - 1 for i in range(1, num_bins)]
  edges = jnp.sort(samples)[jnp.asarray(np.array(ranks, np.int32))]

  def masses(log_probs, weights):
    bins = jnp.searchsorted(edges, log_probs, side="left")
    return jax.ops.segment_sum(weights, bins, num_bins)

  share = masses(samples, jnp.ones(samples.size, jnp.int32)) / samples.size
  gap = 0.5 * jnp.sum(jnp.abs(masses(facts, probs) - share.astype(probs.dtype)))
  return jnp.where(missing, jnp.nan, gap)


def hallucination_rate(model_probs: chex.Array, is_fact: chex.Array) -> jax.Array:
  """Probability that a model generates a statement that is no fact.

  Args:
    model_probs: probability of each statement under the model, `[Y]`, at least 0.
    is_fact: whether each is a fact, bool or 0 and 1, `[Y]`.

  Returns:
    Sum of the probabilities of what is no fact, a scalar in float32 or wider; NaN if a flag in a
    JAX array is neither 0 nor 1.

  Raises:
    ValueError: if a known probability is negative or a known flag is neither 0 nor 1.

  Reference: Kalai and Vempala, STOC 2024, section 3, https://arxiv.org/abs/2311.14648.
  """
  check_arrays(model_probs=(model_probs, "[Y]"), is_fact=(is_fact, "[Y]"))
  check_range("model_probs", model_probs, "[0, inf)")
  model_probs = as_accumulator(model_probs)
  is_fact, valid = as_flags("is_fact", is_fact)
  rate = jnp.sum(jnp.where(is_fact, 0.0, model_probs))
  defined = jnp.all(valid) & ~jnp.any(jnp.isnan(model_probs))
  return jnp.where(defined, rate, jnp.nan)


def hallucination_lower_bound(
  monofact_rate: chex.Numeric,
  miscalibration: chex.Numeric,
  *,
  num_samples: chex.Numeric,
  fact_ratio: chex.Numeric,
  delta: chex.Numeric = 0.05,
) -> jax.Array:
  """What the `hallucination_rate` reaches with probability 1 - delta, for facts without a pattern.

  Args:
    monofact_rate: of the training set, `[...]`, by the function of this name.
    miscalibration: of the model, `[...]`, by the function of this name; the arguments broadcast.
    num_samples: training items n, at least 1.
    fact_ratio: facts per statement that is none, at least 0.
    delta: probability that the bound fails, in (0, 1).

  Returns:
    `monofact_rate - miscalibration - 3 fact_ratio / delta - sqrt(6 ln(6 / delta) / n)`, in float32
    or wider; it may be negative, and then says nothing.

  Raises:
    ValueError: if an argument is out of range.

  Reference: Kalai and Vempala, STOC 2024, corollary 1, https://arxiv.org/abs/2311.14648.
  """
  check_range("num_samples", num_samples, "[1, inf)")
  check_range("fact_ratio", fact_ratio, "[0, inf)")
  check_range("delta", delta, "(0, 1)")
  rate, error, size, ratio, delta = jnp.broadcast_arrays(
    *as_accumulator(monofact_rate, miscalibration, num_samples, fact_ratio, delta)
  )
  return rate - error - 3.0 * ratio / delta - jnp.sqrt(6.0 * jnp.log(6.0 / delta) / size)


def knowledge_category(
  sampled_correct: chex.Array, greedy_correct: chex.Array, provoked_correct: chex.Array
) -> jax.Array:
  """Parts questions by whether the model knows the answer and whether it can be led astray.

  A model knows an answer if all samples and the greedy answer to a fair prompt are right, and does
  not know it if none is.

  Args:
    sampled_correct: whether each sampled answer is right, bool or 0 and 1, `[N, s]`.
    greedy_correct: whether the greedy answer is, `[N]`.
    provoked_correct: whether the answer to a misleading prompt is, `[N]`.

  Returns:
    int32 `[N]`: 0 for known and right under provocation, 1 for known and wrong (an error in spite
    of knowledge), 2 for not known, whatever was provoked, and 3 for what is partly known or has a
    flag in a JAX array that is neither 0 nor 1.

  Raises:
    ValueError: if shapes differ or a known flag is neither 0 nor 1.

  Reference: Simhi et al., Distinguishing Ignorance from Error in LLM Hallucinations, 2024, section
  3, https://arxiv.org/abs/2410.22071.
  """
  check_arrays(
    sampled_correct=(sampled_correct, "[N, s]"),
    greedy_correct=(greedy_correct, "[N]"),
    provoked_correct=(provoked_correct, "[N]"),
  )
  sampled, of_sampled = as_flags("sampled_correct", sampled_correct)
  greedy, of_greedy = as_flags("greedy_correct", greedy_correct)
  provoked, of_provoked = as_flags("provoked_correct", provoked_correct)
  known = jnp.all(sampled, axis=1) & greedy & of_provoked
  ignorant = jnp.all(of_sampled & ~sampled, axis=1) & of_greedy & ~greedy
  category = jnp.where(ignorant, 2, 3)
  return jnp.where(known, jnp.where(provoked, 0, 1), category).astype(jnp.int32)


def set_overlap(ids_a: chex.Array, ids_b: chex.Array) -> jax.Array:
  """Jaccard index of two sets: common members among all members.

  Args:
    ids_a: whether each of n examples is in the first set, bool or 0 and 1, `[n]`.
    ids_b: whether it is in the second one, `[n]`.

  Returns:
    A float32 scalar in [0, 1]; 0 if both sets are empty, NaN if a flag in a JAX array is neither 0
    nor 1.

  Raises:
    ValueError: if shapes differ or a known flag is neither 0 nor 1.

  Reference: Simhi et al., 2024, section 5, https://arxiv.org/abs/2410.22071.
  """
  check_arrays(ids_a=(ids_a, "[n]"), ids_b=(ids_b, "[n]"))
  (ours, of_ours), (theirs, of_theirs) = as_flags("ids_a", ids_a), as_flags("ids_b", ids_b)
  common, either = (jnp.sum(x, dtype=jnp.int32) for x in (ours & theirs, ours | theirs))
  return jnp.where(jnp.all(of_ours & of_theirs), common / jnp.maximum(either, 1), jnp.nan)
