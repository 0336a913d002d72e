"""Texts with a backspace: their layout for training, what is left of them, corrections as data.

Actions are tokens or a backspace, which removes the last token. The state after some actions is the
text that they leave, so that a model may return from states that its training data never visit. A
row's prompt cannot be removed: a backspace after it does nothing.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range


class BackspaceLayout(NamedTuple):
  """Inputs of a decoder that give the logits of every state of a row in one call.

  Attributes:
    tokens: prompt, then one slot per action, i32 `[b, P + T]`.
    positions: place of each slot's token in the text, i32 `[b, P + T]`.
    attention_mask: which slots (last axis) a slot attends to, bool `[b, P + T, P + T]`.
  """

  tokens: chex.Array
  positions: chex.Array
  attention_mask: chex.Array


class AppliedBackspaces(NamedTuple):
  """The texts that actions leave, i32 `[b, T]`, padded, and their lengths, i32 `[b]`."""

  tokens: chex.Array
  lengths: chex.Array


class CorrectedActions(NamedTuple):
  """Actions that write some wrong tokens, and remove them.

  Attributes:
    actions: the actions, padded, i32 `[b, 3 T]`.
    weights: 0 for wrong tokens, which are not to be imitated, and for padding, else 1; f32
      `[b, 3 T]`.
    lengths: numbers of actions, i32 `[b]`.
  """

  actions: chex.Array
  weights: chex.Array
  lengths: chex.Array


def backspace_layout(
  prompt_tokens: chex.Array,
  actions: chex.Array,
  lengths: chex.Array,
  *,
  backspace_token_id: int,
) -> BackspaceLayout:
  """Lays out actions so that one call of a decoder gives the logits of every state.

  Every action has a slot. A token's slot attends to the prompt and to the tokens that are left; a
  backspace's slot repeats the token before the removed one, at the same position, and takes the
  place of its slot. All later states are therefore computed as if the removed text had never been
  written::

    layout = backspace_layout(prompts, actions, lengths, backspace_token_id=3)
    output = model.apply(variables, layout.tokens, layout.positions,
                         attention_mask=layout.attention_mask)
    state_logits = output.logits[:, prompts.shape[1] - 1 :]  # Of states 0 to T.

  Args:
    prompt_tokens: prompts of equal length, i32 `[b, P]`, P at least 1.
    actions: tokens and backspaces, i32 `[b, T]`.
    lengths: number of actions of each row, i32 `[b]`, in [0, T]; later slots hold token 0 at
      position 0, and are seen by none but themselves.
    backspace_token_id: the action that removes a token.

  Returns:
    The `BackspaceLayout`.

  Raises:
    TypeError: if tokens, actions or lengths are not integers.
    ValueError: if shapes do not agree, P is 0, or a known length lies outside [0, T].

  Reference: Cundy and Ermon, SequenceMatch, ICLR 2024, section 3.3,
  https://arxiv.org/abs/2306.05426; the layout is a reconstruction.
  """
  check_arrays(
    prompt_tokens=(prompt_tokens, "int [b, P]"),
    actions=(actions, "int [b, T]"),
    lengths=(lengths, "int [b]"),
  )
  width, num_steps = jnp.shape(prompt_tokens)[1], jnp.shape(actions)[1]
  check_at_least(1, **{"the width of prompt_tokens": width})
  check_range("lengths", lengths, f"[0, {num_steps}]")
  prompts, actions = (jnp.asarray(x).astype(jnp.int32) for x in (prompt_tokens, actions))
  depths, real = _depths(actions, lengths, backspace_token_id)
  # Slot 0 is the last one of the prompt, whose depth is 0, and slot t that of action t.
  first = jnp.zeros_like(depths[:, :1])
  depths = jnp.concatenate([first, depths], axis=1)
  slots = jnp.arange(num_steps + 1)
  query, key = slots[None, :, None], slots[None, None]
  # A slot is left as long as the text stays longer than where the slot stands in it.
  left = (key < query) & (depths[:, None] < _least_since(depths))
  written = jnp.concatenate([prompts[:, -1:], actions], axis=1)
  is_token = (written != backspace_token_id) | (slots == 0)[None]
  same_place = is_token[:, None] & (depths[:, None] == depths[..., None]) & (key <= query)
  source = jnp.max(jnp.where(same_place, key, 0), axis=2)
  real = jnp.pad(real, ((0, 0), (1, 0)), constant_values=True)
  tokens = jnp.where(real, jnp.take_along_axis(written, source, axis=1), 0)
  positions = jnp.where(real, width - 1 + depths, 0)
  left = (left & real[..., None]) | (key == query)

  places = jnp.broadcast_to(jnp.arange(width - 1), (len(prompts), width - 1))
  causal = jnp.tri(width - 1, num_steps + width, dtype=bool)
  after = jnp.broadcast_to(real[..., None], (*real.shape, width - 1))
  return BackspaceLayout(
    jnp.concatenate([prompts[:, :-1], tokens], axis=1),
    jnp.concatenate([places.astype(jnp.int32), positions.astype(jnp.int32)], axis=1),
    jnp.concatenate(
      [
        jnp.broadcast_to(causal[None], (len(prompts), *causal.shape)),
        jnp.concatenate([after, left], axis=2),
      ],
      axis=1,
    ),
  )


def _depths(actions, lengths, backspace_token_id) -> tuple[jax.Array, jax.Array]:
  """Tokens that are left after each action, `[b, T]`, and which actions there are."""
  real = jnp.arange(actions.shape[1])[None] < jnp.asarray(lengths)[:, None]
  moves = jnp.where(real, jnp.where(actions == backspace_token_id, -1, 1), 0)
  walk = jnp.cumsum(moves, axis=1)
  # A walk that would go below 0 stays there.
  return walk - jnp.minimum(jax.lax.cummin(walk, axis=1), 0), real


def _least_since(depths: jax.Array) -> jax.Array:
  """The least depth after slot j and up to slot i, at `[b, i, j]`; a large one if i <= j."""
  slots = jnp.arange(depths.shape[1])
  later = slots[None, :, None] > slots[None, None]
  return jax.lax.cummin(jnp.where(later, depths[..., None], jnp.iinfo(jnp.int32).max), axis=1)


def apply_backspaces(
  actions: chex.Array,
  lengths: chex.Array,
  *,
  backspace_token_id: int,
  pad_token_id: int = 0,
) -> AppliedBackspaces:
  """The texts that actions leave.

  Args:
    actions: tokens and backspaces, i32 `[b, T]`.
    lengths: number of actions of each row, i32 `[b]`, in [0, T].
    backspace_token_id: the action that removes a token; of an empty text it removes nothing.
    pad_token_id: what follows the end of a text.

  Returns:
    The `AppliedBackspaces`.

  Raises:
    TypeError: if actions or lengths are not integers.
    ValueError: if shapes do not agree, or a known length lies outside [0, T].

  Reference: Cundy and Ermon, SequenceMatch, ICLR 2024, section 3.3,
  https://arxiv.org/abs/2306.05426.
  """
  check_arrays(actions=(actions, "int [b, T]"), lengths=(lengths, "int [b]"))
  num_steps = jnp.shape(actions)[1]
  check_range("lengths", lengths, f"[0, {num_steps}]")
  actions = jnp.asarray(actions).astype(jnp.int32)
  depths, real = _depths(actions, lengths, backspace_token_id)
  is_left = real & (actions != backspace_token_id)
  is_left &= depths == jax.lax.cummin(depths, axis=1, reverse=True)
  return AppliedBackspaces(
    _scatter(num_steps, pad_token_id, (jnp.where(is_left, depths - 1, num_steps), actions)),
    jnp.sum(is_left, axis=1, dtype=jnp.int32),
  )


def _scatter(width: int, fill, *entries: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Writes values `[b, T]` to places `[b, T]` of rows of a width; drops places beyond it."""

  def write(row, places, values):
    return row.at[places].set(values, mode="drop")

  values = entries[0][1]
  rows = jnp.full((len(values), width), fill, values.dtype)
  for places, values in entries:
    # `vmap` over rows, so that the compiler keeps a sharded batch on its devices.
    rows = jax.vmap(write)(rows, places, values)
  return rows


def insert_corrections(
  tokens: chex.Array,
  lengths: chex.Array,
  insert: chex.Array,
  wrong_tokens: chex.Array,
  *,
  backspace_token_id: int,
  pad_token_id: int = 0,
) -> CorrectedActions:
  """Inserts wrong tokens, and the backspaces that remove them, before given tokens.

  A model that imitates the result, except for the wrong tokens, learns to remove them.

  Args:
    tokens: texts, i32 `[b, T]`.
    lengths: their lengths, i32 `[b]`, in [0, T].
    insert: before which tokens to insert, bool `[b, T]`.
    wrong_tokens: what to insert there, i32 `[b, T]`.
    backspace_token_id: the action that removes a token.
    pad_token_id: what follows the end of the actions.

  Returns:
    The `CorrectedActions`; `apply_backspaces` gives back the texts.

  Raises:
    TypeError: if tokens or lengths are not integers, or `insert` is not boolean.
    ValueError: if shapes do not agree, or a known length lies outside [0, T].

  Reference: Cundy and Ermon, SequenceMatch, ICLR 2024, section 4 (behavioral cloning with
  backspaces), https://arxiv.org/abs/2306.05426.
  """
  check_arrays(
    tokens=(tokens, "int [b, T]"),
    lengths=(lengths, "int [b]"),
    insert=(insert, "bool [b, T]"),
    wrong_tokens=(wrong_tokens, "int [b, T]"),
  )
  num_tokens = jnp.shape(tokens)[1]
  check_range("lengths", lengths, f"[0, {num_tokens}]")
  tokens, wrong_tokens = (jnp.asarray(x).astype(jnp.int32) for x in (tokens, wrong_tokens))
  slots, width = jnp.arange(num_tokens)[None], 3 * num_tokens
  real = slots < jnp.asarray(lengths)[:, None]
  insert = jnp.asarray(insert) & real
  num_inserted = jnp.cumsum(insert, axis=1, dtype=jnp.int32)
  places = slots + 2 * num_inserted
  kept = jnp.where(real, places, width)
  wrong, removal = (jnp.where(insert, places - back, width) for back in (2, 1))
  backspaces = jnp.full_like(tokens, backspace_token_id)
  entries = (kept, tokens), (removal, backspaces), (wrong, wrong_tokens)
  ones = jnp.ones(tokens.shape, jnp.float32)
  return CorrectedActions(
    _scatter(width, pad_token_id, *entries),
    _scatter(width, 0.0, (kept, ones), (removal, ones)),
    jnp.sum(real, axis=1, dtype=jnp.int32) + 2 * jnp.sum(insert, axis=1, dtype=jnp.int32),
  )
