"""Credit of the steps of a solution: values of prefixes by rollouts, advantages, critical steps.

A solution of S steps has S + 1 prefixes, of which the first has no step. The value of a prefix is
the share of its completions that end with the right answer.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range

# Values are multiples of 1 / K: a drop of 3 in 10 counts as 0.3 in float32 too.
_TOLERANCE = 1e-6


class StepPairs(NamedTuple):
  """Where solutions go wrong, and the best other step at that place.

  Attributes:
    step: the critical step, int32 `[...]`, from 0; -1 if there is none.
    candidate: the candidate with the highest value there, int32 `[...]`; -1 if there is none.
    gap: value after the candidate less value after the critical step, `[...]`; 0 if there is no
      step, NaN if a value is.
    valid: whether the pair is good enough to learn from, bool `[...]`.
  """

  step: chex.Array
  candidate: chex.Array
  gap: chex.Array
  valid: chex.Array


def prefix_values(successes: chex.Array, *, num_rollouts: int) -> jax.Array:
  """Values of the prefixes of solutions, from completions that a policy sampled.

  Args:
    successes: completions with the right answer after each number of steps from 0 to S, in
      [0, num_rollouts], `[..., S + 1]`. After the last step there is nothing to sample: all or none
      succeed.
    num_rollouts: completions of each prefix.

  Returns:
    Shares, `[..., S + 1]`, in float32 or wider.

  Raises:
    ValueError: if `num_rollouts` < 1, a known number of successes lies outside [0, num_rollouts],
      or there is no prefix.

  Reference: Setlur et al., RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math
  Reasoning by Eight-Fold, NeurIPS 2024, https://arxiv.org/abs/2406.14532.
  """
  check_at_least(1, num_rollouts=num_rollouts)
  _check_values("successes", successes)
  check_range("successes", successes, f"[0, {num_rollouts}]")
  return as_accumulator(successes) / num_rollouts


def step_advantages(prefix_values: chex.Array) -> jax.Array:
  """How much each step changes the value of the solution so far.

  Args:
    prefix_values: values after each number of steps from 0 to S, `[..., S + 1]`.

  Returns:
    Value after each step less the value before it, `[..., S]`, in float32 or wider; they sum to the
    difference of the last and the first value.

  Raises:
    ValueError: if there is no prefix.

  Reference: Setlur et al., NeurIPS 2024, https://arxiv.org/abs/2406.14532.
  """
  _check_values("prefix_values", prefix_values)
  values = as_accumulator(prefix_values)
  return values[..., 1:] - values[..., :-1]


def _check_values(name: str, values: chex.Array) -> None:
  check_arrays(**{name: (values, "[..., n]")})
  if np.shape(values)[-1] == 0:
    raise ValueError(f"{name} must hold a value before the first step, got {np.shape(values)}.")


def critical_step(
  advantages: chex.Array, *, threshold: chex.Numeric = 0.3, mask: chex.Array | None = None
) -> jax.Array:
  """The first step that costs much of a solution's value, or else the one that costs most.

  Args:
    advantages: of the S steps, `[..., S]`.
    threshold: the drop that is much, at least 0. Drops that differ by 1e-6 are the same, as values
      are multiples of one over the number of rollouts.
    mask: which steps count, bool or 0 and 1, `[..., S]`; None for all.

  Returns:
    Index of the step, int32 `[...]`, the first on ties; -1 if no step counts, or the advantage of
    one that counts is NaN.

  Raises:
    ValueError: if `threshold` < 0.

  Reference: Setlur et al., NeurIPS 2024 (the "first pit"), https://arxiv.org/abs/2406.14532.
  """
  check_range("threshold", threshold, "[0, inf)")
  check_arrays(advantages=(advantages, "[..., S]"), mask=(mask, "[..., S]"))
  advantages = as_accumulator(advantages)
  if advantages.shape[-1] == 0:
    return jnp.full(advantages.shape[:-1], -1, jnp.int32)
  counts = jnp.ones_like(advantages, bool) if mask is None else jnp.asarray(mask).astype(bool)
  smallest = jnp.min(jnp.where(counts, advantages, jnp.inf), axis=-1, keepdims=True)
  limit = _TOLERANCE + jnp.maximum(smallest, -threshold)
  step = jnp.argmax(counts & (advantages <= limit), axis=-1)
  unknown = jnp.any(counts & jnp.isnan(advantages), axis=-1) | ~jnp.any(counts, axis=-1)
  return jnp.where(unknown, -1, step).astype(jnp.int32)


def select_step_pairs(
  prefix_values: chex.Array,
  candidate_values: chex.Array,
  *,
  threshold: chex.Numeric = 0.3,
  margin: chex.Numeric = 0.1,
  mask: chex.Array | None = None,
) -> StepPairs:
  """Pairs the critical step of a wrong solution with the best of other steps after its prefix.

  The two share the prefix, so that `dpo_loss` of the log-probabilities of the steps alone equals
  that of both prefixes with their steps.

  Args:
    prefix_values: values after each number of steps from 0 to S, `[..., S + 1]`.
    candidate_values: values after each of C other steps in the place of each step,
      `[..., S, C]`; only those at the critical step matter.
    threshold: the drop that makes a step critical, at least 0, as in `critical_step`.
    margin: the least gap of a valid pair, at least 0; what falls short of it by 1e-6 counts too.
    mask: which steps count, bool or 0 and 1, `[..., S]`; None for all.

  Returns:
    `StepPairs`; of candidates with the same value the first. A pair is valid if its gap is at least
    `margin` and the candidate's value above 0.

  Raises:
    ValueError: if `threshold` or `margin` < 0, C = 0, or shapes do not fit.

  Reference: Setlur et al., NeurIPS 2024, https://arxiv.org/abs/2406.14532.
  """
  check_range("margin", margin, "[0, inf)")
  advantages = step_advantages(prefix_values)
  num_steps = advantages.shape[-1]
  check_arrays(
    prefix_values=(prefix_values, f"[..., {num_steps + 1}]"),
    candidate_values=(candidate_values, f"[..., {num_steps}, C]"),
    mask=(mask, f"[..., {num_steps}]"),
  )
  check_at_least(1, C=np.shape(candidate_values)[-1])
  values, candidates = as_accumulator(prefix_values, candidate_values)
  step = critical_step(advantages, threshold=threshold, mask=mask)
  if num_steps == 0:
    return StepPairs(step, step, jnp.zeros_like(values[..., 0]), jnp.zeros_like(step, bool))
  counts = jnp.any(jnp.ones_like(advantages) if mask is None else jnp.asarray(mask), axis=-1)
  place = jnp.maximum(step, 0)[..., None]
  others = jnp.take_along_axis(candidates, place[..., None], axis=-2)[..., 0, :]
  best = jnp.argmax(others, axis=-1)
  value = jnp.max(others, axis=-1)
  gap = value - jnp.take_along_axis(values, place + 1, axis=-1)[..., 0]
  # A step that counts but is unknown has an advantage of NaN.
  gap = jnp.where(step >= 0, gap, jnp.where(counts, jnp.nan, 0.0))
  valid = (step >= 0) & (gap >= margin - _TOLERANCE) & (value > 0)
  candidate = jnp.where((step >= 0) & ~jnp.isnan(value), best, -1).astype(jnp.int32)
  return StepPairs(step, candidate, gap, valid)


def distance_sensitivity(
  base_log_probs: chex.Array,
  perturbed_log_probs: chex.Array,
  distances: chex.Array,
  *,
  num_bins: int,
  max_distance: int,
) -> jax.Array:
  """How much the probability of tokens falls if an earlier token changes, by its distance.

  Args:
    base_log_probs: log-probabilities of n tokens in nats, `[n]`.
    perturbed_log_probs: those after each of P changes of what precedes them, `[n, P]`.
    distances: how many tokens before each token its change lies, int `[n, P]`; a negative one marks
      a change that counts nowhere, such as one behind the token.
    num_bins: number of bins of equal width.
    max_distance: where the last bin ends; it holds larger distances too.

  Returns:
    Mean fall of the log-probability by bin in nats, `[num_bins]`, in float32 or wider; NaN for an
    empty bin.

  Raises:
    ValueError: if `num_bins` or `max_distance` < 1.

  Reference: Chen et al., Masked Thought, ACL 2024, https://arxiv.org/abs/2403.02178.
  """
  check_at_least(1, num_bins=num_bins, max_distance=max_distance)
  check_arrays(
    base_log_probs=(base_log_probs, "[n]"),
    perturbed_log_probs=(perturbed_log_probs, "[n, P]"),
    distances=(distances, "int [n, P]"),
  )
  base, perturbed = as_accumulator(base_log_probs, perturbed_log_probs)
  distances = jnp.asarray(distances).astype(jnp.int32)
  # The first distance of every bin, in whole numbers, which do not round.
  starts = np.array([-(-k * max_distance // num_bins) for k in range(1, num_bins)], np.int32)
  bins = jnp.searchsorted(starts, distances, side="right", method="compare_all")
  bins = jnp.where(distances < 0, num_bins, bins)

  def mean(k):
    inside = bins == k
    total = jnp.sum(jnp.where(inside, base[:, None] - perturbed, 0.0))
    count = jnp.sum(inside)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)

  return jax.vmap(mean)(jnp.arange(num_bins))
