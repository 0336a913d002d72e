"""Decoding of a base model that a small aligned model guides, without training the base.

Alignment mostly changes a few tokens, at which a base model is uncertain. Nudging lets the small
model write these; ensembles and proxy tuning mix the models' distributions at every token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  as_token_ids,
  check_prompts,
  is_any_token,
  prefill,
  table_decode_fns,
)
from jaxlab.samplers.joint_decoding import decode_jointly


class NudgedOutput(NamedTuple):
  """Generated tokens, and which of them the nudging model wrote.

  Attributes:
    tokens: new tokens, EOS included, then pad; i32 `[b, t]`.
    lengths: how many were generated, i32 `[b]`.
    nudged: whether the nudging model wrote a token, bool `[b, t]`; False after the end.
  """

  tokens: chex.Array
  lengths: chex.Array
  nudged: chex.Array


def needs_nudge(base_logits: chex.Array, *, top_prob_threshold: chex.Numeric = 0.4) -> jax.Array:
  """Whether the base model is uncertain: no token has the probability of the threshold.

  Args:
    base_logits: scores of the base model, `[..., v]`.
    top_prob_threshold: in [0, 1].

  Returns:
    Booleans, `[...]`; False where a score is NaN.

  Raises:
    ValueError: if the threshold lies outside [0, 1].

  Reference: Fei et al., Nudging: Inference-time Alignment via Model Collaboration, ACL 2025,
  https://arxiv.org/abs/2410.09300.
  """
  check_range("top_prob_threshold", top_prob_threshold, "[0, 1]")
  check_arrays(base_logits=(base_logits, "[..., v]"))
  probs = jax.nn.softmax(as_accumulator(base_logits), axis=-1)
  return jnp.max(probs, axis=-1) < top_prob_threshold


def nudged_decode(
  base_fns: DecodeFns,
  nudging_fns: DecodeFns,
  base_prompt_tokens: chex.Array,
  base_prompt_lengths: chex.Array,
  nudging_prompt_tokens: chex.Array,
  nudging_prompt_lengths: chex.Array,
  *,
  max_new_tokens: int,
  top_prob_threshold: chex.Numeric = 0.4,
  word_start: chex.Array | None = None,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
) -> NudgedOutput:
  """Greedy decoding of a base model in which a small aligned model writes the uncertain tokens.

  The nudging model writes the first token. It hands over once the base model is certain, or would
  write the same token; the base model then writes at least one token, and goes on until it is
  uncertain. Where it would end the text, the nudging model writes in its place: only that model
  ends a text.

  `nudged_generate_text` does the same for models with different tokenizers.

  Args:
    base_fns: the base model.
    nudging_fns: the aligned model, of the same vocabulary.
    base_prompt_tokens: the base model's prompts, padded on the right, i32 `[b, p]`.
    base_prompt_lengths: their lengths, i32 `[b]`, in [1, p].
    nudging_prompt_tokens: the nudging model's prompts, such as the same with a chat template,
      padded on the right, i32 `[b, q]`.
    nudging_prompt_lengths: their lengths, i32 `[b]`, in [1, q].
    max_new_tokens: columns of the output, at least 1.
    top_prob_threshold: probability of its best token below which the base model is uncertain, in
      [0, 1].
    word_start: which tokens begin a word, bool `[v]`. The nudging model hands over only where its
      own next token does, so that its words are never cut. None: every token is a word.
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `NudgedOutput`.

  Raises:
    TypeError: if tokens or lengths are not integers, or `word_start` is not boolean.
    ValueError: if shapes do not agree, an option or a concrete prompt length lies outside its
      range, or the models' vocabularies differ.

  Reference: Fei et al., ACL 2025, https://arxiv.org/abs/2410.09300.
  """
  check_at_least(1, max_new_tokens=max_new_tokens)
  check_range("top_prob_threshold", top_prob_threshold, "[0, 1]")
  check_arrays(word_start=(word_start, "bool [v]"))
  base = check_prompts(base_prompt_tokens, base_prompt_lengths, prefix="base_")
  nudging = check_prompts(nudging_prompt_tokens, nudging_prompt_lengths, prefix="nudging_")
  check_arrays(base_prompt_lengths=(base[1], "[b]"), nudging_prompt_lengths=(nudging[1], "[b]"))
  ends = as_token_ids(eos_token_id), pad_token_id
  if word_start is not None:
    word_start = jnp.asarray(word_start)
  return _nudged_decode(
    base_fns, nudging_fns, base, nudging, top_prob_threshold, word_start, *ends, max_new_tokens
  )


@compiled_once
def _nudged_decode(
  base_fns,
  nudging_fns,
  base_prompts,
  nudging_prompts,
  top_prob_threshold,
  word_start,
  eos_ids,
  pad_token_id,
  max_new_tokens,
) -> NudgedOutput:
  models = {"base": base_fns, "nudging": nudging_fns}
  starts = {
    name: prefill(models[name], *prompts, max_length=prompts[0].shape[1] + max_new_tokens)
    for name, prompts in (("base", base_prompts), ("nudging", nudging_prompts))
  }

  def choose(step, in_base, base_logits, nudging_logits):
    check_arrays(base_logits=(base_logits, "[b, v]"), word_start=(word_start, "[v]"))
    ours, theirs = (jnp.argmax(x, axis=-1) for x in (base_logits, nudging_logits))
    is_certain = ~needs_nudge(base_logits, top_prob_threshold=top_prob_threshold)
    may_hand_over = step > 0
    if word_start is not None:
      may_hand_over &= word_start[theirs]
    hands_over = may_hand_over & ((ours == theirs) | is_certain)
    in_base = jnp.where(in_base, is_certain, hands_over) & ~is_any_token(ours, eos_ids)
    return in_base, jnp.where(in_base, ours, theirs), ~in_base

  output = decode_jointly(
    models,
    starts,
    choose,
    jnp.zeros(base_prompts[1].shape, bool),
    eos_ids=eos_ids,
    pad_token_id=pad_token_id,
    max_new_tokens=max_new_tokens,
  )
  return NudgedOutput(*output)


def markov_nudged_decode(
  base_logits: chex.Array,
  nudging_logits: chex.Array,
  start_tokens: chex.Array,
  *,
  max_new_tokens: int,
  top_prob_threshold: chex.Numeric = 0.4,
  eos_token_id: int | Sequence[int] | None,
  pad_token_id: int = 0,
) -> NudgedOutput:
  """`nudged_decode` on the Markov models of two tables.

  Args:
    base_logits: the base model's scores of the next token given the last, `[v, v]`.
    nudging_logits: the nudging model's, `[v, v]`.
    start_tokens: prompts of one token, i32 `[b]`.
    max_new_tokens: columns of the output, at least 1.
    top_prob_threshold: in [0, 1].
    eos_token_id: the token that ends a row, several, or None.
    pad_token_id: what follows the end of a row.

  Returns:
    The `NudgedOutput`.

  Raises:
    ValueError: if an option lies outside its range, a table is not square, the tables differ in
      size, or a concrete start token lies outside them.

  Reference: Fei et al., ACL 2025, https://arxiv.org/abs/2410.09300.
  """
  start_tokens = as_classes("start_tokens", start_tokens, len(base_logits))
  prompts = start_tokens[:, None], jnp.ones_like(start_tokens)
  return nudged_decode(
    table_decode_fns(base_logits),
    table_decode_fns(nudging_logits),
    *prompts,
    *prompts,
    max_new_tokens=max_new_tokens,
    top_prob_threshold=top_prob_threshold,
    eos_token_id=eos_token_id,
    pad_token_id=pad_token_id,
  )


def proxy_tuning_log_probs(
  base_logits: chex.Array, aligned_small_logits: chex.Array, base_small_logits: chex.Array
) -> jax.Array:
  """Shifts a base model by what alignment changes in a small one.

  Args:
    base_logits: scores of the base model, `[..., v]`.
    aligned_small_logits: scores of the small aligned model, `[..., v]`.
    base_small_logits: scores of the small model before alignment, `[..., v]`.

  Returns:
    Log-probabilities proportional to `p_base p_aligned_small / p_base_small`, in nats, `[..., v]`,
    in float32 or wider; -inf for tokens that are masked (-inf) in any model.

  Raises:
    ValueError: if shapes differ.

  Reference: Liu et al., Tuning Language Models by Proxy, COLM 2024, equation 1,
  https://arxiv.org/abs/2401.08565.
  """
  check_arrays(
    base_logits=(base_logits, "[..., v]"),
    aligned_small_logits=(aligned_small_logits, "[..., v]"),
    base_small_logits=(base_small_logits, "[..., v]"),
  )
  models = as_accumulator(base_logits, aligned_small_logits, base_small_logits)
  masked = jnp.any(jnp.stack(models) == -jnp.inf, axis=0)
  base, aligned, small = (jnp.where(masked, 0.0, x) for x in models)
  # Constants of the softmaxes cancel.
  return jax.nn.log_softmax(jnp.where(masked, -jnp.inf, base + (aligned - small)), axis=-1)


def ensemble_log_probs(first_logits: chex.Array, second_logits: chex.Array) -> jax.Array:
  """The mean of two models' next-token distributions.

  Args:
    first_logits: scores of one model, `[..., v]`.
    second_logits: scores of the other, `[..., v]`.

  Returns:
    Log-probabilities in nats, `[..., v]`, in float32 or wider; -inf for tokens that both models
    mask.

  Raises:
    ValueError: if shapes differ.

  Reference: the baseline of Fei et al., ACL 2025, https://arxiv.org/abs/2410.09300.
  """
  check_arrays(first_logits=(first_logits, "[..., v]"), second_logits=(second_logits, "[..., v]"))
  first, second = (
    jax.nn.log_softmax(x, axis=-1) for x in as_accumulator(first_logits, second_logits)
  )
  masked = (first == -jnp.inf) & (second == -jnp.inf)
  mean = jnp.logaddexp(*(jnp.where(masked, 0.0, x) for x in (first, second))) - jnp.log(2.0)
  return jnp.where(masked, -jnp.inf, mean)
