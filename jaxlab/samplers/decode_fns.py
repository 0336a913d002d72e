"""The interface of decoders to a language model: two functions, and a cache without a counter.

Prompts are padded on the right, with one length per row. No row's result depends on other rows, so
the batch may be sharded. Every decoder is one program under `jax.jit`; options that are not arrays
are static:

  fns = samplers.flax_decode_fns(model, params)
  sample = jax.jit(samplers.generate_n, static_argnames=("num_samples", "max_new_tokens"))
  output = sample(key, fns, prompts, lengths, num_samples=16, max_new_tokens=64)
  answers = samplers.majority_vote(parse(output.tokens))

`apply` writes the token at position q into slot q of the cache, and a query at q attends to the
slots 0 to q only. Prompts therefore need no mask: what a pad token wrote is overwritten before a
real query can see it. Lowering a row's length removes its last tokens. Beams, samples of one prompt
and restarts are gathers along the cache's first axis.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab.losses.sequence import token_log_probs


class DecodeFns(NamedTuple):
  """A language model as decoders see it.

  Attributes:
    init_cache: `(batch_size, max_length) -> cache`. Every leaf has the batch as first axis; those
      that hold keys and values are `[b, max_length, ...]`, those that are only read (the output of
      an encoder) have any shape after the batch.
    apply: `(tokens i32[b, t], cache, positions i32[b, t]) -> (logits [b, t, v], cache)`. Writes
      beyond `max_length` are dropped, and the cache keeps its shapes and types.
  """

  init_cache: Callable[[int, int], chex.ArrayTree]
  apply: Callable[[chex.Array, chex.ArrayTree, chex.Array], tuple[chex.Array, chex.ArrayTree]]


class Prefilled(NamedTuple):
  """A cache filled with each prompt except its last token, which is the next input.

  Attributes:
    cache: the cache, each leaf `[b, ...]`.
    tokens: the last token of each prompt, i32 `[b]`.
    positions: the position of that token, i32 `[b]`.
  """

  cache: chex.ArrayTree
  tokens: chex.Array
  positions: chex.Array


def flax_decode_fns(model: Any, params: chex.ArrayTree) -> DecodeFns:
  """The decode functions of a linen language model.

  They are pytrees whose leaves are the parameters. They may be closed over, or passed to a jitted
  function as an argument, so that one compiled program serves all values of the parameters::

    sample = jax.jit(generate, static_argnames=("max_new_tokens", "eos_token_id"))
    fns = flax_decode_fns(model, params)
    output = sample(key, fns, prompts, lengths, max_new_tokens=32, eos_token_id=2)

  Args:
    model: a module with a method `init_cache(batch_size, max_length)` and a call
      `(tokens, positions, cache=cache)` whose output has `logits` and `cache`, the contract of
      `DecodeFns`. If it has a method `for_decoding(params)`, the module and parameters that this
      returns are used instead.
    params: its parameters, what `model.init` gives under "params".

  Returns:
    The `DecodeFns`.
  """
  if hasattr(model, "for_decoding"):
    model, params = model.for_decoding(params)
  init_cache = jax.tree_util.Partial(_LinenInitCache(model))
  return DecodeFns(init_cache, jax.tree_util.Partial(_LinenApply(model), params))


def table_decode_fns(transition_logits: chex.Array) -> DecodeFns:
  """The first-order Markov model of a table, all of whose quantities have a closed form.

  Args:
    transition_logits: scores of the next token given the last, `[v, v]`, one row per last token.

  Returns:
    The `DecodeFns`, with an empty cache; the table is a leaf of them.

  Raises:
    ValueError: if the table is not square.
  """
  transition_logits = as_accumulator(transition_logits)
  check_arrays(transition_logits=(transition_logits, "[v, v]"))
  init_cache = jax.tree_util.Partial(_empty_cache)
  return DecodeFns(init_cache, jax.tree_util.Partial(_table_apply, transition_logits))


def score_sequences(
  decode_fns: DecodeFns, tokens: chex.Array, lengths: chex.Array, prompt_lengths: chex.Array
) -> jax.Array:
  """Log-probabilities of given continuations, in one call of the model.

  Args:
    decode_fns: the model.
    tokens: prompt and continuation of each row, padded on the right with any token, i32 `[b, t]`.
    lengths: length of the two together, i32 `[b]`, in [0, t].
    prompt_lengths: length of the prompt, i32 `[b]`, at least 0; the first token of a row, which
      follows nothing, is never scored.

  Returns:
    Log-probability of each token given those before it in nats, 0 on the prompt and after the end,
    `[b, t]`. A token outside the vocabulary makes it NaN, in its own row.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, or a concrete length lies outside its range.
  """
  check_arrays(
    tokens=(tokens, "int [b, t]"),
    lengths=(lengths, "int [b]"),
    prompt_lengths=(prompt_lengths, "int [b]"),
  )
  batch_size, width = np.shape(tokens)
  check_range("lengths", lengths, f"[0, {width}]")
  check_range("prompt_lengths", prompt_lengths, "[0, inf)")
  tokens, lengths, prompt_lengths = map(jnp.asarray, (tokens, lengths, prompt_lengths))
  if width < 2:
    return jnp.zeros(tokens.shape, jnp.float32)
  columns = jnp.arange(width, dtype=jnp.int32)[None]
  positions = jnp.broadcast_to(columns[:, :-1], (batch_size, width - 1))
  tokens = _without_pads(tokens, lengths)
  cache = decode_fns.init_cache(batch_size, width)
  logits, _ = decode_fns.apply(tokens[:, :-1], cache, positions)
  scores = token_log_probs(logits, tokens[:, 1:])
  scored = (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])
  return jnp.where(scored, jnp.pad(scores, ((0, 0), (1, 0))), 0.0)


def prefill(
  decode_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  max_length: int,
) -> Prefilled:
  """Fills a new cache with prompts, all but the last token of each.

  The last token of each row is left to the first decoding step. No logits of the prompt are then
  computed, which with a large vocabulary would be most of the work and of the memory.

  Args:
    decode_fns: the model.
    prompt_tokens: prompts padded on the right with any token, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    max_length: slots of the cache, prompt and new tokens together.

  Returns:
    The `Prefilled` cache.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, p is 0, or a concrete length lies outside [1, p].
  """
  prompt_tokens, prompt_lengths = check_prompts(prompt_tokens, prompt_lengths)
  batch_size, width = prompt_tokens.shape
  prompt_tokens = _without_pads(prompt_tokens, prompt_lengths)
  last = prompt_lengths - 1
  cache = decode_fns.init_cache(batch_size, max_length)
  if width > 1:
    positions = jnp.broadcast_to(jnp.arange(width - 1, dtype=jnp.int32), (batch_size, width - 1))
    _, cache = decode_fns.apply(prompt_tokens[:, :-1], cache, positions)
  tokens = jnp.take_along_axis(prompt_tokens, last[:, None], axis=1)[:, 0]
  return Prefilled(cache, tokens, last)


def check_prompts(
  prompt_tokens: chex.Array, prompt_lengths: chex.Array, *, prefix: str = ""
) -> tuple[jax.Array, jax.Array]:
  """Raises if prompts do not have the types, shapes and lengths that decoders take.

  Args:
    prompt_tokens: prompts padded on the right with any token, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    prefix: of the caller's names for them.

  Returns:
    Both as int32.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, p is 0, or a concrete length lies outside [1, p].
  """
  tokens, lengths = f"{prefix}prompt_tokens", f"{prefix}prompt_lengths"
  check_arrays(**{tokens: (prompt_tokens, "int [b, p]"), lengths: (prompt_lengths, "int [b]")})
  width = np.shape(prompt_tokens)[1]
  check_at_least(1, **{f"the width of {tokens}": width})
  check_range(lengths, prompt_lengths, f"[1, {width}]")
  return jnp.asarray(prompt_tokens, jnp.int32), jnp.asarray(prompt_lengths, jnp.int32)


def _without_pads(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
  """Token 0 for all pads: a model may know no such token, and its NaN would reach the row."""
  is_real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
  return jnp.where(is_real, tokens, 0).astype(jnp.int32)


def repeat_rows(tree: chex.ArrayTree, num: int) -> chex.ArrayTree:
  """Repeats each row of every leaf; the copies are adjacent.

  Args:
    tree: arrays, each `[b, ...]`.
    num: copies per row.

  Returns:
    Arrays, each `[b num, ...]`.
  """
  return tree if num == 1 else jax.tree.map(lambda leaf: jnp.repeat(leaf, num, axis=0), tree)


def next_token_logits(decode_fns: DecodeFns, start: Prefilled) -> jax.ShapeDtypeStruct:
  """Shape and accumulation type of the logits after one token, without computing them.

  Args:
    decode_fns: the model.
    start: what decoding begins with.

  Returns:
    The shape `(b, v)` and the type.
  """
  logits, _ = jax.eval_shape(
    decode_fns.apply, start.tokens[:, None], start.cache, start.positions[:, None]
  )
  batch_size, _, vocab_size = logits.shape
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.ShapeDtypeStruct((batch_size, vocab_size), dtype)


def as_token_ids(token_ids: int | Sequence[int] | None) -> tuple[int, ...]:
  """One token id, several or none, as a tuple.

  Args:
    token_ids: an id, a sequence of ids, or None.

  Returns:
    The ids.
  """
  if token_ids is None:
    return ()
  return (int(token_ids),) if np.ndim(token_ids) == 0 else tuple(map(int, token_ids))


def is_any_token(tokens: chex.Array, token_ids: tuple[int, ...]) -> jax.Array:
  """Whether tokens are among a few given ones.

  Args:
    tokens: token ids, `[...]`.
    token_ids: the ids to compare with, static.

  Returns:
    Booleans, `[...]`.
  """
  matches = jnp.zeros(jnp.shape(tokens), bool)
  for token_id in token_ids:
    matches |= tokens == token_id
  return matches


@dataclasses.dataclass(frozen=True)
class _LinenInitCache:
  """Compares equal for equal modules, so that an equal module reuses the compiled program."""

  model: Any

  def __call__(self, batch_size, max_length):
    return self.model.init_cache(batch_size, max_length)


@dataclasses.dataclass(frozen=True)
class _LinenApply:
  model: Any

  def __call__(self, params, tokens, cache, positions):
    output = self.model.apply({"params": params}, tokens, positions, cache=cache)
    return output.logits, output.cache


def _empty_cache(batch_size, max_length):
  del batch_size, max_length
  return ()


def _table_apply(transition_logits, tokens, cache, positions):
  del positions
  tokens = as_classes("tokens", tokens, transition_logits.shape[0])
  return transition_logits.at[tokens].get(mode="fill"), cache
