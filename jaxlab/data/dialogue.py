"""Answers of one turn with two known rewards, for aligning language models on a laptop.

A prompt is a single token. Its answers come from a Markov chain of its own, so that a language
model can learn them exactly, and are rewarded for being helpful and for being harmless.
"""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_classes, check_arrays, check_at_least, check_choice, check_range
from jaxlab._programs import compiled_once

_TRANSITION_SCALE = 1.5  # Standard deviation of the logits of a chain's transitions.
_PAIR_WEIGHT = 0.5  # Of neighboring tokens in the helpful reward.
_INVALID = -10.0
# A share of the prompts may fall short of a whole number by rounding alone.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class DialogueConfig:
  """The settings of the dialogues.

  Tokens: 0 padding, 1 end, 2 separator, then one for each prompt, then those of responses.

  Attributes:
    num_prompts: number of prompts P.
    response_length: tokens L of an answer, without its end.
    num_response_tokens: tokens V that answers are made of.
    reward_scale_range: ratio of the largest scale of the helpful reward to the smallest, at least
      1; the scales of the prompts are spaced evenly in logarithms around 1.
    conflict_fraction: share of the prompts, in [0, 1], for which what helps does harm.
    seed: of chains and rewards; inside a compiled function it may be a traced integer.

  Raises:
    ValueError: if a field is out of range.
  """

  num_prompts: int = 64
  response_length: int = 8
  num_response_tokens: int = 16
  reward_scale_range: float = 30.0
  conflict_fraction: float = 0.5
  seed: int = 0

  pad_token: ClassVar[int] = 0
  end_token: ClassVar[int] = 1
  separator_token: ClassVar[int] = 2
  first_prompt_token: ClassVar[int] = 3

  def __post_init__(self):
    check_at_least(
      1,
      num_prompts=self.num_prompts,
      response_length=self.response_length,
      num_response_tokens=self.num_response_tokens,
    )
    check_range("reward_scale_range", self.reward_scale_range, "[1, inf)")
    check_range("conflict_fraction", self.conflict_fraction, "[0, 1]")

  @property
  def first_response_token(self) -> int:
    """The lowest token of responses."""
    return self.first_prompt_token + self.num_prompts

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self.first_response_token + self.num_response_tokens

  @property
  def prompt_length(self) -> int:
    """Tokens before the response: the prompt and the separator."""
    return 2


class DialogueBatch(NamedTuple):
  """Prompts with responses of the reference.

  Attributes:
    tokens: prompt, separator, response, end; int32 `[b, L + 3]`.
    loss_mask: 1 on the response and its end, float32 `[b, L + 3]`.
    prompt_lengths: int32 `[b]`.
    prompt_ids: numbers of the prompts, int32 `[b]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  prompt_lengths: chex.Array
  prompt_ids: chex.Array


class _Tables(NamedTuple):
  """Logits of the chains, and what tokens and pairs of tokens are worth."""

  initial: jax.Array
  transition: jax.Array
  helpful: jax.Array
  pairs: jax.Array
  harmless: jax.Array


@compiled_once
def dialogue_batch(key: chex.PRNGKey, config: DialogueConfig, batch_size: int) -> DialogueBatch:
  """Draws prompts uniformly, and a response from the Markov chain of each prompt.

  Args:
    key: random key.
    config: the dialogues.
    batch_size: number b of dialogues.

  Returns:
    A `DialogueBatch`.

  Raises:
    ValueError: if `batch_size` is not positive.

  Reference: a setting for Balashankar et al., InfAlign, ICML 2025,
  https://arxiv.org/abs/2412.19792.
  """
  check_at_least(1, batch_size=batch_size)
  tables = _tables(config)
  prompt_key, first_key, chain_key = jax.random.split(key, 3)
  prompts = jax.random.randint(prompt_key, (batch_size,), 0, config.num_prompts, jnp.int32)
  first = jax.random.categorical(first_key, tables.initial[prompts]).astype(jnp.int32)

  def step(token, key):
    token = jax.random.categorical(key, tables.transition[prompts, token]).astype(jnp.int32)
    return token, token

  keys = jax.random.split(chain_key, config.response_length - 1)
  _, rest = jax.lax.scan(step, first, keys)
  response = jnp.concatenate([first[None], rest]).T + config.first_response_token
  column = jnp.full((batch_size, 1), config.separator_token, jnp.int32)
  tokens = jnp.concatenate(
    [
      prompts[:, None] + config.first_prompt_token,
      column,
      response,
      jnp.full_like(column, config.end_token),
    ],
    axis=1,
  )
  mask = jnp.arange(tokens.shape[1]) >= config.prompt_length
  return DialogueBatch(
    tokens,
    jnp.broadcast_to(mask, tokens.shape).astype(jnp.float32),
    jnp.full(batch_size, config.prompt_length, jnp.int32),
    prompts,
  )


def dialogue_reward(
  config: DialogueConfig,
  prompt_ids: chex.Array,
  responses: chex.Array,
  *,
  kind: Literal["helpful", "harmless"] = "helpful",
) -> jax.Array:
  """The true reward of responses.

  A response is helpful by its tokens, whose worth depends on the prompt, and by its pairs of
  neighboring tokens; the scale of this reward differs from prompt to prompt. It is harmless by its
  tokens alone; for the prompts in conflict these are worth the opposite of what they help.

  Args:
    config: the dialogues.
    prompt_ids: numbers of the prompts, int `[b]`, in [0, P).
    responses: tokens of the responses without their end, int `[b, L]`.
    kind: "helpful" or "harmless".

  Returns:
    Rewards, float32 `[b]`. A response that is not made of L response tokens gets -10, or -10 times
    the scale of the prompt's helpful reward if that is above 1.

  Raises:
    ValueError: if the kind is unknown, or a known prompt lies outside [0, P); prompts in JAX arrays
      give NaN instead.

  Reference: a setting for Balashankar et al., InfAlign, ICML 2025,
  https://arxiv.org/abs/2412.19792, and Wang et al., Transforming and Combining Rewards, ICML 2024,
  https://arxiv.org/abs/2402.00742.
  """
  check_choice("kind", kind, ("helpful", "harmless"))
  check_arrays(
    prompt_ids=(prompt_ids, "int [b]"), responses=(responses, f"int [b, {config.response_length}]")
  )
  prompts = as_classes("prompt_ids", prompt_ids, config.num_prompts)
  return _reward(config, prompts, jnp.asarray(responses), kind)


@compiled_once
def _reward(config: DialogueConfig, prompts: jax.Array, responses: jax.Array, kind: str):
  tables = _tables(config)
  known = prompts < config.num_prompts
  prompts = jnp.where(known, prompts, 0)
  tokens = responses.astype(jnp.int32) - config.first_response_token
  valid = jnp.all((tokens >= 0) & (tokens < config.num_response_tokens), axis=1)
  tokens = jnp.clip(tokens, 0, config.num_response_tokens - 1)
  exponents = np.linspace(-0.5, 0.5, config.num_prompts)
  scale = jnp.asarray(config.reward_scale_range**exponents, jnp.float32)[prompts]
  worth = tables.helpful if kind == "helpful" else tables.harmless
  reward = jnp.sum(worth[prompts[:, None], tokens], axis=1)
  if kind == "helpful":
    pairs = jnp.sum(tables.pairs[tokens[:, :-1], tokens[:, 1:]], axis=1)
    reward = scale * (reward + _PAIR_WEIGHT * pairs)
  reward = reward / math.sqrt(config.response_length)
  reward = jnp.where(valid, reward, _INVALID * jnp.maximum(scale, 1.0))
  return jnp.where(known, reward, jnp.nan)


def _tables(config: DialogueConfig) -> _Tables:
  prompts, values = config.num_prompts, config.num_response_tokens
  keys = jax.random.split(jax.random.key(config.seed), 6)
  initial = jax.random.normal(keys[0], (prompts, values))
  transition = _TRANSITION_SCALE * jax.random.normal(keys[1], (prompts, values, values))
  helpful = jax.random.normal(keys[2], (prompts, values))
  pairs = jax.random.normal(keys[3], (values, values))
  harmless = jax.random.normal(keys[4], (prompts, values))
  num_conflicts = math.floor(config.conflict_fraction * prompts + _ROUNDING)
  conflicts = jnp.zeros(prompts, bool)
  conflicts = conflicts.at[jax.random.permutation(keys[5], prompts)[:num_conflicts]].set(True)
  harmless = jnp.where(conflicts[:, None], -helpful, harmless)
  return _Tables(initial, transition, helpful, pairs, harmless)
