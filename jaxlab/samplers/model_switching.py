"""Decoding with two models of one vocabulary: which of them writes the next token.

While text is predictable a small model writes it; where its predictions become uncertain, a large
one takes over. Nothing is verified, so that the text may differ from the large model's.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_classes, check_at_least, check_range
from jaxlab._programs import compiled_once
from jaxlab.losses.sequence import token_log_probs
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  as_token_ids,
  check_prompts,
  next_token_logits,
  prefill,
  table_decode_fns,
)
from jaxlab.samplers.joint_decoding import decode_jointly
from jaxlab.samplers.switch_control import (
  check_switching,
  first_switch_state,
  observe_entropies,
  token_entropy,
)
from jaxlab.samplers.token_filters import (
  SamplingOptions,
  check_sampling_options,
  is_greedy,
  process_logits,
)


class SwitchingOutput(NamedTuple):
  """Generated tokens, and the model that wrote each.

  Attributes:
    tokens: new tokens, EOS included, then pad; i32 `[b, t]`.
    lengths: how many were generated, i32 `[b]`.
    log_probs: log-probability of each token under the model that wrote it, in nats, 0 after the
      end; `[b, t]`.
    use_large: whether the large model wrote it, bool `[b, t]`; False after the end.
    entropies: entropy of the prediction it was drawn from, before temperature and filters, in bits,
      0 after the end; `[b, t]`.
  """

  tokens: chex.Array
  lengths: chex.Array
  log_probs: chex.Array
  use_large: chex.Array
  entropies: chex.Array


def entropy_adaptive_decode(
  key: chex.PRNGKey,
  small_fns: DecodeFns,
  large_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  max_new_tokens: int,
  threshold: chex.Numeric,
  window: int = 5,
  min_dwell: int = 10,
  start_large: bool = False,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  eos_token_id: int | Sequence[int] | None = None,
  pad_token_id: int = 0,
) -> SwitchingOutput:
  """Continues prompts with the model that `switch_schedule` chooses by the entropies on the way.

  Both models read every token, so that either may go on. Tokens are drawn as `generate` draws them.

  Args:
    key: random key; not used at temperature 0.
    small_fns: the small model.
    large_fns: the large model, of the same vocabulary.
    prompt_tokens: prompts padded on the right, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    max_new_tokens: columns of the output, at least 1.
    threshold: mean entropy in bits above which the large model is wanted, at least 0.
    window, min_dwell, start_large: as in `switch_schedule`.
    temperature, top_k, top_p: as in `process_logits`.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `SwitchingOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or the models' vocabularies differ.

  Reference: Simonds, 2025, https://arxiv.org/abs/2502.06833.
  """
  control = check_switching(threshold, window, min_dwell, start_large)
  prompts = check_prompts(prompt_tokens, prompt_lengths)
  rules = _rules(temperature, top_k, top_p, eos_token_id, pad_token_id, max_new_tokens)
  return _decode(key, small_fns, large_fns, *prompts, rules, control, None)


def random_switching_decode(
  key: chex.PRNGKey,
  small_fns: DecodeFns,
  large_fns: DecodeFns,
  prompt_tokens: chex.Array,
  prompt_lengths: chex.Array,
  *,
  large_fraction: chex.Numeric,
  min_dwell: int = 10,
  max_new_tokens: int,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  eos_token_id: int | Sequence[int] | None = None,
  pad_token_id: int = 0,
) -> SwitchingOutput:
  """Continues prompts with models drawn at random: what a rule of switching has to beat.

  Args:
    key: random key.
    small_fns: the small model.
    large_fns: the large model, of the same vocabulary.
    prompt_tokens: prompts padded on the right, i32 `[b, p]`.
    prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    large_fraction: probability that the large model writes a segment, in [0, 1].
    min_dwell: tokens of a segment, at least 1.
    max_new_tokens: columns of the output, at least 1.
    temperature, top_k, top_p: as in `process_logits`.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `SwitchingOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or the models' vocabularies differ.

  Reference: Simonds, 2025, https://arxiv.org/abs/2502.06833.
  """
  check_range("large_fraction", large_fraction, "[0, 1]")
  check_at_least(1, min_dwell=min_dwell)
  prompts = check_prompts(prompt_tokens, prompt_lengths)
  rules = _rules(temperature, top_k, top_p, eos_token_id, pad_token_id, max_new_tokens)
  shape = prompts[0].shape[0], max_new_tokens
  plan = _random_plan(key, large_fraction, shape=shape, min_dwell=min_dwell)
  return _decode(key, small_fns, large_fns, *prompts, rules, None, plan)


@functools.partial(jax.jit, static_argnames=("shape", "min_dwell"))
def _random_plan(key, large_fraction, *, shape, min_dwell) -> jax.Array:
  batch_size, num_tokens = shape
  # Tokens are drawn with the numbers below.
  key = jax.random.fold_in(key, num_tokens)
  segments = jax.random.bernoulli(key, large_fraction, (batch_size, -(-num_tokens // min_dwell)))
  return jnp.repeat(segments, min_dwell, axis=1)[:, :num_tokens]


def markov_entropy_adaptive_decode(
  small_logits: chex.Array,
  large_logits: chex.Array,
  start_tokens: chex.Array,
  *,
  max_new_tokens: int,
  threshold: chex.Numeric,
  window: int,
  min_dwell: int,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
  start_large: bool = False,
) -> SwitchingOutput:
  """`entropy_adaptive_decode` at temperature 0 on the Markov models of two tables.

  Args:
    small_logits: the small model's scores of the next token given the last, `[v, v]`.
    large_logits: the large model's, `[v, v]`.
    start_tokens: prompts of one token, i32 `[b]`.
    max_new_tokens: columns of the output, at least 1.
    threshold, window, min_dwell, start_large: as in `switch_schedule`.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `SwitchingOutput`.

  Raises:
    ValueError: if an option lies outside its range, a table is not square, the tables differ in
      size, or a concrete start token lies outside them.

  Reference: Simonds, 2025, https://arxiv.org/abs/2502.06833.
  """
  start_tokens = as_classes("start_tokens", start_tokens, len(small_logits))
  return entropy_adaptive_decode(
    jax.random.key(0),
    table_decode_fns(small_logits),
    table_decode_fns(large_logits),
    start_tokens[:, None],
    jnp.ones_like(start_tokens),
    max_new_tokens=max_new_tokens,
    threshold=threshold,
    window=window,
    min_dwell=min_dwell,
    start_large=start_large,
    temperature=0.0,
    eos_token_id=eos_token_id,
    pad_token_id=pad_token_id,
  )


class _Rules(NamedTuple):
  """How tokens are drawn and rows end."""

  options: SamplingOptions
  eos_ids: tuple[int, ...]
  pad_token_id: int
  max_new_tokens: int


def _rules(temperature, top_k, top_p, eos_token_id, pad_token_id, max_new_tokens) -> _Rules:
  check_at_least(1, max_new_tokens=max_new_tokens)
  options = check_sampling_options(SamplingOptions(temperature, top_k, top_p, None, None))
  return _Rules(options, as_token_ids(eos_token_id), pad_token_id, max_new_tokens)


@compiled_once
def _decode(
  key, small_fns, large_fns, prompt_tokens, prompt_lengths, rules: _Rules, control, plan
) -> SwitchingOutput:
  """Decodes with the models of a plan, bool `[b, t]`, or else as a `SwitchControl` says."""
  options, eos_ids, pad_token_id, max_new_tokens = rules
  max_length = prompt_tokens.shape[1] + max_new_tokens
  models = {"small": small_fns, "large": large_fns}
  starts = {
    name: prefill(model, prompt_tokens, prompt_lengths, max_length=max_length)
    for name, model in models.items()
  }

  def choose(step, switch, small_logits, large_logits):
    use_large = switch.large if plan is None else plan[:, step]
    logits = jnp.where(use_large[:, None], large_logits, small_logits)
    entropies = token_entropy(logits)
    if plan is None:
      switch = observe_entropies(switch, entropies, control)
    if is_greedy(options.temperature):
      tokens = jnp.argmax(logits, axis=-1)
    else:
      drawn_from = process_logits(logits, **options._asdict())
      tokens = jax.random.categorical(jax.random.fold_in(key, step), drawn_from)
    return switch, tokens, (token_log_probs(logits, tokens), use_large, entropies)

  switch = None
  if plan is None:
    dtype = jnp.result_type(*(next_token_logits(models[x], starts[x]) for x in models))
    switch = first_switch_state(prompt_lengths.shape, dtype, control)
  output = decode_jointly(
    models,
    starts,
    choose,
    switch,
    eos_ids=eos_ids,
    pad_token_id=pad_token_id,
    max_new_tokens=max_new_tokens,
  )
  return SwitchingOutput(output.tokens, output.lengths, *output.notes)
