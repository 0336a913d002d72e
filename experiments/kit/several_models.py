"""Greedy decoding with several models of one vocabulary, by rules that no sampler has."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxlab import samplers
from jaxlab.samplers import DecodeFns
from jaxlab.samplers.joint_decoding import JointOutput, decode_jointly


def decode_by_rule(
  models: Mapping[str, DecodeFns],
  prompts: chex.Array,
  choose: Callable[..., tuple[chex.Array, chex.ArrayTree]],
  *,
  max_new_tokens: int,
  eos_token_id: int | None = None,
) -> JointOutput:
  """Continues prompts with the tokens that a rule chooses; traceable.

  Args:
    models: two or more models, by name; each reads every token.
    prompts: int32 `[b, P]`, all of full length.
    choose: `(step, *logits) -> (tokens i32[b], notes)`, with logits `[b, v]` of every model, and
      notes a tree of arrays `[b]`.
    max_new_tokens: columns of the output.
    eos_token_id: the token that ends a row, or None.

  Returns:
    The `JointOutput`: tokens `[b, t]`, lengths `[b]`, and notes of `[b, t]`.
  """
  lengths = jnp.full(len(prompts), prompts.shape[1])
  start = functools.partial(samplers.prefill, max_length=prompts.shape[1] + max_new_tokens)
  return decode_jointly(
    models,
    {name: start(fns, prompts, lengths) for name, fns in models.items()},
    lambda step, carry, *logits: (carry, *choose(step, *logits)),
    (),
    eos_ids=() if eos_token_id is None else (eos_token_id,),
    pad_token_id=0,
    max_new_tokens=max_new_tokens,
  )


def greedy(logits: chex.Array) -> jax.Array:
  """The likeliest tokens, int32 `[...]`."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def decode_by_plan(
  first: DecodeFns, second: DecodeFns, prompts: chex.Array, plan: chex.Array, **options: Any
) -> JointOutput:
  """Continues prompts with the second model where a plan says so, and else with the first.

  Args:
    first: the one model.
    second: the other.
    prompts: int32 `[b, P]`.
    plan: bool `[b, t]`.
    **options: `eos_token_id` of `decode_by_rule`.

  Returns:
    The `JointOutput`; its notes are the entropies of the predictions, in bits.
  """

  def choose(step, ours, theirs):
    logits = jnp.where(plan[:, step][:, None], theirs, ours)
    return greedy(logits), samplers.token_entropy(logits)

  models = {"first": first, "second": second}
  return decode_by_rule(models, prompts, choose, max_new_tokens=plan.shape[1], **options)
