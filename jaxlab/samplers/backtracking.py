"""Sampling with a backspace, which removes the last token, as in `backspace_texts`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  as_token_ids,
  check_prompts,
  is_any_token,
  next_token_logits,
  prefill,
)
from jaxlab.samplers.token_filters import (
  SamplingOptions,
  check_sampling_options,
  is_greedy,
  process_logits,
)


class BacktrackingOutput(NamedTuple):
  """Sampled actions, and the texts that they leave.

  Attributes:
    tokens: new tokens that were left, the one that ended the row included, then pad; i32 `[b, t]`.
    lengths: how many, i32 `[b]`.
    actions: what was drawn, backspaces included, then pad; i32 `[b, max_steps]`.
    num_actions: how many actions, i32 `[b]`.
    num_backspaces: how many of them were backspaces, i32 `[b]`.
    finished: whether the row ended by an end token, not by its length, `[b]`.
  """

  tokens: chex.Array
  lengths: chex.Array
  actions: chex.Array
  num_actions: chex.Array
  num_backspaces: chex.Array
  finished: chex.Array


def generate_with_backspace(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  backspace_token_id: int,
  max_new_tokens: int,
  max_steps: int,
  eos_token_id: int | Sequence[int] | None,
  temperature: chex.Numeric = 1.0,
  pad_token_id: int = 0,
) -> BacktrackingOutput:
  """Continues each prompt by tokens and backspaces, with one call of the model per action.

  After a backspace the last token that is left is read again; its slot of the cache is written
  anew, and slots beyond it are not seen. Step t draws all rows independently with
  `fold_in(key, t)`, as `generate` does. A row ends at an end token, at `max_new_tokens` tokens or
  after `max_steps` actions.

  Args:
    key: random key; not used at temperature 0.
    decode_fns: the model.
    prompt_tokens: prompts padded on the right with any token, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    backspace_token_id: the action that removes a token; it is not drawn where none is left.
    max_new_tokens: most tokens that a text may have, at least 1.
    max_steps: most actions, at least `max_new_tokens`.
    eos_token_id: the token that ends a row, several, or None.
    temperature: as in `generate`; exactly 0 is greedy decoding.
    pad_token_id: what follows the end of texts and actions.

  Returns:
    The `BacktrackingOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, `max_steps` < `max_new_tokens`, or the backspace is no token of the model.

  Reference: Cundy and Ermon, SequenceMatch, ICLR 2024, section 3.3,
  https://arxiv.org/abs/2306.05426.
  """
  check_at_least(1, max_new_tokens=max_new_tokens)
  check_at_least(max_new_tokens, max_steps=max_steps)
  options = check_sampling_options(SamplingOptions(temperature, None, None, None, None))
  prompts = check_prompts(prompt_tokens, prompt_lengths)
  ids = backspace_token_id, as_token_ids(eos_token_id), pad_token_id
  return _generate(key, decode_fns, *prompts, options, *ids, max_new_tokens, max_steps)


class _State(NamedTuple):
  """What the loop carries; `last` is the last token that is left."""

  step: jax.Array
  last: jax.Array
  cache: Any
  ended: jax.Array
  output: BacktrackingOutput


@compiled_once
def _generate(
  key, decode_fns, tokens, lengths, options, backspace, eos_ids, pad, max_new_tokens, max_steps
) -> BacktrackingOutput:
  start = prefill(decode_fns, tokens, lengths, max_length=tokens.shape[1] + max_new_tokens)
  batch_size, vocab_size = next_token_logits(decode_fns, start).shape
  check_range("backspace_token_id", backspace, f"[0, {vocab_size})")
  places = jnp.arange(max_new_tokens)[None]
  is_backspace = (jnp.arange(vocab_size) == backspace)[None]

  def proceed(state):
    return (state.step < max_steps) & ~jnp.all(state.ended)

  def advance(state):
    step, ended, output = state.step, state.ended, state.output
    positions = (start.positions + output.lengths)[:, None]
    logits, cache = decode_fns.apply(state.last[:, None], state.cache, positions)
    logits = as_accumulator(logits[:, 0])
    logits = jnp.where(is_backspace & (output.lengths == 0)[:, None], -jnp.inf, logits)
    if is_greedy(options.temperature):
      actions = jnp.argmax(logits, axis=-1)
    else:
      logits = process_logits(logits, **options._asdict())
      actions = jax.random.categorical(jax.random.fold_in(key, step), logits)
    actions = jnp.where(ended, pad, actions.astype(jnp.int32))
    removes = ~ended & (actions == backspace)
    adds = ~ended & (actions != backspace)
    written = adds[:, None] & (places == output.lengths[:, None])
    texts = jnp.where(written, actions[:, None], output.tokens)
    num_left = output.lengths + adds - removes
    previous = jnp.take_along_axis(texts, jnp.maximum(num_left - 1, 0)[:, None], axis=1)[:, 0]
    finished = output.finished | (adds & is_any_token(actions, eos_ids))
    return _State(
      step + 1,
      jnp.where(num_left == 0, start.tokens, previous),
      cache,
      finished | (num_left == max_new_tokens),
      BacktrackingOutput(
        texts,
        num_left,
        jax.lax.dynamic_update_slice_in_dim(output.actions, actions[:, None], step, axis=1),
        output.num_actions + ~ended,
        output.num_backspaces + removes,
        finished,
      ),
    )

  none, no = jnp.zeros(batch_size, jnp.int32), jnp.zeros(batch_size, bool)
  texts, drawn = (jnp.full((batch_size, n), pad, jnp.int32) for n in (max_new_tokens, max_steps))
  output = BacktrackingOutput(texts, none, drawn, none, none, no)
  state = _State(jnp.zeros((), jnp.int32), start.tokens, start.cache, no, output)
  state = jax.lax.while_loop(proceed, advance, varying_carry(advance, state))
  output = state.output
  # What was removed last still stands beyond the end.
  texts = jnp.where(places < output.lengths[:, None], output.tokens, pad)
  return output._replace(tokens=texts)
