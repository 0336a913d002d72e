"""Skewed chains as unconditional texts: their law, what may come next, sampling, measures."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data, samplers
from jaxlab.data.reasoning import EOS_TOKEN, EQUALS_TOKEN, PAD_TOKEN
from jaxlab.samplers import BacktrackingOutput, DecodeFns

NUM_OPERATORS, _FIRST_OPERATOR = 3, EOS_TOKEN + 1
FIRST_NUMBER = _FIRST_OPERATOR + NUM_OPERATORS
START = PAD_TOKEN  # The prompt of all texts.
SLACK = 2  # Tokens that a text may have beyond a right one's.


class Texts(NamedTuple):
  """The start and the tokens of whole rows, int32 `[n, 1 + L]`, and 1 on the latter."""

  tokens: chex.Array
  loss_mask: chex.Array


def chains(config) -> data.ModularChainConfig:
  """Right chains of terse steps."""
  options = {"verbose": False, "misconception_rate": 0.0, "noise": 0.0}
  return data.ModularChainConfig(config.modulus, config.num_terms, **options)


def length(config) -> int:
  """Tokens of a right text, with its end."""
  return chains(config).prompt_length + chains(config).response_length


def backspace(config) -> int:
  """The token that removes one, the last of the vocabulary."""
  return chains(config).vocab_size


def first_law(config) -> np.ndarray:
  """The exact probabilities of first number and first operator, `[modulus, 3]`."""
  numbers = config.number_decay ** np.arange(config.modulus)
  law = np.outer(numbers, config.operator_shares)
  return law / law.sum()


def draw_texts(config, key: chex.PRNGKey, num_texts: int) -> Texts:
  """Texts whose first number and operator follow their law, by rejection."""
  odds = first_law(config) / first_law(config).max()
  pool_key, keep_key = jax.random.split(key)
  pool = int(2 * num_texts / odds.mean()) + 64
  tokens = data.modular_chain_batch(pool_key, chains(config), pool).tokens
  first = tokens[:, 0] - FIRST_NUMBER, tokens[:, 1] - _FIRST_OPERATOR
  kept = jax.random.bernoulli(keep_key, jnp.asarray(odds)[first])
  tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=START)[jnp.argsort(~kept)[:num_texts]]
  return Texts(tokens, jnp.broadcast_to((jnp.arange(tokens.shape[1]) > 0) * 1.0, tokens.shape))


def forms(config) -> np.ndarray:
  """Which tokens may stand at a place by the form of texts, bool `[L + slack, v]`."""
  n, tokens = config.num_terms, np.arange(backspace(config) + 1)
  numbers = (tokens >= FIRST_NUMBER) & (tokens < backspace(config))
  operators = (tokens >= _FIRST_OPERATOR) & (tokens < FIRST_NUMBER)
  rows = [numbers if place % 2 == 0 else operators for place in range(2 * n - 1)]
  rows += [tokens == EQUALS_TOKEN, *[numbers] * (n - 1), tokens == EOS_TOKEN]
  return np.stack(rows + [tokens < 0] * SLACK)


def is_result(config, place: chex.Array) -> jax.Array:
  """Whether a result stands at a place of a text."""
  return (place >= 2 * config.num_terms) & (place < 3 * config.num_terms - 1)


def allowed(config, text: chex.Array, place: chex.Array) -> jax.Array:
  """Which tokens are right after the first `place` tokens of a text `[W]`, bool `[v]`."""
  n, numbers = config.num_terms, np.arange(config.modulus)
  left, right = numbers[:, None], numbers[None]
  table = np.stack([left + right, left - right, left * right]) % config.modulus
  step = jnp.clip(place - 2 * n, 0, n - 2)
  shown = jnp.where(step == 0, text[0], text[2 * n - 1 + step])
  read = (
    text[2 * step + 1] - _FIRST_OPERATOR,
    shown - FIRST_NUMBER,
    text[2 * step + 2] - FIRST_NUMBER,
  )
  # What is malformed has no result; negative indices would count from the end.
  read = (jnp.where(index < 0, config.modulus + NUM_OPERATORS, index) for index in read)
  result = jnp.asarray(table).at[tuple(read)].get(mode="fill", fill_value=-1)
  is_value = (jnp.arange(backspace(config) + 1) == FIRST_NUMBER + result) & (result >= 0)
  return jnp.asarray(forms(config))[place] & (is_value | ~is_result(config, place))


class Sampling(NamedTuple):
  """How tokens are drawn; all may be traced."""

  temperature: chex.Numeric = 1.0  # Of all tokens but results.
  result_temperature: chex.Numeric = 1.0  # Of results, by one who knows where they stand.
  top_p: chex.Numeric = 1.0  # Mass of the nucleus.
  checker: chex.Numeric = 0.0  # 1 draws a wrong result once more.
  threshold: chex.Numeric = 0.0  # Tokens of lower probability are drawn once more.
  backspace: chex.Numeric = 0.0  # Whether the backspace may be drawn.


def reshape_logits(config, sampling: Sampling, logits, texts, places) -> jax.Array:
  """Logits `[b, v]` that are drawn from, after the first `places` `[b]` tokens of `texts`."""
  is_backspace = (jnp.arange(logits.shape[-1]) == backspace(config))[None]
  logits = jnp.where(is_backspace & (sampling.backspace == 0), -jnp.inf, logits)
  results = is_result(config, places)[:, None]
  logits /= jnp.where(results, sampling.result_temperature, sampling.temperature)
  log_probs = jax.nn.log_softmax(samplers.filter_top_p(logits, top_p=sampling.top_p))
  right = jax.vmap(functools.partial(allowed, config))(texts, places)
  bad = ((sampling.checker > 0) & results & ~right) | (jnp.exp(log_probs) < sampling.threshold)
  again = jnp.sum(jnp.where(bad, jnp.exp(log_probs), 0.0), axis=-1, keepdims=True)
  return log_probs + jnp.log(~bad + again)


def sample(config, key, model, params, sampling: Sampling, num_texts: int) -> BacktrackingOutput:
  """Draws texts from the start; the cache also holds them, for what reshapes the logits."""
  fns = samplers.flax_decode_fns(model, params)

  def init_cache(batch_size, max_length):
    return jnp.zeros((batch_size, max_length), jnp.int32), fns.init_cache(batch_size, max_length)

  def apply(tokens, cache, positions):
    texts, (logits, cache) = cache[0], fns.apply(tokens, cache[1], positions)
    texts = jnp.where(jnp.arange(texts.shape[1])[None] == positions, tokens, texts)
    logits = reshape_logits(config, sampling, logits[:, 0], texts[:, 1:], positions[:, 0])
    return logits[:, None], (texts, cache)

  ones = jnp.ones(num_texts, jnp.int32)
  return samplers.generate_with_backspace(
    key, DecodeFns(init_cache, apply), ones[:, None] * START, ones,
    backspace_token_id=backspace(config), max_new_tokens=length(config) + SLACK,
    max_steps=config.max_actions, eos_token_id=EOS_TOKEN,
  )  # fmt: skip


def describe(config, samples: BacktrackingOutput) -> dict[str, jax.Array]:
  """Validity of texts, by first operator too, and how far their beginnings are from their law."""
  texts, places = samples.tokens[:, : length(config)], jnp.arange(length(config))
  whole = samples.finished & (samples.lengths == len(places))
  right = jax.vmap(lambda text: jax.vmap(functools.partial(allowed, config, text))(places))(texts)
  right = whole & jnp.all(jnp.take_along_axis(right, texts[..., None], axis=2), axis=(1, 2))
  formed = jnp.asarray(forms(config))[places[None], texts]
  law = first_law(config)
  cells = (texts[:, 0] - FIRST_NUMBER) * NUM_OPERATORS + texts[:, 1] - _FIRST_OPERATOR
  begun = formed[:, 0] & formed[:, 1]
  shares = jnp.mean((cells[:, None] == jnp.arange(law.size)) & begun[:, None], axis=0)
  found = {
    "valid": jnp.mean(right),
    "well formed": jnp.mean(whole & jnp.all(formed, axis=1)),
    "distance": 0.5 * (jnp.abs(shares - law.ravel()).sum() + jnp.mean(~begun)),
    "actions": jnp.mean(samples.num_actions),
    "tokens": jnp.mean(samples.lengths),
  }
  for name, token in zip(("plus", "minus", "times"), range(_FIRST_OPERATOR, FIRST_NUMBER)):
    here = texts[:, 1] == token
    found[f"valid, first operator {name}"] = jnp.sum(right & here) / jnp.sum(here)
  return found
