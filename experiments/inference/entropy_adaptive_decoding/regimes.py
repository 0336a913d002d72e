"""Texts whose difficulty lasts: blocks that count on, and blocks that follow a random table."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

EASY, HARD, FIRST_VALUE = 1, 2, 3  # Tokens; the first two are the markers of blocks.


@dataclasses.dataclass(frozen=True)
class Regimes:
  """The settings of the texts.

  A prompt lists the kinds of the blocks, and two values to begin with. A block is the marker of its
  kind and values: each is the last value and 1, or what the table of a seed holds for the last two.
  """

  modulus: int = 31  # Values of the texts; a table of their pairs must not fit the small model.
  num_blocks: int = 4  # Blocks of a response.
  block_length: int = 11  # Values of a block.
  hard_share: float = 0.4  # Probability of a hard block.
  noise: float = 0.05  # Probability that a hard value of a training text is arbitrary.

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return FIRST_VALUE + self.modulus

  @property
  def prompt_length(self) -> int:
    """Tokens of a prompt."""
    return self.num_blocks + 2

  @property
  def response_length(self) -> int:
    """Tokens of a response, which has no end."""
    return self.num_blocks * (1 + self.block_length)


class Texts(NamedTuple):
  """Prompts with responses, int32 `[n, T]`, and 1 on the responses, float32 `[n, T]`."""

  tokens: chex.Array
  loss_mask: chex.Array


def draw_table(key: chex.PRNGKey, regimes: Regimes) -> jax.Array:
  """The table `[newer, older]` of a seed: for each newer value a permutation of the older one.

  The pairs then move by a bijection, and none becomes common.
  """
  keys = jax.random.split(key, regimes.modulus)
  return jax.vmap(functools.partial(jax.random.permutation, x=regimes.modulus))(keys)


def draw_texts(key: chex.PRNGKey, regimes: Regimes, table: chex.Array, num: int) -> Texts:
  """Training texts; a hard value follows from the two values shown before it, or is noise."""
  kind_key, start_key, noise_key, value_key = jax.random.split(key, 4)
  modulus, num_values = regimes.modulus, regimes.num_blocks * regimes.block_length
  hard = jax.random.bernoulli(kind_key, regimes.hard_share, (num, regimes.num_blocks))
  start = jax.random.randint(start_key, (num, 2), 0, modulus)
  noisy = jax.random.bernoulli(noise_key, regimes.noise, (num_values, num))
  others = jax.random.randint(value_key, (num_values, num), 0, modulus)

  def step(pair, inputs):
    older, newer = pair
    hard, noisy, other = inputs
    value = jnp.where(hard, jnp.where(noisy, other, table[newer, older]), (newer + 1) % modulus)
    return (newer, value), value

  inputs = jnp.repeat(hard, regimes.block_length, axis=1).T, noisy, others
  _, values = jax.lax.scan(step, tuple(start.T), inputs)
  kinds = jnp.where(hard, HARD, EASY)
  blocks = FIRST_VALUE + values.T.reshape(num, regimes.num_blocks, regimes.block_length)
  response = jnp.concatenate([kinds[..., None], blocks], axis=-1).reshape(num, -1)
  tokens = jnp.concatenate([kinds, FIRST_VALUE + start, response], axis=1).astype(jnp.int32)
  is_response = jnp.arange(tokens.shape[1]) >= regimes.prompt_length
  return Texts(tokens, jnp.broadcast_to(is_response.astype(jnp.float32), tokens.shape))


class Validity(NamedTuple):
  """What is right of responses.

  Attributes:
    hard: which blocks are hard, bool `[n, blocks]`.
    markers: whether the marker of a block is that of its kind, bool `[n, blocks]`.
    values: whether a value follows from the two values shown before it, bool `[n, blocks, values]`.
  """

  hard: chex.Array
  markers: chex.Array
  values: chex.Array


def check_response(
  regimes: Regimes, table: chex.Array, prompts: chex.Array, response: chex.Array
) -> Validity:
  """Checks responses `[n, t]` by what they show: an error counts once."""
  blocks = response.reshape(len(response), regimes.num_blocks, -1)
  kinds, start = prompts[:, : regimes.num_blocks], prompts[:, regimes.num_blocks :]
  values = blocks[..., 1:].reshape(len(response), -1)
  shown = jnp.concatenate([start, values], axis=1) - FIRST_VALUE
  known = shown >= 0
  older, newer, value = shown[:, :-2], shown[:, 1:-1], shown[:, 2:]
  hard = kinds == HARD
  in_hard = jnp.repeat(hard, regimes.block_length, axis=1)
  right = jnp.where(in_hard, table[newer, older], (newer + 1) % regimes.modulus)
  valid = (value == right) & known[:, :-2] & known[:, 1:-1] & known[:, 2:]
  return Validity(hard, blocks[..., 0] == kinds, valid.reshape(blocks[..., 1:].shape))


def hard_places(regimes: Regimes, prompts: chex.Array) -> jax.Array:
  """Which tokens of a response are values of hard blocks, bool `[n, t]`."""
  hard = prompts[:, : regimes.num_blocks, None] == HARD
  is_value = jnp.arange(1 + regimes.block_length) > 0
  return (hard & is_value).reshape(len(prompts), -1)
