"""Selection among the samples of a prompt, by vote, by score or by a verifier."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, sum_over_pairs, varying_carry


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


class ResampleOutput(NamedTuple):
  """Samples that a verifier accepted.

  Attributes:
    sample: the first accepted sample of each row, or else the last one; a pytree of `[b, ...]`.
    accepted: whether it is accepted, bool `[b]`.
    attempts: how many samples were drawn, i32 `[b]`.
  """

  sample: chex.ArrayTree
  accepted: chex.Array
  attempts: chex.Array


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
  answers, valid = as_answers(answers, mask)
  if weights is None:
    weights = jnp.ones((), jnp.float32)
  check_range("weights", weights, "[0, inf)")
  weights = jnp.where(valid, jnp.broadcast_to(as_accumulator(weights), answers.shape), 0.0)
  votes = weight_of_answers(answers, weights)
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


def as_answers(answers: chex.Array, mask: chex.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Raises if answers cannot be compared, and says which of them count.

  Args:
    answers: answers of the samples, int `[..., n]`, n >= 1.
    mask: 1 or True where a sample counts, `[..., n]` or a shape that broadcasts to it; None for
      all.

  Returns:
    The answers in int32 or wider, and which count, bool `[..., n]`: negative ones do not.

  Raises:
    TypeError: if answers are not integers.
    ValueError: if there are no samples, or a concrete answer does not fit the widest integer type.
  """
  widest = jnp.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
  check_range("answers", answers, f"[{widest.min}, {widest.max}]")
  check_arrays(answers=(answers, "int [..., n]"))
  check_at_least(1, **{"the number of samples in answers": np.shape(answers)[-1]})
  answers = jnp.asarray(answers)
  # Unsigned types cannot hold the -1 of rows without an answer.
  answers = answers.astype(jnp.result_type(answers, jnp.int32))
  valid = answers >= 0
  return answers, valid if mask is None else valid & as_mask(mask, answers.shape)


def as_mask(mask: chex.Array | None, shape: tuple[int, ...]) -> jax.Array:
  """Which samples count.

  Args:
    mask: 1 or True where a sample counts, any shape that broadcasts to `shape`; None for all.
    shape: of the samples.

  Returns:
    Booleans of this shape.
  """
  return jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(jnp.asarray(mask) != 0, shape)


@jax.jit
def weight_of_answers(answers: chex.Array, weights: chex.Array) -> jax.Array:
  """The weight of all samples with a sample's answer.

  Args:
    answers: answers of the samples, int `[..., n]`.
    weights: weights of the samples, 0 where one does not count, `[..., n]`.

  Returns:
    Sums, `[..., n]`, the same for the same answer.
  """
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
  allowed = as_mask(mask, scores.shape)
  # Preference: the largest number, then any number, then any allowed entry; -inf is a number too.
  best = jnp.max(jnp.where(allowed & valid, scores, lowest), axis=-1, keepdims=True)
  rank = jnp.where(allowed, jnp.where(valid, jnp.where(scores == best, 3, 2), 1), 0)
  return jnp.argmax(rank, axis=-1).astype(jnp.int32)


def resample_until_accepted(
  key: chex.PRNGKey,
  sample_fn: Callable[[chex.PRNGKey], chex.ArrayTree],
  verify_fn: Callable[[chex.ArrayTree], chex.Array],
  *,
  max_attempts: int,
) -> ResampleOutput:
  """Draws samples until a verifier accepts one, in every row of a batch.

  Each attempt draws a whole batch; rows that have an accepted sample keep it. The loop stops once
  all rows have one::

    sample = lambda key: generate(key, fns, prompts, lengths, max_new_tokens=64).tokens
    output = resample_until_accepted(key, sample, verify, max_attempts=16)

  Args:
    key: random key; attempt i, counted from 0, draws with `fold_in(key, i)`.
    sample_fn: `key -> sample`, a pytree of arrays `[b, ...]`.
    verify_fn: `sample -> accepted`, bool `[b]`.
    max_attempts: most samples of a row, at least 1.

  Returns:
    The `ResampleOutput`.

  Raises:
    ValueError: if `max_attempts` < 1, or `verify_fn` does not give one value per row.
    TypeError: if `verify_fn` does not give booleans.

  Reference: Stroebl et al., Inference Scaling fLaws: The Limits of LLM Resampling with Imperfect
  Verifiers, 2024, https://arxiv.org/abs/2411.17501.
  """
  check_at_least(1, max_attempts=max_attempts)
  return _resample(key, sample_fn, verify_fn, max_attempts)


@compiled_once
def _resample(key, sample_fn, verify_fn, max_attempts) -> ResampleOutput:
  like = jax.eval_shape(sample_fn, key)
  verdict = jax.eval_shape(verify_fn, like)
  verdict_name, sample_name = "the result of verify_fn", "a sample of sample_fn"
  for leaf in jax.tree.leaves(like):
    check_arrays(**{verdict_name: (verdict, "bool [b]"), sample_name: (leaf, "[b, ...]")})

  def proceed(state):
    step, output = state
    return (step < max_attempts) & ~jnp.all(output.accepted)

  def attempt(state):
    step, (kept, done, attempts) = state
    sample = sample_fn(jax.random.fold_in(key, step))

    def keep(old, new):
      return jnp.where(done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    sample = jax.tree.map(keep, kept, sample)
    accepted = done | verify_fn(sample)
    return step + 1, ResampleOutput(sample, accepted, attempts + ~done)

  none = ResampleOutput(
    jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
    jnp.zeros(verdict.shape, bool),
    jnp.zeros(verdict.shape, jnp.int32),
  )
  state = jnp.zeros((), jnp.int32), none
  return jax.lax.while_loop(proceed, attempt, varying_carry(attempt, state))[1]
