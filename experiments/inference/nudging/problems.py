"""Texts of several styles: they work on a problem, digress, or stop, and nothing says which."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab import data
from jaxlab.data import ModularChainConfig
from jaxlab.data.reasoning import EOS_TOKEN

NUM_FILLERS = 3  # Different tokens of a digression, always in the same order.
_STEP = 3  # Tokens of a verbose step.
_PLUS = 3  # The token of the operator by which problems that are mostly worked on begin.


@dataclasses.dataclass(frozen=True)
class Styles:
  """What texts of the base model do at the places where their style is decided.

  The shares are of those that go on working, that digress and come back, and that stop.
  """

  decisions: tuple[int, ...] = (0, 2, 4)  # Steps after which a base text decides its style.
  shares: tuple[float, ...] = (0.33, 0.36, 0.31)  # Of what it does there.
  plus_shares: tuple[float, ...] = (0.6, 0.25, 0.15)  # Likewise, where the first operator is +.

  @property
  def places(self) -> tuple[int, ...]:
    """Where in a response that only works style is decided."""
    return tuple(_STEP * steps for steps in self.decisions)


class Problems(NamedTuple):
  """Problems, with responses that only work.

  Attributes:
    tokens: int32 `[n, T]`.
    loss_mask: 1 on the response and its end, float32 `[n, T]`.
    answers: int32 `[n]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  answers: chex.Array


def vocab_size(chains: ModularChainConfig) -> int:
  """Number of tokens, those of digressions included."""
  return chains.vocab_size + NUM_FILLERS


def draw_problems(
  key: chex.PRNGKey, chains: ModularChainConfig, num: int, *, max_new_tokens: int
) -> Problems:
  """Problems and aligned texts, padded to responses of `max_new_tokens`."""
  batch = data.modular_chain_batch(key, chains, num, clean=True)
  width = ((0, 0), (0, max_new_tokens - chains.response_length))
  return Problems(jnp.pad(batch.tokens, width), jnp.pad(batch.loss_mask, width), batch.answers)


def begins_with_plus(prompts: chex.Array) -> jax.Array:
  """Whether the style of a problem is mostly decided, bool `[n]`."""
  return prompts[:, 1] == _PLUS


def draw_base_texts(
  key: chex.PRNGKey, chains: ModularChainConfig, styles: Styles, num: int, *, max_new_tokens: int
) -> Problems:
  """Texts of the base model, cut after `max_new_tokens`."""
  problem_key, style_key = jax.random.split(key)
  problems = draw_problems(problem_key, chains, num, max_new_tokens=max_new_tokens)
  prompts, worked = jnp.split(problems.tokens, [chains.prompt_length], axis=1)
  plus = begins_with_plus(prompts)[:, None]
  shares = jnp.where(plus, jnp.array(styles.plus_shares), jnp.array(styles.shares))
  works, digresses = shares[:, 0], shares[:, 0] + shares[:, 1]
  draws = jax.random.uniform(style_key, (max_new_tokens, num))
  places, rows = jnp.array(styles.places), jnp.arange(num)

  def write(state, draw):
    place, filler, ended = state
    decides = (filler == 0) & jnp.any(place[:, None] == places, axis=1)
    digressing = (filler > 0) | (decides & (draw >= works) & (draw < digresses))
    stops = decides & (draw >= digresses)
    token = jnp.where(digressing, chains.vocab_size + filler, worked[rows, place])
    token = jnp.where(ended, 0, jnp.where(stops, EOS_TOKEN, token))
    place = jnp.where(digressing, place, place + 1)
    filler = jnp.where(digressing, (filler + 1) % NUM_FILLERS, 0)
    return (place, filler, ended | (token == EOS_TOKEN)), (token, ~ended)

  state = jnp.zeros(num, jnp.int32), jnp.zeros(num, jnp.int32), jnp.zeros(num, bool)
  _, (response, mask) = jax.lax.scan(write, state, draws)
  tokens = jnp.concatenate([prompts, response.T.astype(jnp.int32)], axis=1)
  mask = jnp.pad(mask.T.astype(jnp.float32), ((0, 0), (chains.prompt_length, 0)))
  return Problems(tokens, mask, problems.answers)


def answers_of(chains: ModularChainConfig, response: chex.Array) -> jax.Array:
  """The answers of responses `[n, t]`, digressions left out; -1 where a chain does not end."""
  digresses = response >= chains.vocab_size
  order = jnp.argsort(digresses, axis=1, stable=True)
  worked = jnp.take_along_axis(jnp.where(digresses, 0, response), order, axis=1)
  return data.parse_chain(chains, worked).answer
