"""Chains whose operands follow a habit, and how a model answers chains that do not."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import chains as kit
from experiments.kit.language_models import token_log_probs
from experiments.kit.train import agrees
from jaxlab import data, metrics
from jaxlab.data.reasoning import EOS_TOKEN, EQUALS_TOKEN

NUM_OPERATORS = 3
OPERATOR, OPERAND, RESULT, END = range(4)  # Parts of a step, and what follows the last one.
SHORT_TERMS = 2, 3  # Numbers in the problems whose restating the base model learns.


class Texts(NamedTuple):
  """Problems with their solutions; every step restates operator and operand before its result.

  Attributes:
    tokens: int32 `[n, T]`.
    loss_mask: 1 on the solution and its end, `[n, T]`.
    answers: int32 `[n]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  answers: chex.Array


def chains_of(config) -> data.ModularChainConfig:
  """Chains without errors."""
  options = {"misconception_rate": 0.0, "noise": 0.0}
  return data.ModularChainConfig(config.modulus, config.num_terms, **options)


def draw_texts(key, chains: data.ModularChainConfig, num: int, favorites, habit) -> Texts:
  """Draws problems in which an operand is its operator's favorite with probability `habit`.

  Args:
    key: random key.
    chains: the chains.
    num: number of problems.
    favorites: the favorite number of every operator, int32 `[3]`.
    habit: the probability; other operands are uniform.

  Returns:
    The `Texts`, all of them right.
  """
  draw_key, habit_key = jax.random.split(key)
  drawn = data.modular_chain_batch(draw_key, chains, num)
  numbers = chains.vocab_size - chains.modulus  # The tokens of numbers are the last ones.
  problems = drawn.tokens[:, : chains.prompt_length - 1]
  operators, operands = problems[:, 1::2], problems[:, 2::2]
  follows = jax.random.bernoulli(habit_key, habit, operands.shape)
  usual = numbers + favorites[operators - (numbers - NUM_OPERATORS)]
  operands = jnp.where(follows, usual, operands)
  problems = problems.at[:, 2::2].set(operands)

  value, steps = problems[:, 0] - numbers, []
  for operator, right in zip(operators.T, operands.T - numbers):
    results = jnp.stack([value + right, value - right, value * right]) % chains.modulus
    value = jnp.take_along_axis(results, operator[None] - (numbers - NUM_OPERATORS), axis=0)[0]
    steps += [operator, right + numbers, value + numbers]
  ends = (jnp.full((num, 1), token, jnp.int32) for token in (EQUALS_TOKEN, EOS_TOKEN))
  equals, end = ends
  tokens = jnp.concatenate([problems, equals, jnp.stack(steps, axis=1), end], axis=1)
  return Texts(tokens, drawn.loss_mask, value)


def dictated_texts(chains: data.ModularChainConfig, key, num: int) -> Texts:
  """Draws texts that teach arithmetic alone: their steps are of another problem, results are right.

  The two problems share the first number, and only results (and the end) are to be learned.
  """
  read_key, written_key = jax.random.split(key)
  read, written = (data.modular_chain_batch(k, chains, num) for k in (read_key, written_key))
  inner = slice(1, chains.prompt_length - 1)
  tokens = written.tokens.at[:, inner].set(read.tokens[:, inner])
  mask = written.loss_mask * (step_parts(chains) >= RESULT)[None]
  return Texts(tokens, mask, written.answers)


def base_texts(config, key, num: int) -> Texts:
  """Draws what the base model learns from: short chains, and long ones whose steps are dictated.

  It learns to restate the numbers of short problems, and to compute anywhere in a long text.
  """
  chains = chains_of(config)
  dictated_key, *keys = jax.random.split(key, 1 + len(SHORT_TERMS))
  parts = [dictated_texts(chains, dictated_key, num // 2)]
  for k, n in zip(keys, SHORT_TERMS):
    short = dataclasses.replace(chains, num_terms=n)
    drawn = data.modular_chain_batch(k, short, num // 2 // len(SHORT_TERMS))
    missing = parts[0].tokens.shape[1] - drawn.tokens.shape[1]
    padded = (jnp.pad(x, ((0, 0), (0, missing))) for x in (drawn.tokens, drawn.loss_mask))
    parts.append(Texts(*padded, drawn.answers))
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def step_parts(chains: data.ModularChainConfig) -> np.ndarray:
  """What each token of a text is; -1 in the problem, `END` at the end."""
  places = np.arange(-chains.prompt_length, chains.response_length)
  return np.where(places < 0, -1, np.where(places == places[-1], END, places % 3))


def greedy_failures(model, params, chains, texts: Texts) -> tuple[jax.Array, jax.Array]:
  """Which problems are not solved greedily, and which of them first go wrong at an operand."""
  written = kit.greedy_texts(model, params, chains, texts.tokens)
  failed = kit.parse(chains, written).answer != texts.answers
  first = jnp.argmax(written != texts.tokens, axis=1)
  return failed, failed & (jnp.asarray(step_parts(chains))[first] == OPERAND)


def next_token_accuracy(model, params, texts: Texts, mask) -> jax.Array:
  """Share of the masked tokens that the model would write after the right tokens before them."""
  logits = model.apply({"params": params}, texts.tokens[:, :-1]).logits
  right = agrees(logits, texts.tokens[:, 1:])
  mask = mask[:, 1:] > 0
  return jnp.sum(jnp.where(mask, right, 0)) / jnp.maximum(jnp.sum(mask), 1)


def contrary_operands(chains, texts: Texts, favorites) -> jax.Array:
  """Marks the restated operands that are not their operator's favorites, bool `[n, T]`."""
  numbers = chains.vocab_size - chains.modulus
  before = jnp.pad(texts.tokens[:, :-1], ((0, 0), (1, 0)))
  operators = jnp.clip(before - (numbers - NUM_OPERATORS), 0, NUM_OPERATORS - 1)
  is_operand = (step_parts(chains) == OPERAND)[None]
  return is_operand & (texts.tokens - numbers != favorites[operators])


def sensitivity(key, model, params, chains, texts: Texts, *, num_bins: int) -> jax.Array:
  """How much a changed number or operator of the problem lowers operands and results, by distance.

  Args:
    key: of the changes.
    model: the decoder.
    params: its parameters.
    chains: the chains.
    texts: the problems, with right solutions.
    num_bins: bins of the distance, from 0 to the length of a text.

  Returns:
    Mean fall of the log-probability in nats, `[num_bins]`.
  """
  num_places = chains.prompt_length - 1  # All but the equals sign.
  numbers, length = chains.vocab_size - chains.modulus, texts.tokens.shape[1]
  places, wide = jnp.arange(num_places), chains.modulus
  # Another number for a number, another operator for an operator.
  first = jnp.where(places % 2 == 0, numbers, numbers - NUM_OPERATORS)
  sizes = jnp.where(places % 2 == 0, wide, NUM_OPERATORS)
  keys = jax.random.split(key, num_places)
  base = token_log_probs(model, params, texts.tokens)

  def changed(change):
    key, place, first, size = change
    old = jnp.take(texts.tokens, place, axis=1) - first
    shift = jax.random.randint(key, old.shape, 1, size)
    new = first + (old + shift) % size
    tokens = jnp.where(jnp.arange(length)[None] == place, new[:, None], texts.tokens)
    return token_log_probs(model, params, tokens)

  perturbed = jax.lax.map(changed, (keys, places, first, sizes))
  parts = step_parts(chains)
  counts = (parts == OPERAND) | (parts == RESULT)
  distances = jnp.arange(length)[:, None] - places[None]
  distances = jnp.where(counts[:, None], distances, -1)
  distances = jnp.broadcast_to(distances, (len(texts.tokens), *distances.shape))
  return metrics.distance_sensitivity(
    base.ravel(),
    jnp.moveaxis(perturbed, 0, -1).reshape(-1, num_places),
    distances.reshape(-1, num_places),
    num_bins=num_bins,
    max_distance=length,
  )


def is_new(texts: Texts, known: Texts) -> jax.Array:
  """Which texts are not among the known ones, bool `[n]`."""
  same = functools.partial(jnp.all, axis=-1)
  return ~jnp.any(jax.vmap(lambda row: same(row[None] == known.tokens))(texts.tokens), axis=1)
