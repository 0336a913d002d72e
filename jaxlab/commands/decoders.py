"""The methods of `jaxlab sample` as programs: a batch of prompts in, samples and their cost out.

A program is `(key, models, prompts, rows) -> Draws` and can be compiled; every model is a
`DecodeFns`. The first model is that of --checkpoint, the second that of --small.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab import samplers
from jaxlab.samplers import DecodeFns
from jaxlab.samplers.decode_fns import repeat_rows

Method = Literal["sample", "majority", "rpc", "rain", "nudging", "adaptive", "speculative"]
# `(rows i32[], tokens i32[t], length) -> score` in [-1, 1] of a part of an answer; traceable.
Evaluate = Callable[[chex.Array, chex.Array, chex.Array], chex.Array]

FREE = ("sample", "majority", "rpc")  # Samples of one model, which differ in what is made of them.
PAIRS = ("nudging", "adaptive", "speculative")
_TEMPERATURES = (*FREE, "adaptive", "speculative")
# Methods that have an option; its default is that of the method's function.
OPTIONS = {
  "temperature": (*_TEMPERATURES, "rain"),
  "top_k": _TEMPERATURES,
  "top_p": _TEMPERATURES,
  "num_candidates": ("rain",),
  "max_iterations": ("rain",),
  "min_visits": ("rain",),
  "value_threshold": ("rain",),
  "top_prob_threshold": ("nudging",),
  "look_ahead": ("nudging",),
  "entropy_threshold": ("adaptive",),
  "window": ("adaptive",),
  "min_dwell": ("adaptive",),
  "num_draft_tokens": ("speculative",),
}
_ENTROPY_THRESHOLD = 1.0  # Bits.
_EMBEDDING = 64
_AT_ONCE = 64  # Samples of a prompt that are drawn together.


class Prompts(NamedTuple):
  """Prompts as one model reads them: i32 `[b, p]`, padded on the right, and lengths, i32 `[b]`."""

  tokens: chex.Array
  lengths: chex.Array


class Draws(NamedTuple):
  """Samples of a batch of prompts.

  Attributes:
    tokens: of n samples, the one that ended it included, i32 `[b, n, t]`.
    lengths: how many, i32 `[b, n]`.
    log_probs: log-probability of each sample in nats, `[b, n]`.
    reads: tokens that each model reads for all samples of a prompt, or writes, i32 `[b]` each.
    notes: what else the method says of each sample, `[b, n]` by name.
  """

  tokens: chex.Array
  lengths: chex.Array
  log_probs: chex.Array
  reads: tuple[chex.Array, ...]
  notes: dict[str, chex.Array]


Program = Callable[[chex.PRNGKey, tuple[DecodeFns, ...], tuple[Prompts, ...], chex.Array], Draws]


def build_program(
  method: Method,
  *,
  num_samples: int,
  max_new_tokens: int,
  end_tokens: tuple[int, ...],
  options: Mapping[str, Any],
  clause_ends: tuple[int, ...] = (),
  evaluate: Evaluate | None = None,
) -> Program:
  """The program of a method; its memory does not grow beyond that of 64 samples of each prompt.

  Args:
    method: its name.
    num_samples: samples of each prompt, n.
    max_new_tokens: longest sample, t.
    end_tokens: tokens that end a sample.
    options: those in `OPTIONS` that were given.
    clause_ends: of rain: tokens that end a clause.
    evaluate: of rain: the judge; it gets the row, which is the prompt's.

  Returns:
    The program; `rows` are i32 `[b]`, numbers of the prompts.
  """
  num_parts = -(-num_samples // _AT_ONCE)
  if num_parts > 1:
    program = build_program(
      method,
      num_samples=-(-num_samples // num_parts),
      max_new_tokens=max_new_tokens,
      end_tokens=end_tokens,
      options=options,
      clause_ends=clause_ends,
      evaluate=evaluate,
    )
    return functools.partial(_in_parts, program, num_parts, num_samples)
  sizes = {"max_new_tokens": max_new_tokens, "eos_token_id": end_tokens}
  if method in FREE:
    return functools.partial(_free, num_samples, {**options, **sizes})
  if method == "rain":
    options = {**options, **sizes, "clause_end_ids": clause_ends}
    return functools.partial(_rain, num_samples, evaluate, options)
  if method == "nudging":
    options = {name: value for name, value in options.items() if name != "look_ahead"}
    return functools.partial(_nudging, {**options, **sizes})
  if method == "adaptive":
    options = dict(options)
    threshold = options.pop("entropy_threshold", _ENTROPY_THRESHOLD)
    return functools.partial(_adaptive, num_samples, {**options, **sizes, "threshold": threshold})
  return functools.partial(_speculative, num_samples, {**options, **sizes})


def _in_parts(program, num_parts, num_samples, key, models, prompts, rows) -> Draws:
  """Draws equal parts of the samples, one part after another; each reads the prompts anew."""
  keys = jax.random.split(key, num_parts)
  parts = jax.lax.map(lambda key: program(key, models, prompts, rows), keys)

  def join(leaf):
    by_prompt = jnp.moveaxis(leaf, 0, 1)
    return by_prompt.reshape(leaf.shape[1], -1, *leaf.shape[3:])[:, :num_samples]

  reads = tuple(jnp.sum(count, axis=0) for count in parts.reads)
  return jax.tree.map(join, parts._replace(reads=()))._replace(reads=reads)


def _free(num_samples, options, key, models, prompts, rows) -> Draws:
  del rows
  output = samplers.generate_n(key, models[0], *prompts[0], num_samples=num_samples, **options)
  reads = prompts[0].lengths + jnp.sum(output.lengths, axis=1)
  return Draws(output.tokens, output.lengths, jnp.sum(output.log_probs, axis=-1), (reads,), {})


def _adaptive(num_samples, options, key, models, prompts, rows) -> Draws:
  del rows
  large, small = models
  copies = repeat_rows(prompts[0], num_samples)
  output = samplers.entropy_adaptive_decode(key, small, large, *copies, **options)
  share = jnp.sum(output.use_large, axis=1) / jnp.maximum(output.lengths, 1)
  reads = copies.lengths + output.lengths  # Both models read every token.
  return _of_prompts(num_samples, output, (reads, reads), {"large_share": share})


def _speculative(num_samples, options, key, models, prompts, rows) -> Draws:
  del rows
  copies = repeat_rows(prompts[0], num_samples)
  options = {"num_draft_tokens": 4, **options}
  num_drafts = options["num_draft_tokens"]
  output = samplers.speculative_decode(key, *models, *copies, **options)
  rate = output.num_accepted / (num_drafts * jnp.maximum(output.num_target_calls, 1))
  reads = copies.lengths + output.num_target_calls * (num_drafts + 1)
  return _of_prompts(num_samples, output, (reads, reads), {"acceptance_rate": rate})


def _nudging(options, key, models, prompts, rows) -> Draws:
  del key, rows
  base, nudging = prompts
  output = samplers.nudged_decode(*models, *base, *nudging, **options)
  share = jnp.sum(output.nudged, axis=1) / jnp.maximum(output.lengths, 1)
  scores = log_probs_of(models[0], base, output.tokens, output.lengths)
  reads = tuple(prompt.lengths + output.lengths for prompt in prompts)
  scored = _Scored(output.tokens, output.lengths, scores[:, None])
  return _of_prompts(1, scored, reads, {"nudged_share": share})


class _Scored(NamedTuple):
  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array


def _of_prompts(num_samples: int, output: Any, reads, notes) -> Draws:
  """Rows of samples as samples of prompts."""

  def split(leaf):
    return leaf.reshape(-1, num_samples, *leaf.shape[1:])

  scores = jnp.sum(split(output.log_probs), axis=-1)
  reads = tuple(jnp.sum(split(count), axis=1) for count in reads)
  return Draws(
    *map(split, (output.tokens, output.lengths)), scores, reads, jax.tree.map(split, notes)
  )


def log_probs_of(
  decode_fns: DecodeFns, prompts: Prompts, tokens: chex.Array, lengths: chex.Array
) -> jax.Array:
  """Log-probabilities of responses that another model wrote, or had a part in.

  Args:
    decode_fns: the model.
    prompts: its prompts.
    tokens: the responses, i32 `[b, t]`.
    lengths: their lengths, i32 `[b]`.

  Returns:
    Sums over their tokens in nats, `[b]`.
  """

  def of_row(row):
    prompt, size, response, length = row
    width = prompt.shape[0] + response.shape[0]
    places = jnp.arange(width)
    later = response[jnp.clip(places - size, 0, response.shape[0] - 1)]
    whole = jnp.where(places < size, jnp.pad(prompt, (0, width - prompt.shape[0])), later)
    ends = (size + length)[None], size[None]
    return jnp.sum(samplers.score_sequences(decode_fns, whole[None], *ends))

  # Row by row: logits of all rows would not fit into memory.
  return jax.lax.map(of_row, (*prompts, tokens, lengths))


def _rain(num_samples, evaluate, options, key, models, prompts, rows) -> Draws:
  """The search begins at the last token of a prompt, so that one program serves all lengths."""
  decode_fns, (prompts,) = models[0], prompts
  longest = options["max_new_tokens"]
  max_length = prompts.tokens.shape[1] + longest
  start = samplers.prefill(decode_fns, *prompts, max_length=max_length)

  def search(key, cache, last, position, row):
    after_prompt = DecodeFns(
      lambda batch_size, _: repeat_rows(jax.tree.map(lambda leaf: leaf[None], cache), batch_size),
      lambda tokens, cache, positions: decode_fns.apply(tokens, cache, position + positions),
    )
    return samplers.rewind_generate(
      key,
      after_prompt,
      last[None],
      evaluate_fn=lambda tokens, length: evaluate(row, tokens[1:], length - 1),
      embed_fn=bag_of_tokens,
      **options,
    )

  copies = repeat_rows((*start, rows), num_samples)
  output = jax.vmap(search)(jax.random.split(key, copies[-1].shape[0]), *copies)
  scores = log_probs_of(decode_fns, repeat_rows(prompts, num_samples), output.tokens, output.length)
  # Every visit reads the answer that it rewinds to again.
  reads = output.num_generated + output.num_iterations * (1 + longest)
  scored = _Scored(output.tokens, output.length, scores[:, None])
  draws = _of_prompts(num_samples, scored, (reads,), {"visits": output.num_iterations})
  return draws._replace(reads=(draws.reads[0] + prompts.lengths,))


def bag_of_tokens(tokens: chex.Array, length: chex.Numeric) -> jax.Array:
  """An embedding of a text that needs no model: a mean of random signs, which its tokens seed.

  Args:
    tokens: padded on the right, i32 `[t]`.
    length: how many are of the text.

  Returns:
    float32 `[64]`. The cosine of two texts is about the share of tokens that they have in common.
  """
  key = jax.random.key(0)

  def signs(token):
    return jax.random.rademacher(jax.random.fold_in(key, token), (_EMBEDDING,), jnp.float32)

  counted = jnp.arange(tokens.shape[0]) < length
  total = jnp.sum(jnp.where(counted[:, None], jax.vmap(signs)(tokens), 0.0), axis=0)
  return total / jnp.maximum(length, 1)


def with_vocabulary(decode_fns: DecodeFns, vocab_size: int) -> DecodeFns:
  """A model without the scores beyond a vocabulary, which only pad it.

  Args:
    decode_fns: the model.
    vocab_size: number of tokens, v.

  Returns:
    The model; its logits are `[b, t, v]`.
  """
  cut = jax.tree_util.Partial(functools.partial(_first_scores, vocab_size), decode_fns.apply)
  return decode_fns._replace(apply=cut)


def _first_scores(vocab_size, apply, tokens, cache, positions):
  logits, cache = apply(tokens, cache, positions)
  return logits[..., :vocab_size], cache
