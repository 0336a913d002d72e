"""Sampling and greedy decoding with a cache, token by token in one loop."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_at_least, check_range, is_known
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.losses.sequence import token_log_probs
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
from jaxlab.samplers.token_filters import (
  SamplingOptions,
  apply_repetition_penalty,
  check_sampling_options,
  is_greedy,
  process_logits,
)


class GenerateOutput(NamedTuple):
  """Generated tokens; those of `generate_n` have a sample axis after the batch axis.

  Attributes:
    tokens: new tokens, the one that ended the row included, then pad; i32 `[b, t]`.
    lengths: how many were generated, i32 `[b]`.
    log_probs: log-probability of each token under the model itself, in nats, 0 after the end, NaN
      where the model gives NaN; `[b, t]`.
    sampling_log_probs: the same under the processed logits that it was drawn from; 0 where nothing
      is drawn, at temperature 0. `[b, t]`.
    finished: whether the row ended by an end token or stop sequence, not by its length, `[b]`.
    logits: the model's own logits at each step, 0 after the end, `[b, t, v]`; None unless asked
      for.
  """

  tokens: chex.Array
  lengths: chex.Array
  log_probs: chex.Array
  sampling_log_probs: chex.Array
  finished: chex.Array
  logits: chex.Array | None


def generate(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  max_new_tokens: int,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  min_p: chex.Numeric | None = None,
  typical_p: chex.Numeric | None = None,
  repetition_penalty: chex.Numeric | None = None,
  min_new_tokens: int = 0,
  eos_token_id: int | Sequence[int] | None = None,
  stop_sequences: Sequence[Sequence[int]] | None = None,
  pad_token_id: int = 0,
  return_logits: bool = False,
) -> GenerateOutput:
  """Continues each prompt until it ends or has `max_new_tokens` more.

  Step t draws all rows independently with `fold_in(key, t)`. The loop stops early once all rows
  have ended, which changes no row. `min_new_tokens` and the repetition penalty act before
  `process_logits`, also at temperature 0.

  Args:
    key: random key; not used at temperature 0.
    decode_fns: the model.
    prompt_tokens: prompts padded on the right with any token, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    max_new_tokens: columns of the output, at least 1.
    temperature, top_k, top_p, min_p, typical_p: as in `process_logits`; a temperature of exactly 0
      is greedy decoding.
    repetition_penalty: as in `apply_repetition_penalty`, on the tokens of the prompt and those
      generated, or None.
    min_new_tokens: steps in which no EOS can be drawn.
    eos_token_id: the token that ends a row, several, or None.
    stop_sequences: sequences of new tokens, each of which ends a row and stays in it; or None.
    pad_token_id: what follows the end of a row.
    return_logits: whether to return the logits, which take much memory with a large vocabulary.

  Returns:
    The `GenerateOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or a stop sequence is empty.
  """
  output = generate_n(
    key,
    decode_fns,
    prompt_tokens,
    prompt_lengths,
    num_samples=1,
    max_new_tokens=max_new_tokens,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    typical_p=typical_p,
    repetition_penalty=repetition_penalty,
    min_new_tokens=min_new_tokens,
    eos_token_id=eos_token_id,
    stop_sequences=stop_sequences,
    pad_token_id=pad_token_id,
    return_logits=return_logits,
  )
  return jax.tree.map(lambda leaf: leaf[:, 0], output)


def generate_n(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  num_samples: int,
  max_new_tokens: int,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  min_p: chex.Numeric | None = None,
  typical_p: chex.Numeric | None = None,
  repetition_penalty: chex.Numeric | None = None,
  min_new_tokens: int = 0,
  eos_token_id: int | Sequence[int] | None = None,
  stop_sequences: Sequence[Sequence[int]] | None = None,
  pad_token_id: int = 0,
  return_logits: bool = False,
) -> GenerateOutput:
  """Continues each prompt `num_samples` times, after a single prefill.

  Args:
    key: random key.
    decode_fns: the model.
    prompt_tokens: prompts padded on the right, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    num_samples: continuations of each prompt, n, at least 1.
    max_new_tokens, min_new_tokens, eos_token_id, stop_sequences, pad_token_id: as in `generate`.
    temperature, top_k, top_p, min_p, typical_p, repetition_penalty: as in `generate`.
    return_logits: as in `generate`.

  Returns:
    The `GenerateOutput`, every leaf `[b, n, ...]`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or a stop sequence is empty.

  Reference: Brown et al., Large Language Monkeys, 2024, https://arxiv.org/abs/2407.21787.
  """
  check_at_least(1, num_samples=num_samples, max_new_tokens=max_new_tokens)
  check_at_least(0, min_new_tokens=min_new_tokens)
  options = SamplingOptions(temperature, top_k, top_p, min_p, typical_p)
  options = check_sampling_options(options)
  if repetition_penalty is not None:
    check_range("repetition_penalty", repetition_penalty, "(0, inf)")
  ends = as_token_ids(eos_token_id), _as_sequences(stop_sequences)
  rules = _Rules(options, repetition_penalty, min_new_tokens, *ends, pad_token_id)
  prompts = check_prompts(prompt_tokens, prompt_lengths)
  return _generate_n(key, decode_fns, *prompts, rules, num_samples, max_new_tokens, return_logits)


@compiled_once
def _generate_n(
  key, decode_fns, prompt_tokens, prompt_lengths, rules, num_samples, max_new_tokens, return_logits
) -> GenerateOutput:
  eos_ids, stops = rules.eos_ids, rules.stops
  max_length = jnp.shape(prompt_tokens)[-1] + max_new_tokens
  start = prefill(decode_fns, prompt_tokens, prompt_lengths, max_length=max_length)
  seen = None
  if rules.repetition_penalty is not None:
    vocab_size = next_token_logits(decode_fns, start).shape[-1]
    seen = repeat_rows(_seen_in(prompt_tokens, prompt_lengths, vocab_size), num_samples)
  start = repeat_rows(start, num_samples)
  like = next_token_logits(decode_fns, start)

  def proceed(state):
    open_rows = ~jnp.all(state.finished) if eos_ids or stops else True
    return (state.step < max_new_tokens) & open_rows

  def advance(state):
    step, ended = state.step, state.finished
    positions = (start.positions + step)[:, None]
    logits, cache = decode_fns.apply(state.last[:, None], state.cache, positions)
    logits = as_accumulator(logits[:, 0])
    tokens, drawn_from = _choose(key, step, logits, state.seen, rules)
    tokens = jnp.where(ended, rules.pad_token_id, tokens)
    written = _Columns(
      tokens,
      token_log_probs(logits, tokens),
      token_log_probs(drawn_from, tokens) if rules.reshape_probs else None,
      logits if return_logits else None,
    )
    seen, recent = state.seen, state.recent
    if seen is not None:
      seen |= tokens[:, None] == jnp.arange(seen.shape[-1])[None]
    finished = ended | is_any_token(tokens, eos_ids)
    if stops:
      recent = jnp.concatenate([recent[:, 1:], tokens[:, None]], axis=1)
      finished |= _ends_with_any(recent, stops)
    return _LoopState(
      step=step + 1,
      last=tokens,
      cache=cache,
      lengths=state.lengths + ~ended,
      finished=finished,
      columns=_write_columns(state.columns, written, step, ended),
      seen=seen,
      recent=recent,
    )

  rows = like.shape[:1]
  state = _LoopState(
    step=jnp.zeros((), jnp.int32),
    last=start.tokens,
    cache=start.cache,
    lengths=jnp.zeros(rows, jnp.int32),
    finished=jnp.zeros(rows, bool),
    columns=_empty_columns(like, max_new_tokens, rules, return_logits),
    seen=seen,
    recent=jnp.full((*rows, max(map(len, stops))), -1, jnp.int32) if stops else None,
  )
  state = jax.lax.while_loop(proceed, advance, varying_carry(advance, state))
  tokens, log_probs, sampling_log_probs, logits = state.columns
  if not rules.reshape_probs:
    sampling_log_probs = jnp.zeros_like(log_probs) if rules.greedy else log_probs
  output = GenerateOutput(
    tokens, state.lengths, log_probs, sampling_log_probs, state.finished, logits
  )
  return jax.tree.map(lambda leaf: leaf.reshape(-1, num_samples, *leaf.shape[1:]), output)


def markov_greedy(
  transition_logits: chex.Array,
  start_tokens: chex.Array,
  *,
  max_new_tokens: int,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
) -> GenerateOutput:
  """`generate` at temperature 0 on the Markov model of a table.

  Args:
    transition_logits: scores of the next token given the last, `[v, v]`.
    start_tokens: prompts of one token, i32 `[b]`.
    max_new_tokens: columns of the output, at least 1.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `GenerateOutput`.

  Raises:
    ValueError: if `max_new_tokens` < 1, the table is not square, or a concrete start token lies
      outside it.
  """
  start_tokens = as_classes("start_tokens", start_tokens, len(transition_logits))
  return generate(
    jax.random.key(0),
    table_decode_fns(transition_logits),
    start_tokens[:, None],
    jnp.ones_like(start_tokens),
    max_new_tokens=max_new_tokens,
    temperature=0.0,
    eos_token_id=eos_token_id,
    pad_token_id=pad_token_id,
  )


class _Rules(NamedTuple):
  """How tokens are chosen and rows end; static, except for numbers that may be traced."""

  options: SamplingOptions
  repetition_penalty: chex.Numeric | None
  min_new_tokens: int
  eos_ids: tuple[int, ...]
  stops: tuple[tuple[int, ...], ...]
  pad_token_id: int

  @property
  def banned_ids(self) -> tuple[int, ...]:
    return self.eos_ids if self.min_new_tokens else ()

  @property
  def greedy(self) -> bool:
    return is_greedy(self.options.temperature)

  @property
  def reshape_probs(self) -> bool:
    """Whether tokens are drawn from other probabilities than the model's own."""
    temperature = self.options.temperature
    plain = is_known(temperature) and np.all(np.asarray(temperature) == 1)
    _, *filters = self.options
    others = (*filters, self.repetition_penalty, self.banned_ids or None)
    return not self.greedy and not (plain and all(value is None for value in others))


class _Columns(NamedTuple):
  """Outputs that are written step by step; None if not needed."""

  tokens: jax.Array
  log_probs: jax.Array
  sampling_log_probs: jax.Array | None
  logits: jax.Array | None


class _LoopState(NamedTuple):
  """What the loop carries; None where an option is off."""

  step: jax.Array
  last: jax.Array
  cache: Any
  lengths: jax.Array
  finished: jax.Array
  columns: _Columns
  seen: jax.Array | None
  recent: jax.Array | None


def _choose(key, step, logits, seen, rules: _Rules) -> tuple[jax.Array, jax.Array]:
  """The next tokens, and the logits that they were drawn from."""
  if rules.banned_ids:
    banned = is_any_token(jnp.arange(logits.shape[-1]), rules.banned_ids)
    logits = jnp.where((banned & (step < rules.min_new_tokens))[None], -jnp.inf, logits)
  if seen is not None:
    logits = apply_repetition_penalty(logits, seen, penalty=rules.repetition_penalty)
  if rules.greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits
  logits = process_logits(logits, **rules.options._asdict())
  tokens = jax.random.categorical(jax.random.fold_in(key, step), logits)
  return tokens.astype(jnp.int32), logits


def _empty_columns(like, max_new_tokens, rules: _Rules, with_logits) -> _Columns:
  batch_size, vocab_size = like.shape
  zeros = jnp.zeros((batch_size, max_new_tokens), like.dtype)
  return _Columns(
    jnp.full(zeros.shape, rules.pad_token_id, jnp.int32),
    zeros,
    zeros if rules.reshape_probs else None,
    jnp.zeros((*zeros.shape, vocab_size), like.dtype) if with_logits else None,
  )


def _write_columns(columns: _Columns, written: _Columns, step, ended) -> _Columns:
  """Writes column `step` of each buffer in rows that go on; others keep the initial fill."""

  def write(buffer, values):
    keep = ended.reshape(-1, *[1] * (values.ndim - 1))
    values = jnp.where(keep, jnp.zeros((), values.dtype), values)
    return jax.lax.dynamic_update_slice_in_dim(buffer, values[:, None], step, axis=1)

  rest = jax.tree.map(write, columns[1:], written[1:])
  tokens = jax.lax.dynamic_update_slice_in_dim(
    columns.tokens, written.tokens[:, None], step, axis=1
  )
  return _Columns(tokens, *rest)


def _as_sequences(stop_sequences) -> tuple[tuple[int, ...], ...]:
  stops = tuple(tuple(map(int, sequence)) for sequence in stop_sequences or ())
  if not all(stops):
    raise ValueError(f"stop_sequences must not hold an empty sequence, got {stop_sequences}.")
  return stops


def _ends_with_any(recent: jax.Array, stops: tuple[tuple[int, ...], ...]) -> jax.Array:
  matches = jnp.zeros(recent.shape[:1], bool)
  for sequence in stops:
    matches |= jnp.all(recent[:, -len(sequence) :] == jnp.array([sequence]), axis=1)
  return matches


def _seen_in(prompt_tokens, prompt_lengths, vocab_size: int) -> jax.Array:
  """Which tokens occur in the prompts, padding excluded."""
  real = jnp.arange(prompt_tokens.shape[1])[None] < prompt_lengths[:, None]
  none = jnp.zeros((prompt_tokens.shape[0], vocab_size), bool)
  # `vmap` over rows, so that the compiler keeps a sharded batch on its devices.
  return jax.vmap(lambda row, tokens, real: row.at[tokens].max(real))(none, prompt_tokens, real)
