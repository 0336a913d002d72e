"""Selection among the samples of a prompt, by vote or by score."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import sum_over_pairs


class VoteResult(NamedTuple):
  """The winner of a vote.

  Attributes:
    answer: the winning answer, int32 or wider, `[...]`; -1 where no sample is valid.
    share: its share of the valid weight, `[...]`; 0 where there is none, NaN where a valid weight
      is NaN.
    index: the first sample that gave it, i32 `[...]`; 0 where no sample is valid.
  """

  answer: chex.Array
  share: chex.Array
  index: chex.Array


def majority_vote(
  answers: chex.Array, *, weights: chex.Array | None = None, mask: chex.Array | None = None
) -> VoteResult:
  """Self-consistency: the answer that most samples give, or that has the most weight.

  Answers are only compared for equality, so they may be any integers, for example hashes of 31
  bits.

  Args:
    answers: answers of the samples, int `[..., n]`; negative ones, and those beyond int32 without
      64-bit types, are invalid and do not count.
    weights: weights of the samples, not negative, `[..., n]` or a shape that broadcasts to it; None
      for equal weights.
    mask: 1 or True where a sample counts, `[..., n]` or a shape that broadcasts to it; None for
      all.

  Returns:
    The `VoteResult`; on ties the answer that occurs first wins.

  Raises:
    TypeError: if answers are not integers.
    ValueError: if there are no samples, a concrete weight is negative, or a concrete answer does
      not fit the widest integer type.

  Reference: Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models,
  ICLR 2023, section 2,
  https://arxiv.org/abs/2203.11171.
  """
  widest = jnp.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
  check_range("answers", answers, f"[{widest.min}, {widest.max}]")
  check_arrays(answers=(answers, "int [..., n]"))
  check_at_least(1, **{"the number of samples in answers": np.shape(answers)[-1]})
  answers = jnp.asarray(answers)
  # Unsigned types cannot hold the -1 of rows without an answer.
  answers = answers.astype(jnp.result_type(answers, jnp.int32))
  valid = answers >= 0
  if mask is not None:
    valid &= jnp.broadcast_to(jnp.asarray(mask) != 0, answers.shape)
  if weights is None:
    weights = jnp.ones((), jnp.float32)
  check_range("weights", weights, "[0, inf)")
  weights = jnp.where(valid, jnp.broadcast_to(as_accumulator(weights), answers.shape), 0.0)
  votes = _votes(answers, weights)
  index = jnp.argmax(jnp.where(valid, votes, -1.0), axis=-1)
  any_valid = jnp.any(valid, axis=-1)
  total = jnp.sum(weights, axis=-1)
  won = jnp.take_along_axis(votes, index[..., None], axis=-1)[..., 0]
  chosen = jnp.take_along_axis(answers, index[..., None], axis=-1)[..., 0]
  return VoteResult(
    answer=jnp.where(any_valid, chosen, -1),
    share=jnp.where(total == 0, 0.0, won / jnp.where(total == 0, 1.0, total)),
    index=jnp.where(any_valid, index, 0).astype(jnp.int32),
  )


@jax.jit
def _votes(answers: jax.Array, weights: jax.Array) -> jax.Array:
  """The weight of all samples with a sample's answer, `[..., n]`."""
  same = lambda ours, theirs, weights: jnp.where(ours == theirs, weights, 0.0)  # noqa: E731
  return sum_over_pairs(same, (answers,), (answers, weights))


def best_of_n(scores: chex.Array, *, mask: chex.Array | None = None) -> jax.Array:
  """The sample with the highest score.

  Args:
    scores: scores of the samples, `[..., n]`, compared in their own type; NaN never wins over a
      number.
    mask: 1 or True where a sample may be chosen, `[..., n]` or a shape that broadcasts to it; None
      for all.

  Returns:
    Index of the first maximum, i32 `[...]`; 0 where no sample may be chosen.

  Raises:
    ValueError: if there are no samples.
  """
  scores = jnp.asarray(scores) + 0  # Booleans become integers.
  check_arrays(scores=(scores, "[..., n]"))
  check_at_least(1, **{"the number of samples in scores": scores.shape[-1]})
  is_float = jnp.issubdtype(scores.dtype, jnp.floating)
  lowest = -jnp.inf if is_float else jnp.iinfo(scores.dtype).min
  valid = ~jnp.isnan(scores)
  if mask is not None:
    allowed = jnp.broadcast_to(jnp.asarray(mask) != 0, scores.shape)
  else:
    allowed = jnp.ones(scores.shape, bool)
  # Preference: the largest number, then any number, then any allowed entry; -inf is a number too.
  best = jnp.max(jnp.where(allowed & valid, scores, lowest), axis=-1, keepdims=True)
  rank = jnp.where(allowed, jnp.where(valid, jnp.where(scores == best, 3, 2), 1), 0)
  return jnp.argmax(rank, axis=-1).astype(jnp.int32)
