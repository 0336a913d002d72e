"""The loop of decoders that use two models: both read every token, so that either may go on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays
from jaxlab._programs import varying_carry
from jaxlab.samplers.decode_fns import DecodeFns, Prefilled, is_any_token, next_token_logits


class JointOutput(NamedTuple):
  """Generated tokens, and what was noted beside each.

  Attributes:
    tokens: new tokens, EOS included, then pad; i32 `[b, t]`.
    lengths: how many were generated, i32 `[b]`.
    notes: a tree of `[b, t]`, 0 after the end.
  """

  tokens: chex.Array
  lengths: chex.Array
  notes: chex.ArrayTree


def decode_jointly(
  models: Mapping[str, DecodeFns],
  starts: Mapping[str, Prefilled],
  choose_fn: Callable[..., tuple[Any, chex.Array, chex.ArrayTree]],
  carry: chex.ArrayTree,
  *,
  eos_ids: tuple[int, ...],
  pad_token_id: int,
  max_new_tokens: int,
) -> JointOutput:
  """Decodes token by token; to be called in a compiled function.

  Args:
    models: models of one vocabulary, by name.
    starts: their caches; the prompts may differ.
    choose_fn: `(step, carry, *logits) -> (carry, tokens i32[b], notes)`, with logits `[b, v]` of
      all models in one type, in float32 or wider, and notes a tree of arrays `[b]`.
    carry: what it gets at step 0.
    eos_ids: the tokens that end a row.
    pad_token_id: what follows the end of a row.
    max_new_tokens: columns of the output.

  Returns:
    The `JointOutput`.

  Raises:
    ValueError: if the models' vocabularies differ.
  """
  names = tuple(models)
  likes = [next_token_logits(models[name], starts[name]) for name in names]
  check_arrays(**{f"{name}_logits": (like, "[b, v]") for name, like in zip(names, likes)})
  dtype = jnp.result_type(*likes)
  rows = likes[0].shape[:1]

  def proceed(state):
    return (state.step < max_new_tokens) & ~jnp.all(state.ended)

  def advance(state):
    step, ended = state.step, state.ended
    logits, caches = [], []
    for name, last, cache in zip(names, state.last, state.caches):
      positions = (starts[name].positions + step)[:, None]
      output, cache = models[name].apply(last[:, None], cache, positions)
      logits.append(output[:, 0])
      caches.append(cache)
    carry, tokens, notes = choose_fn(step, state.carry, *as_accumulator(*logits))
    tokens = jnp.where(ended, pad_token_id, tokens).astype(jnp.int32)
    notes = jax.tree.map(lambda x: jnp.where(ended, jnp.zeros_like(x), x), notes)

    def write(buffer, values):
      return jax.lax.dynamic_update_slice_in_dim(buffer, values[:, None], step, axis=1)

    output = state.output
    return _LoopState(
      step=step + 1,
      last=[tokens] * len(names),
      caches=caches,
      carry=carry,
      ended=ended | is_any_token(tokens, eos_ids),
      output=JointOutput(
        write(output.tokens, tokens),
        output.lengths + ~ended,
        jax.tree.map(write, output.notes, notes),
      ),
    )

  step = jnp.zeros((), jnp.int32)
  scores = [jax.ShapeDtypeStruct(like.shape, dtype) for like in likes]
  _, _, notes = jax.eval_shape(choose_fn, step, carry, *scores)
  state = _LoopState(
    step=step,
    last=[starts[name].tokens for name in names],
    caches=[starts[name].cache for name in names],
    carry=carry,
    ended=jnp.zeros(rows, bool),
    output=JointOutput(
      jnp.full((*rows, max_new_tokens), pad_token_id, jnp.int32),
      jnp.zeros(rows, jnp.int32),
      jax.tree.map(lambda x: jnp.zeros((*rows, max_new_tokens), x.dtype), notes),
    ),
  )
  return jax.lax.while_loop(proceed, advance, varying_carry(advance, state)).output


class _LoopState(NamedTuple):
  """What the loop carries; `last` is the newest token for each model, which no cache holds yet."""

  step: jax.Array
  last: list[jax.Array]
  caches: list[Any]
  carry: Any
  ended: jax.Array
  output: JointOutput
