"""Confidence in the answers of reasoning paths: their votes, or the probabilities of the paths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled, check_range
from jaxlab._programs import num_earlier_equal
from jaxlab.samplers.path_pruning import prune_improbable_paths
from jaxlab.samplers.selection import as_answers, as_mask, best_of_n, weight_of_answers


def self_consistency_confidence(
  answers: chex.Array, *, mask: chex.Array | None = None
) -> jax.Array:
  """Share of the paths that give a path's answer.

  Args:
    answers: answers of n paths, int `[..., n]`; negative ones do not count.
    mask: 1 or True where a path counts, `[..., n]` or a shape that broadcasts to it; None for all.

  Returns:
    The confidence in each path's own answer, float32 `[..., n]`, which sums to 1 over the distinct
    answers; 0 for paths that do not count.

  Raises:
    TypeError: if answers are not integers.
    ValueError: if there are no paths, or a concrete answer does not fit the widest integer type.

  Reference: Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models,
  ICLR 2023, https://arxiv.org/abs/2203.11171.
  """
  answers, valid = as_answers(answers, mask)
  return jnp.where(valid, _shares(answers, valid, jnp.ones((), jnp.float32)), 0.0)


def perplexity_consistency_confidence(
  answers: chex.Array,
  path_log_probs: chex.Array,
  *,
  path_ids: chex.Array | None = None,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Share of a path's answer in the probabilities of the distinct paths.

  Where answers are counted, the error decreases like 1 / n. The probability of a path is known as
  soon as it is sampled once, so that here it decreases exponentially.

  Args:
    answers: answers of n paths, int `[..., n]`; negative ones do not count.
    path_log_probs: their scores in nats, at most 0, `[..., n]`: the mean log-probability of the
      tokens, EOS included, which `losses.sequence_log_prob` gives with `normalize_length=True`.
    path_ids: paths with the same text have the same number, int `[..., n]`, of which the first
      counts; None if all are distinct.
    mask: 1 or True where a path counts, `[..., n]` or a shape that broadcasts to it; None for all.

  Returns:
    The confidence in each path's own answer, `[..., n]`, in float32 or wider, which sums to 1 over
    the distinct answers; 0 for paths that do not count, and everywhere if no path has a probability
    above 0.

  Raises:
    TypeError: if answers or path ids are not integers.
    ValueError: if there are no paths, shapes differ, a known score exceeds 0, or a concrete answer
      does not fit the widest integer type.

  Reference: Zhou et al., Bridging Internal Probability and Self-Consistency for Effective and
  Efficient LLM Reasoning, NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  answers, scores, valid = _paths(answers, path_log_probs, mask)
  return _consistency(answers, scores, valid, valid, path_ids)


def pruned_consistency_confidence(
  answers: chex.Array,
  path_log_probs: chex.Array,
  *,
  path_ids: chex.Array | None = None,
  mask: chex.Array | None = None,
  num_steps: int = 200,
) -> jax.Array:
  """Reasoning-pruning perplexity consistency: that of the paths which are not improbable.

  A mixture of two Weibull distributions is fitted to the scores of a problem's paths, those that
  repeat a text or have no answer included. See `reasoning_prune_mask` for what is removed, and
  `fit_weibull_mixture` for when nothing is.

  Args:
    answers: answers of n paths, int `[..., n]`; negative ones do not count.
    path_log_probs: their scores in nats, at most 0, `[..., n]`, as in
      `perplexity_consistency_confidence`.
    path_ids: as there.
    mask: as there.
    num_steps: most steps of the fit.

  Returns:
    The confidence in each path's own answer, `[..., n]`, in float32 or wider, which sums to 1 over
    the distinct answers; 0 for answers of which all paths are removed or do not count.

  Raises:
    TypeError: if answers or path ids are not integers.
    ValueError: if there are no paths, shapes differ, a known score exceeds 0, a concrete answer
      does not fit the widest integer type, or `num_steps` < 1.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  check_at_least(1, num_steps=num_steps)
  answers, scores, valid = _paths(answers, path_log_probs, mask)
  counted = as_mask(mask, scores.shape)
  keep = prune_improbable_paths(jnp.exp(scores), mask=counted, num_steps=num_steps)
  return _consistency(answers, scores, valid, valid & keep, path_ids)


def perplexity_select(path_log_probs: chex.Array) -> jax.Array:
  """The path of the lowest perplexity.

  Args:
    path_log_probs: mean log-probability of each path's tokens in nats, `[..., n]`; NaN never wins
      over a number.

  Returns:
    Index of the first maximum, i32 `[...]`.

  Raises:
    ValueError: if there are no paths.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  check_arrays(path_log_probs=(path_log_probs, "[..., n]"))
  check_at_least(1, **{"the number of paths in path_log_probs": np.shape(path_log_probs)[-1]})
  return best_of_n(path_log_probs)


def _paths(answers, path_log_probs, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
  check_arrays(answers=(answers, "int [..., n]"), path_log_probs=(path_log_probs, "[..., n]"))
  check_filled(answers=answers)
  check_range("path_log_probs", path_log_probs, "[-inf, 0]")
  answers, valid = as_answers(answers, mask)
  return answers, as_accumulator(path_log_probs), valid


def _consistency(answers, scores, valid, kept, path_ids) -> jax.Array:
  counted = kept
  if path_ids is not None:
    check_arrays(answers=(answers, "[..., n]"), path_ids=(path_ids, "int [..., n]"))
    counted &= num_earlier_equal(jnp.asarray(path_ids), kept) == 0
  # Relative to the best path, so that improbable ones do not underflow.
  best = jnp.max(jnp.where(counted, scores, -jnp.inf), axis=-1, keepdims=True)
  best = jax.lax.stop_gradient(jnp.where(best == -jnp.inf, 0.0, best))
  probs = jnp.exp(jnp.where(counted, scores - best, -jnp.inf))
  return jnp.where(valid, _shares(answers, counted, probs), 0.0)


def _shares(answers: jax.Array, counted: jax.Array, weights: jax.Array) -> jax.Array:
  """The share of each answer in the weight of the paths that count."""
  weights = jnp.where(counted, jnp.broadcast_to(weights, answers.shape), 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return weight_of_answers(answers, weights) / jnp.where(total == 0, 1.0, total)
