"""Beam search: the most probable continuations that a bounded frontier finds."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_at_least, check_choice, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  as_token_ids,
  check_prompts,
  is_any_token,
  next_token_logits,
  prefill,
  repeat_rows,
  table_decode_fns,
)
from jaxlab.samplers.top_k import row_top_k


class BeamSearchOutput(NamedTuple):
  """The finished hypotheses of each prompt, the best first.

  Attributes:
    tokens: new tokens, EOS included, then pad; i32 `[b, num_beams, t]`.
    scores: log-probability over length^length_penalty, `[b, num_beams]`; -inf where there are
      fewer hypotheses than beams, NaN in rows where the model gives NaN.
    lengths: number of new tokens, i32 `[b, num_beams]`; 0 where there is no hypothesis.
  """

  tokens: chex.Array
  scores: chex.Array
  lengths: chex.Array


def beam_search(
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  num_beams: int,
  max_new_tokens: int,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
  length_penalty: chex.Numeric = 1.0,
  early_stopping: bool | Literal["never"] = False,
) -> BeamSearchOutput:
  """Keeps the best `num_beams` unfinished hypotheses, and as many finished ones.

  A step extends every running hypothesis by every token and looks at the 2 num_beams best of these
  candidates ((1 + number of EOS) num_beams with several EOS). Those among the first num_beams that
  end, or that have `max_new_tokens`, compete for the finished pool; the num_beams best that go on
  are the next frontier. A row stops when its pool is full and, by its present score, no running
  hypothesis can improve it. The rules are those of transformers since version 4.50.

  Args:
    decode_fns: the model.
    prompt_tokens: prompts padded on the right, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    num_beams: hypotheses kept, at least 1; 1 is greedy decoding.
    max_new_tokens: columns of the output, at least 1.
    eos_token_id: the token that ends a hypothesis, several, or None.
    pad_token_id: what follows the end.
    length_penalty: exponent of the length that divides the log-probability: above 0 favors long
      hypotheses, 0 is the log-probability itself.
    early_stopping: True stops a row as soon as its pool is full. False stops it once the best
      running score, at its present length, is no better than the worst of the pool. "never" does
      the same, but with a positive `length_penalty` it scores at `max_new_tokens`, the length that
      gives the best score.

  Returns:
    The `BeamSearchOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, `num_beams` < 1, `max_new_tokens` < 1, `early_stopping` is
      none of the three, `length_penalty` is not finite, or a concrete prompt length lies outside
      its range.

  Reference: Wolf et al., Transformers, EMNLP 2020, https://arxiv.org/abs/1910.03771;
  length penalty: Wu et al., Google's Neural Machine Translation System, 2016, section 7,
  https://arxiv.org/abs/1609.08144.
  """
  check_at_least(1, num_beams=num_beams, max_new_tokens=max_new_tokens)
  check_choice("early_stopping", early_stopping, (True, False, "never"))
  check_range("length_penalty", length_penalty, "(-inf, inf)")
  return _beam_search(
    decode_fns,
    *check_prompts(prompt_tokens, prompt_lengths),
    num_beams=num_beams,
    max_new_tokens=max_new_tokens,
    eos_ids=as_token_ids(eos_token_id),
    pad_token_id=pad_token_id,
    length_penalty=length_penalty,
    early_stopping=early_stopping,
  )


@compiled_once
def _beam_search(
  decode_fns,
  prompt_tokens,
  prompt_lengths,
  *,
  num_beams: int,
  max_new_tokens: int,
  eos_ids: tuple[int, ...],
  pad_token_id: int,
  length_penalty: chex.Numeric,
  early_stopping: bool | Literal["never"],
) -> BeamSearchOutput:
  max_length = prompt_tokens.shape[1] + max_new_tokens
  start = prefill(decode_fns, prompt_tokens, prompt_lengths, max_length=max_length)
  start = repeat_rows(start, num_beams)
  like = next_token_logits(decode_fns, start)
  batch_size, vocab_size = like.shape[0] // num_beams, like.shape[1]
  num_candidates = min(max(2, 1 + len(eos_ids)), vocab_size) * num_beams

  def proceed(state):
    return (state.step < max_new_tokens) & jnp.any(state.open_rows)

  def advance(state):
    length = state.step + 1
    logits, cache = decode_fns.apply(
      state.last.reshape(-1, 1), state.cache, start.positions[:, None] + state.step
    )
    log_probs = jax.nn.log_softmax(as_accumulator(logits[:, 0]), axis=-1)
    log_probs = log_probs.reshape(batch_size, num_beams, vocab_size)
    is_live = state.scores > -jnp.inf
    totals = jnp.where(is_live[..., None], state.scores[..., None] + log_probs, -jnp.inf)
    # One NaN logit makes all log-probabilities of its beam NaN.
    is_lost = state.open_rows & jnp.any(jnp.isnan(totals[..., 0]), axis=1)
    totals, flat = row_top_k(totals.reshape(batch_size, -1), num_candidates)
    beams, tokens = flat // vocab_size, flat % vocab_size
    written = jax.lax.dynamic_update_slice_in_dim(
      _pick(state.tokens, beams), tokens[..., None], state.step, axis=2
    )
    ends = is_any_token(tokens, eos_ids) | (length == max_new_tokens)

    divisor = jnp.power(length.astype(totals.dtype), length_penalty)
    is_first = jnp.arange(num_candidates)[None] < num_beams
    enters = ends & is_first & state.open_rows[:, None]
    pool = _best(
      _Pool(
        jnp.concatenate([state.pool.tokens, written], axis=1),
        jnp.concatenate([state.pool.scores, jnp.where(enters, totals / divisor, -jnp.inf)], axis=1),
        jnp.concatenate([state.pool.lengths, jnp.full_like(tokens, length)], axis=1),
      ),
      num_beams,
    )

    pool = pool._replace(scores=jnp.where(is_lost[:, None], jnp.nan, pool.scores))
    scores, chosen = row_top_k(jnp.where(ends, -jnp.inf, totals), num_beams)
    # A row that stops by this bound stays stopped, even if a later hypothesis would score better.
    longest = jnp.where(jnp.asarray(length_penalty) > 0, max_new_tokens, length)
    reach = longest if early_stopping == "never" else length
    bound = scores[:, 0] / jnp.power(reach.astype(totals.dtype), length_penalty)
    full = pool.scores[:, -1] > -jnp.inf
    settled = full if early_stopping is True else full & (bound <= pool.scores[:, -1])
    open_rows = state.open_rows & ~settled & ~is_lost & (scores[:, 0] > -jnp.inf)
    origin = jnp.take_along_axis(beams, chosen, axis=1)
    return _LoopState(
      step=length,
      last=jnp.take_along_axis(tokens, chosen, axis=1),
      cache=_pick_rows(cache, origin),
      tokens=_pick(written, chosen),
      scores=scores,
      pool=pool,
      open_rows=open_rows,
    )

  shape = (batch_size, num_beams)
  none = jnp.full(shape, -jnp.inf, like.dtype)
  blank = jnp.full((*shape, max_new_tokens), pad_token_id, jnp.int32)
  state = _LoopState(
    step=jnp.zeros((), jnp.int32),
    last=start.tokens.reshape(shape),
    cache=start.cache,
    tokens=blank,
    # All beams start identical: only the first is extended, else all would remain copies of it.
    scores=none.at[:, 0].set(0.0),
    pool=_Pool(blank, none, jnp.zeros(shape, jnp.int32)),
    open_rows=jnp.ones(batch_size, bool),
  )
  pool = jax.lax.while_loop(proceed, advance, varying_carry(advance, state)).pool
  is_filled = pool.scores > -jnp.inf
  return BeamSearchOutput(
    tokens=jnp.where(is_filled[..., None], pool.tokens, pad_token_id),
    scores=pool.scores,
    lengths=jnp.where(is_filled, pool.lengths, 0),
  )


def markov_beam_search(
  transition_logits: chex.Array,
  start_tokens: chex.Array,
  *,
  num_beams: int,
  max_new_tokens: int,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
  length_penalty: chex.Numeric = 1.0,
  early_stopping: bool | Literal["never"] = False,
) -> BeamSearchOutput:
  """`beam_search` on the Markov model of a table.

  Args:
    transition_logits: scores of the next token given the last, `[v, v]`.
    start_tokens: prompts of one token, i32 `[b]`.
    num_beams: see `beam_search`.
    max_new_tokens: see `beam_search`.
    eos_token_id: see `beam_search`.
    pad_token_id: see `beam_search`.
    length_penalty: see `beam_search`.
    early_stopping: see `beam_search`.

  Returns:
    The `BeamSearchOutput`.

  Raises:
    ValueError: as `beam_search`, and if the table is not square or a concrete start token lies
      outside it.
  """
  start_tokens = as_classes("start_tokens", start_tokens, len(transition_logits))
  return beam_search(
    table_decode_fns(transition_logits),
    start_tokens[:, None],
    jnp.ones_like(start_tokens),
    num_beams=num_beams,
    max_new_tokens=max_new_tokens,
    eos_token_id=eos_token_id,
    pad_token_id=pad_token_id,
    length_penalty=length_penalty,
    early_stopping=early_stopping,
  )


class _Pool(NamedTuple):
  """Finished hypotheses, the best first; a score of -inf is an empty place."""

  tokens: jax.Array
  scores: jax.Array
  lengths: jax.Array


class _LoopState(NamedTuple):
  step: jax.Array
  last: jax.Array
  cache: Any
  tokens: jax.Array
  scores: jax.Array
  pool: _Pool
  open_rows: jax.Array


def _best(pool: _Pool, num: int) -> _Pool:
  scores, chosen = row_top_k(pool.scores, num)
  lengths = jnp.take_along_axis(pool.lengths, chosen, axis=1)
  return _Pool(_pick(pool.tokens, chosen), scores, lengths)


def _pick(values: jax.Array, indices: jax.Array) -> jax.Array:
  """Selects hypotheses of each row: `[b, m, ...]` and indices `[b, k]` to `[b, k, ...]`."""
  # `vmap` over rows, so that the compiler keeps a sharded batch on its devices.
  return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(values, indices)


def _pick_rows(tree: chex.ArrayTree, beams: jax.Array) -> chex.ArrayTree:
  """Selects beams of a flat batch: each leaf `[b m, ...]` and indices `[b, m]` to `[b m, ...]`."""

  def pick(leaf):
    return _pick(leaf.reshape(*beams.shape, *leaf.shape[1:]), beams).reshape(leaf.shape)

  return jax.tree.map(pick, tree)
