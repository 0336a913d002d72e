"""Speculative decoding: a small model drafts, the large one verifies many tokens in one call.

The output is distributed exactly as if the large model had drawn it token by token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.losses.sequence import token_log_probs
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


class SpeculativeVerdict(NamedTuple):
  """Number of accepted draft tokens, i32 `[b]`, and the next token's distribution, `[b, v]`."""

  num_accepted: chex.Array
  next_token_probs: chex.Array


class SpeculativeOutput(NamedTuple):
  """Generated tokens, and the number of model calls.

  Attributes:
    tokens: new tokens, EOS included, then pad; i32 `[b, t]`.
    lengths: how many were generated, i32 `[b]`.
    log_probs: log-probability of each token under the target model itself, in nats, 0 after the
      end; `[b, t]`.
    num_target_calls: rounds that the row took part in, i32 `[b]`.
    num_accepted: draft tokens accepted in those rounds, i32 `[b]`, including those beyond the end
      of the row; divided by `num_draft_tokens * num_target_calls` it is the acceptance rate.
  """

  tokens: chex.Array
  lengths: chex.Array
  log_probs: chex.Array
  num_target_calls: chex.Array
  num_accepted: chex.Array


def speculative_verify(
  draft_tokens: chex.Array,
  draft_probs: chex.Array,
  target_probs: chex.Array,
  uniforms: chex.Array,
) -> SpeculativeVerdict:
  """Accepts draft tokens from the left until one fails, and gives the law of its replacement.

  Token x is accepted with probability min(1, p(x) / q(x)); the first rejected token is drawn again
  from max(p - q, 0), normalized, so that it comes out with probability p in total. If all are
  accepted the next token is drawn from the target's last row.

  Args:
    draft_tokens: tokens drawn from the draft model, i32 `[b, g]`.
    draft_probs: the distributions q that they were drawn from, `[b, g, v]`.
    target_probs: the target's distributions p at the same places and the one after them,
      `[b, g + 1, v]`.
    uniforms: uniform numbers in [0, 1), `[b, g]`.

  Returns:
    The `SpeculativeVerdict`, probabilities in float32 or wider; NaN in rows with a NaN probability
    or a traced token outside the vocabulary.

  Raises:
    TypeError: if tokens are not integers.
    ValueError: if the shapes do not agree, or a concrete token lies outside [0, v).

  Reference: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023,
  algorithm 1, https://arxiv.org/abs/2211.17192; Chen et al., 2023,
  https://arxiv.org/abs/2302.01318.
  """
  draft_probs, target_probs, uniforms = as_accumulator(draft_probs, target_probs, uniforms)
  check_arrays(
    draft_probs=(draft_probs, "[b, g, v]"),
    draft_tokens=(draft_tokens, "int [b, g]"),
    uniforms=(uniforms, "[b, g]"),
  )
  batch_size, num_drafts, vocab_size = draft_probs.shape
  check_arrays(target_probs=(target_probs, f"[{batch_size}, {num_drafts + 1}, {vocab_size}]"))
  drafted = as_classes("draft_tokens", draft_tokens, vocab_size)[..., None]
  q, p = (
    jnp.take_along_axis(probs, drafted, axis=-1, mode="fill")[..., 0]
    for probs in (draft_probs, target_probs[:, :-1])
  )
  accepted = uniforms * q < p
  num_accepted = jnp.sum(jnp.cumprod(accepted, axis=1, dtype=jnp.int32), axis=1)
  # After the last draft token the draft's distribution counts as 0: the residual is the target's.
  draft_probs = jnp.pad(draft_probs, ((0, 0), (0, 1), (0, 0)))
  place = num_accepted[:, None, None]
  target, draft = (
    jnp.take_along_axis(probs, place, axis=1)[:, 0] for probs in (target_probs, draft_probs)
  )
  rest = jnp.where(target < draft, 0.0, target - draft)
  total = jnp.sum(rest, axis=-1, keepdims=True)
  # Rounding may leave no residual of two distributions that are nearly equal.
  probs = jnp.where(total == 0, target, rest / jnp.where(total == 0, 1.0, total))
  unknown = jnp.any(jnp.isnan(p + q), axis=1, keepdims=True)
  return SpeculativeVerdict(num_accepted, jnp.where(unknown, jnp.nan, probs))


def speculative_decode(
  key: chex.PRNGKey,
  target_fns: DecodeFns,
  draft_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  num_draft_tokens: int = 4,
  max_new_tokens: int,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  min_p: chex.Numeric | None = None,
  typical_p: chex.Numeric | None = None,
  eos_token_id: int | Sequence[int] | None = None,
  pad_token_id: int = 0,
) -> SpeculativeOutput:
  """Continues prompts as the target model would, with one target call for several tokens.

  A round drafts `num_draft_tokens` one by one, verifies them in one call of the target, and adds
  those accepted and one more; each row goes at its own pace. Both models' logits pass
  `process_logits`. At temperature 0 the tokens are those of greedy decoding with the target.

  Args:
    key: random key.
    target_fns: the model whose distribution is sampled.
    draft_fns: a cheaper model of the same vocabulary.
    prompt_tokens: prompts padded on the right, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    num_draft_tokens: draft tokens per round, at least 1.
    max_new_tokens: columns of the output, at least 1.
    temperature, top_k, top_p, min_p, typical_p: as in `process_logits`.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `SpeculativeOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or the models' vocabularies differ.

  Reference: Leviathan et al., ICML 2023, https://arxiv.org/abs/2211.17192.
  """
  check_at_least(1, num_draft_tokens=num_draft_tokens, max_new_tokens=max_new_tokens)
  options = SamplingOptions(temperature, top_k, top_p, min_p, typical_p)
  return _speculative_decode(
    key,
    target_fns,
    draft_fns,
    *check_prompts(prompt_tokens, prompt_lengths),
    num_draft_tokens=num_draft_tokens,
    max_new_tokens=max_new_tokens,
    options=check_sampling_options(options),
    eos_ids=as_token_ids(eos_token_id),
    pad_token_id=pad_token_id,
  )


@compiled_once
def _speculative_decode(
  key,
  target_fns,
  draft_fns,
  prompt_tokens,
  prompt_lengths,
  *,
  num_draft_tokens: int,
  max_new_tokens: int,
  options: SamplingOptions,
  eos_ids: tuple[int, ...],
  pad_token_id: int,
) -> SpeculativeOutput:
  max_length = prompt_tokens.shape[1] + max_new_tokens
  target = prefill(target_fns, prompt_tokens, prompt_lengths, max_length=max_length)
  draft = prefill(draft_fns, prompt_tokens, prompt_lengths, max_length=max_length)
  like, draft_like = next_token_logits(target_fns, target), next_token_logits(draft_fns, draft)
  check_arrays(target_logits=(like, "[b, v]"), draft_logits=(draft_like, "[b, v]"))
  greedy = is_greedy(options.temperature)

  def places(positions):
    # No row needs later positions, and the model may not support them.
    return jnp.clip(positions, 0, max_length - 1)

  def choose(key, logits):
    if greedy:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits).astype(jnp.int32)

  def write_draft(key, cache, previous, last, position):
    """Draws the draft tokens `[b, g]` and their distributions `[b, g, v]`."""
    keys = jax.random.split(key, num_draft_tokens)

    def draw(key, logits):
      logits = process_logits(logits[:, -1], **options._asdict())
      return choose(key, logits), jax.nn.softmax(logits, axis=-1)

    # The cache lacks the token before the last one where all drafts of a round were accepted.
    pair = places(jnp.stack([position - 1, position], axis=1))
    logits, cache = draft_fns.apply(jnp.stack([previous, last], axis=1), cache, pair)
    first, first_probs = draw(keys[0], logits)

    def step(carry, row):
      cache, last, position = carry
      logits, cache = draft_fns.apply(last[:, None], cache, places(position)[:, None])
      tokens, probs = draw(row, logits)
      return (cache, tokens, position + 1), (tokens, probs)

    (cache, _, _), (tokens, probs) = jax.lax.scan(step, (cache, first, position + 1), keys[1:])
    tokens = jnp.concatenate([first[:, None], tokens.T], axis=1)
    probs = jnp.concatenate([first_probs[:, None], jnp.moveaxis(probs, 0, 1)], axis=1)
    return cache, tokens, probs

  def advance(state):
    ended = state.ended
    position = target.positions + state.lengths
    draft_key, uniform_key, next_key = jax.random.split(jax.random.fold_in(key, state.round), 3)
    draft_cache, drafted, draft_probs = write_draft(
      draft_key, state.draft_cache, state.previous, state.last, position
    )
    block = jnp.concatenate([state.last[:, None], drafted], axis=1)
    offsets = jnp.arange(num_draft_tokens + 1, dtype=jnp.int32)[None]
    logits, target_cache = target_fns.apply(
      block, state.target_cache, places(position[:, None] + offsets)
    )
    logits = as_accumulator(logits)
    verdict = speculative_verify(
      drafted,
      draft_probs,
      jax.nn.softmax(process_logits(logits, **options._asdict()), axis=-1),
      jax.random.uniform(uniform_key, drafted.shape, like.dtype),
    )
    extra = choose(next_key, jnp.log(verdict.next_token_probs))
    accepted = verdict.num_accepted
    fresh = jnp.where(offsets == accepted[:, None], extra[:, None], jnp.roll(block, -1, axis=1))
    scores = token_log_probs(logits, fresh)

    is_end = is_any_token(fresh, eos_ids)
    before_end = jnp.cumsum(is_end, axis=1) - is_end == 0
    kept = jnp.sum((offsets <= accepted[:, None]) & before_end, axis=1, dtype=jnp.int32)
    lengths = jnp.minimum(state.lengths + jnp.where(ended, 0, kept), max_new_tokens)
    # Where a column of the output lies in this round's block.
    source = jnp.arange(max_new_tokens)[None] - state.lengths[:, None]
    is_new = (source >= 0) & (source < (lengths - state.lengths)[:, None])
    source = jnp.clip(source, 0, num_draft_tokens)

    def write(buffer, values):
      return jnp.where(is_new, jnp.take_along_axis(values, source, axis=1), buffer)

    emitted = offsets < kept[:, None]
    newest = jnp.take_along_axis(
      jnp.concatenate([state.last[:, None], fresh], axis=1),
      accepted[:, None] + jnp.arange(2)[None],
      axis=1,
    )
    return _LoopState(
      round=state.round + 1,
      previous=newest[:, 0],
      last=newest[:, 1],
      target_cache=target_cache,
      draft_cache=draft_cache,
      lengths=lengths,
      ended=ended | jnp.any(is_end & emitted, axis=1) | (lengths == max_new_tokens),
      tokens=write(state.tokens, fresh),
      log_probs=write(state.log_probs, scores),
      num_target_calls=state.num_target_calls + ~ended,
      num_accepted=state.num_accepted + jnp.where(ended, 0, accepted),
    )

  batch_size = like.shape[0]
  none = jnp.zeros(batch_size, jnp.int32)
  before = jnp.maximum(target.positions - 1, 0)[:, None]
  state = _LoopState(
    round=jnp.zeros((), jnp.int32),
    previous=jnp.take_along_axis(prompt_tokens, before, axis=1)[:, 0],
    last=target.tokens,
    target_cache=target.cache,
    draft_cache=draft.cache,
    lengths=none,
    ended=jnp.zeros(batch_size, bool),
    tokens=jnp.full((batch_size, max_new_tokens), pad_token_id, jnp.int32),
    log_probs=jnp.zeros((batch_size, max_new_tokens), like.dtype),
    num_target_calls=none,
    num_accepted=none,
  )
  state = varying_carry(advance, state)
  state = jax.lax.while_loop(lambda state: ~jnp.all(state.ended), advance, state)
  return SpeculativeOutput(
    state.tokens, state.lengths, state.log_probs, state.num_target_calls, state.num_accepted
  )


class _LoopState(NamedTuple):
  """What the loop carries; `last` is the newest token, which no cache holds yet."""

  round: jax.Array
  previous: jax.Array
  last: jax.Array
  target_cache: Any
  draft_cache: Any
  lengths: jax.Array
  ended: jax.Array
  tokens: jax.Array
  log_probs: jax.Array
  num_target_calls: jax.Array
  num_accepted: jax.Array
