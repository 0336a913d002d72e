"""Likelihood displacement: how far preferred responses fall, and scores that foretell it.

Preference objectives raise the margin between two responses, which may leave both less likely, and
others, of the opposite meaning, more likely. The scores here are read from the model before
training, so that they can filter its data.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_filled, check_range
from jaxlab._programs import varying_carry


class LikelihoodDisplacement(NamedTuple):
  """Change of the log-probabilities of preferred responses in training; scalars.

  Attributes:
    mean_change: mean change in nats, negative where preferred responses became less likely.
    share_decreased: share of responses that became less likely.
  """

  mean_change: chex.Array
  share_decreased: chex.Array


def centered_hidden_similarity(
  chosen_hidden: chex.Array,
  rejected_hidden: chex.Array,
  chosen_mask: chex.Array,
  rejected_mask: chex.Array,
  *,
  normalize_length: bool = False,
) -> jax.Array:
  """Centered hidden embedding similarity (CHES) of two responses to one prompt.

  With S, the sum of the hidden states that predict the tokens of a response, it is
  `<S_chosen, S_rejected> - |S_chosen|^2`. Pairs with a high score are those whose training lowers
  the probability of the chosen response most.

  Args:
    chosen_hidden: last hidden states of prompt and chosen response, those that the unembedding
      multiplies, `[..., T, d]`.
    rejected_hidden: those of prompt and rejected response, `[..., U, d]`.
    chosen_mask: which tokens are of the response, bool or 0 and 1, `[..., T]`. The state before
      each of them counts, which predicts it; states that do not count may be NaN.
    rejected_mask: the same of the rejected response, `[..., U]`.
    normalize_length: whether to take means of states in place of sums, for responses of different
      lengths.

  Returns:
    Score per pair, `[...]`, in float32 or wider; 0 if the chosen response is empty or equals the
    rejected one.

  Reference: Razin et al., Unintentional Unalignment: Likelihood Displacement in Direct Preference
  Optimization, ICLR 2025, section 4, https://arxiv.org/abs/2410.08847.
  """
  _check_pairs(chosen_hidden, rejected_hidden, chosen_mask, rejected_mask)
  chosen, rejected = (
    _sum_of_states(hidden, mask, normalize_length)
    for hidden, mask in ((chosen_hidden, chosen_mask), (rejected_hidden, rejected_mask))
  )
  return jnp.sum(chosen * (rejected - chosen), axis=-1)


def last_hidden_similarity(
  chosen_hidden: chex.Array,
  rejected_hidden: chex.Array,
  chosen_mask: chex.Array,
  rejected_mask: chex.Array,
) -> jax.Array:
  """Inner product of the states that predict the last tokens of two responses.

  Args:
    chosen_hidden, rejected_hidden, chosen_mask, rejected_mask: as in
      `centered_hidden_similarity`.

  Returns:
    Score per pair, `[...]`, in float32 or wider; 0 if one of the responses is empty.

  Reference: Razin et al., ICLR 2025, section 5, https://arxiv.org/abs/2410.08847.
  """
  _check_pairs(chosen_hidden, rejected_hidden, chosen_mask, rejected_mask)
  chosen = _last_state(chosen_hidden, chosen_mask)
  return jnp.sum(chosen * _last_state(rejected_hidden, rejected_mask), axis=-1)


def _check_pairs(chosen_hidden, rejected_hidden, chosen_mask, rejected_mask):
  check_arrays(
    chosen_hidden=(chosen_hidden, "[..., T, d]"),
    rejected_hidden=(rejected_hidden, "[..., U, d]"),
    chosen_mask=(chosen_mask, "[..., T]"),
    rejected_mask=(rejected_mask, "[..., U]"),
  )


@functools.partial(jax.jit, static_argnames="normalize")
def _sum_of_states(hidden: chex.Array, mask: chex.Array, normalize: bool) -> jax.Array:
  """Sum or mean of the states that predict the tokens of the mask, `[..., d]`."""
  used = _predicts(mask)
  total = _masked_sum(jnp.asarray(hidden), used)
  if normalize:
    total /= jnp.maximum(jnp.sum(used, axis=-1, keepdims=True), 1)
  return total


@jax.custom_jvp
def _masked_sum(states: jax.Array, used: jax.Array) -> jax.Array:
  """Sum of the first used states, one position of all pairs at a time.

  A sum along the axis would first write all states again, those that are not used as zeros.
  """

  def of_position(t):
    state = jax.lax.dynamic_index_in_dim(states, t, states.ndim - 2, keepdims=False)
    counts = jax.lax.dynamic_index_in_dim(used, t, used.ndim - 1)
    return jnp.where(counts, as_accumulator(state), 0.0)

  if used.shape[-1] == 0:
    return jnp.sum(as_accumulator(states[..., :0, :]), axis=-2)
  add = lambda t, total: total + of_position(t)  # noqa: E731
  return jax.lax.fori_loop(1, used.shape[-1], add, of_position(0))


@_masked_sum.defjvp
def _masked_sum_jvp(primals, tangents):
  _, used = primals
  tangent = tangents[0][..., : used.shape[-1], :]
  change = jnp.sum(jnp.where(used[..., None], as_accumulator(tangent), 0.0), axis=-2)
  return _masked_sum(*primals), change


@jax.jit
def _last_state(hidden: chex.Array, mask: chex.Array) -> jax.Array:
  """The last of the states that predict the tokens of the mask, or zeros, `[..., d]`."""
  used = _predicts(mask)
  if used.shape[-1] == 0:
    return jnp.sum(as_accumulator(hidden[..., :0, :]), axis=-2)
  last = used.shape[-1] - 1 - jnp.argmax(used[..., ::-1], axis=-1)
  state = jnp.take_along_axis(jnp.asarray(hidden), last[..., None, None], axis=-2)[..., 0, :]
  return jnp.where(jnp.any(used, axis=-1, keepdims=True), as_accumulator(state), 0.0)


def _predicts(mask: chex.Array) -> jax.Array:
  """Which states but the last one of a sequence predict a token of the mask."""
  return jnp.asarray(mask).astype(bool)[..., 1:]


def normalized_edit_distance(
  tokens_a: chex.Array, lengths_a: chex.Array, tokens_b: chex.Array, lengths_b: chex.Array
) -> jax.Array:
  """Levenshtein distance of two token sequences as a share of the longer one's length.

  Args:
    tokens_a: sequences, int `[..., T]`; what stands behind their lengths is ignored.
    lengths_a: their lengths, int `[...]`, in [0, T].
    tokens_b: sequences to compare with, int `[..., U]`.
    lengths_b: their lengths, int `[...]`, in [0, U].

  Returns:
    Smallest number of insertions, deletions and substitutions that turn one into the other, over
    the longer length, `[...]`, float32 in [0, 1]; 0 for two empty sequences, NaN where a traced
    length is out of range.

  Raises:
    ValueError: if a known length is out of range.

  Reference: Wagner and Fischer, The String-to-String Correction Problem, Journal of the ACM 1974,
  section 3, https://doi.org/10.1145/321796.321811; as a baseline in Razin et al., ICLR 2025,
  section 5, https://arxiv.org/abs/2410.08847.
  """
  check_arrays(
    tokens_a=(tokens_a, "int [..., T]"),
    lengths_a=(lengths_a, "int [...]"),
    tokens_b=(tokens_b, "int [..., U]"),
    lengths_b=(lengths_b, "int [...]"),
  )
  check_range("lengths_a", lengths_a, f"[0, {jnp.shape(tokens_a)[-1]}]")
  check_range("lengths_b", lengths_b, f"[0, {jnp.shape(tokens_b)[-1]}]")
  longer = jnp.maximum(*(jnp.asarray(x, jnp.int32) for x in (lengths_a, lengths_b)))
  return edit_distance(tokens_a, lengths_a, tokens_b, lengths_b) / jnp.maximum(longer, 1)


@jax.jit
def edit_distance(
  tokens_a: chex.Array, lengths_a: chex.Array, tokens_b: chex.Array, lengths_b: chex.Array
) -> jax.Array:
  """Levenshtein distance of token sequences.

  Args:
    tokens_a, lengths_a, tokens_b, lengths_b: as in `normalized_edit_distance`.

  Returns:
    Smallest number of insertions, deletions and substitutions, `[...]`, float32; NaN where a length
    is out of range.
  """
  tokens_a, lengths_a, tokens_b, lengths_b = (
    jnp.asarray(x, jnp.int32) for x in (tokens_a, lengths_a, tokens_b, lengths_b)
  )
  columns = jax.lax.broadcasted_iota(
    jnp.int32, (*tokens_b.shape[:-1], tokens_b.shape[-1] + 1), tokens_b.ndim - 1
  )

  def step(carry, token):
    distances, row = carry
    row += 1
    replaced = distances[..., :-1] + (tokens_b != token[..., None])
    reached = jnp.minimum(replaced, distances[..., 1:] + 1)
    reached = jnp.concatenate([jnp.broadcast_to(row, (*row.shape[:-1], 1)), reached], axis=-1)
    # With insertions, the least of `reached[k] + j - k` over columns k up to j.
    reached = jax.lax.cummin(reached - columns, axis=reached.ndim - 1) + columns
    # Tokens behind the length change nothing.
    return (jnp.where(row <= lengths_a[..., None], reached, distances), row), None

  start = (columns, jnp.zeros_like(columns[..., :1]))
  rows = jnp.moveaxis(tokens_a, -1, 0)
  if len(rows):
    start = varying_carry(step, start, rows)
  (distances, _), _ = jax.lax.scan(step, start, rows)
  distance = jnp.take_along_axis(distances, lengths_b[..., None], axis=-1, mode="clip")[..., 0]
  fits = (lengths_a >= 0) & (lengths_a <= tokens_a.shape[-1])
  fits &= (lengths_b >= 0) & (lengths_b <= tokens_b.shape[-1])
  return jnp.where(fits, distance.astype(jnp.float32), jnp.nan)


def token_alignment(
  unembedding: chex.Array, chosen_tokens: chex.Array, rejected_tokens: chex.Array
) -> jax.Array:
  """How much each token's score gains from training on a pair of responses of one token.

  A gradient step on the pair moves the hidden state along the difference of the two tokens'
  unembeddings, and raises the scores of the tokens that are aligned with it. The chosen token need
  not be the one that gains most.

  Args:
    unembedding: unembedding of each token, `[v, d]` (the embedding where both are tied).
    chosen_tokens: preferred tokens, int `[...]`, in [0, v).
    rejected_tokens: rejected tokens, int `[...]`, in [0, v).

  Returns:
    Inner product of every token's unembedding with the difference of those of the chosen and of the
    rejected token, `[..., v]`, in float32 or wider; NaN where a traced token is out of range.

  Raises:
    ValueError: if a known token is out of range.

  Reference: Razin et al., ICLR 2025, section 4, https://arxiv.org/abs/2410.08847.
  """
  check_arrays(
    unembedding=(unembedding, "[v, d]"),
    chosen_tokens=(chosen_tokens, "int [...]"),
    rejected_tokens=(rejected_tokens, "int [...]"),
  )
  vectors = as_accumulator(unembedding)
  chosen, rejected = (
    jnp.take(vectors, as_classes(name, tokens, len(vectors)), axis=0, mode="fill")
    for name, tokens in (("chosen_tokens", chosen_tokens), ("rejected_tokens", rejected_tokens))
  )
  return jnp.einsum("...d,vd->...v", chosen - rejected, vectors, precision="highest")


def lowest_scores_mask(scores: chex.Array, *, fraction: chex.Numeric) -> jax.Array:
  """Which pairs a filter keeps: the given share of them with the lowest scores.

  Args:
    scores: score per pair, `[n]`; of equal scores the earlier one is lower, and NaN is higher than
      every number.
    fraction: share that is kept, in (0, 1].

  Returns:
    Which pairs are kept, bool `[n]`: `fraction * n` of them, a half rounded up, and at least one.

  Raises:
    ValueError: if `fraction` lies outside (0, 1] or there is no score.

  Reference: Razin et al., ICLR 2025, section 6, https://arxiv.org/abs/2410.08847.
  """
  check_range("fraction", fraction, "(0, 1]")
  check_arrays(scores=(scores, "[n]"), fraction=(fraction, "[]"))
  check_filled(scores=scores)
  order = jnp.argsort(jnp.asarray(scores), stable=True)
  num = order.shape[0]
  # A decimal fraction's half, such as 0.145 of 100, is one only up to rounding.
  count = jnp.maximum((round(fraction * num, 6) + 0.5) // 1, 1)
  return jnp.zeros(num, bool).at[order].set(jnp.arange(num) < count)


def likelihood_displacement(before: chex.Array, after: chex.Array) -> LikelihoodDisplacement:
  """How training changed the log-probabilities of preferred responses.

  Args:
    before: log-probabilities of the preferred responses before training in nats, `[n]`.
    after: those after training, `[n]`.

  Returns:
    A `LikelihoodDisplacement`, in float32 or wider; NaN if there is no response or a change is NaN.

  Reference: Razin et al., ICLR 2025, section 2, https://arxiv.org/abs/2410.08847.
  """
  check_arrays(before=(before, "[n]"), after=(after, "[n]"))
  before, after = as_accumulator(before, after)
  change = after - before
  decreased = jnp.where(jnp.isnan(change), change, change < 0)
  return LikelihoodDisplacement(jnp.mean(change), jnp.mean(decreased))
