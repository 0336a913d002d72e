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

NUM_OPERATORS, _FIRST_OPERATOR = 3, EQUALS_TOKEN + 2
_FIRST_NUMBER = _FIRST_OPERATOR + NUM_OPERATORS
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
  law = numbers[:, None] * np.array(config.operator_shares)[None]
  return law / law.sum()


def draw_texts(config, key: chex.PRNGKey, num_texts: int) -> Texts:
  """Texts whose first number and operator follow their law, by rejection."""
  law = first_law(config)
  share = law.mean() / law.max()  # Of the drawn ones that are kept.
  pool_key, keep_key = jax.random.split(key)
  pool = int(2 * num_texts / share) + 64
  tokens = data.modular_chain_batch(pool_key, chains(config), pool).tokens
  odds = jnp.asarray(law / law.max())[tokens[:, 0] - _FIRST_NUMBER, tokens[:, 1] - _FIRST_OPERATOR]
  kept = jax.random.bernoulli(keep_key, odds)
  tokens = tokens[jnp.argsort(~kept)[:num_texts]]
  tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=START)
  return Texts(tokens, jnp.broadcast_to((jnp.arange(tokens.shape[1]) > 0) * 1.0, tokens.shape))


class Allowed(NamedTuple):
  """Which tokens may stand at a place, bool `[v]`: by the form of texts, and by arithmetic, too."""

  form: chex.Array
  right: chex.Array


def allowed(config, text: chex.Array, place: chex.Array) -> Allowed:
  """What may follow the first `place` tokens of a text `[W]`, which are read alone."""
  n, modulus = config.num_terms, config.modulus
  tokens = jnp.arange(backspace(config) + 1)
  is_number = (tokens >= _FIRST_NUMBER) & (tokens < _FIRST_NUMBER + modulus)
  is_operator = (tokens >= _FIRST_OPERATOR) & (tokens < _FIRST_NUMBER)
  step = place - 2 * n
  in_steps = (step >= 0) & (step < n - 1)
  in_problem = jnp.where(place % 2 == 0, is_number, is_operator) & (place < 2 * n - 1)
  ends = ((tokens == EQUALS_TOKEN) & (place == 2 * n - 1)) | (
    (tokens == EOS_TOKEN) & (step == n - 1)
  )
  step = jnp.clip(step, 0, n - 2)
  left = jnp.where(step == 0, text[0], text[2 * n - 1 + step]) - _FIRST_NUMBER
  operator, operand = text[2 * step + 1] - _FIRST_OPERATOR, text[2 * step + 2] - _FIRST_NUMBER
  results = jnp.stack([left + operand, left - operand, left * operand]) % modulus
  result = results[jnp.clip(operator, 0, NUM_OPERATORS - 1)]
  known = (left >= 0) & (left < modulus) & (operand >= 0) & (operand < modulus)
  known &= (operator >= 0) & (operator < NUM_OPERATORS)
  is_right = known & (tokens == result + _FIRST_NUMBER)
  other = in_problem | ends
  return Allowed(other | (is_number & in_steps), other | (is_right & in_steps))


class Sampling(NamedTuple):
  """How tokens are drawn; all may be traced.

  Attributes:
    temperature: of all tokens but results.
    result_temperature: of results, by one who knows where they stand.
    top_p: mass of the nucleus.
    checker: 1 draws a wrong result once more.
    threshold: tokens of lower probability are drawn once more.
    backspace: whether the backspace may be drawn.
  """

  temperature: chex.Numeric = 1.0
  result_temperature: chex.Numeric = 1.0
  top_p: chex.Numeric = 1.0
  checker: chex.Numeric = 0.0
  threshold: chex.Numeric = 0.0
  backspace: chex.Numeric = 0.0


def reshape_logits(config, sampling: Sampling, logits, texts, places) -> jax.Array:
  """Logits `[b, v]` that are drawn from, after the first `places` `[b]` tokens of `texts`."""
  tokens = jnp.arange(logits.shape[-1])[None]
  banned = (tokens == backspace(config)) & (sampling.backspace == 0)
  logits = jnp.where(banned, -jnp.inf, logits)
  steps = places - 2 * config.num_terms
  in_steps = ((steps >= 0) & (steps < config.num_terms - 1))[:, None]
  logits /= jnp.where(in_steps, sampling.result_temperature, sampling.temperature)
  logits = samplers.filter_top_p(logits, top_p=sampling.top_p)
  log_probs = jax.nn.log_softmax(logits)
  probs = jnp.exp(log_probs)
  right = jax.vmap(functools.partial(allowed, config))(texts, places).right
  bad = ((sampling.checker > 0) & in_steps & ~right) | (probs < sampling.threshold)
  again = jnp.sum(jnp.where(bad, probs, 0.0), axis=-1, keepdims=True)
  return log_probs + jnp.log(~bad + again)


def sample(config, key, model, params, sampling: Sampling, num_texts: int) -> BacktrackingOutput:
  """Draws texts from the start."""
  fns = samplers.flax_decode_fns(model, params)

  def init_cache(batch_size, max_length):
    return jnp.zeros((batch_size, max_length), jnp.int32), fns.init_cache(batch_size, max_length)

  def apply(tokens, cache, positions):
    texts, cache = cache
    logits, cache = fns.apply(tokens, cache, positions)
    here = jnp.arange(texts.shape[1])[None] == positions[:, :1]
    texts = jnp.where(here, tokens[:, :1], texts)
    logits = reshape_logits(config, sampling, logits[:, 0], texts[:, 1:], positions[:, 0])
    return logits[:, None], (texts, cache)

  prompts = jnp.full((num_texts, 1), START)
  return samplers.generate_with_backspace(
    key,
    DecodeFns(init_cache, apply),
    prompts,
    jnp.ones(num_texts, jnp.int32),
    backspace_token_id=backspace(config),
    max_new_tokens=length(config) + SLACK,
    max_steps=config.max_actions,
    eos_token_id=EOS_TOKEN,
  )


def describe(config, samples: BacktrackingOutput) -> dict[str, jax.Array]:
  """Validity of texts, by first operator too, and how far their beginnings are from their law."""
  size, texts = length(config), samples.tokens
  places = jnp.arange(size)
  of_text = lambda text: jax.vmap(functools.partial(allowed, config, text))(places)  # noqa: E731
  found = jax.vmap(of_text)(texts)
  form, right = (
    jnp.all(jnp.take_along_axis(x, texts[:, :size, None], axis=2)[..., 0], axis=1) for x in found
  )
  whole = samples.finished & (samples.lengths == size)
  valid = whole & right
  law = first_law(config)
  number, operator = texts[:, 0] - _FIRST_NUMBER, texts[:, 1] - _FIRST_OPERATOR
  cells = jnp.arange(law.size)
  begins = (number >= 0) & (number < config.modulus) & (operator >= 0) & (operator < NUM_OPERATORS)
  cell = jnp.where(begins, number * NUM_OPERATORS + operator, law.size)
  shares = jnp.mean(cell[:, None] == cells[None], axis=0)
  distance = 0.5 * (jnp.abs(shares - law.ravel()).sum() + jnp.mean(~begins))
  by_operator = {
    f"valid, first operator {name}": jnp.sum(valid & (operator == i)) / jnp.sum(operator == i)
    for i, name in enumerate(("plus", "minus", "times"))
  }
  return by_operator | {
    "valid": jnp.mean(valid),
    "well formed": jnp.mean(whole & form),
    "distance": distance,
    "actions": jnp.mean(samples.num_actions),
    "tokens": jnp.mean(samples.lengths),
  }


def trace(config, samples: BacktrackingOutput) -> tuple[jax.Array, ...]:
  """Which actions write, write what is right, remove, and remove what is wrong, bool `[n, T]`."""
  width = length(config) + SLACK
  places = jnp.arange(width)

  def of_row(actions, num_actions):
    def step(carry, inputs):
      text, rights, size = carry
      action, is_real = inputs
      right = allowed(config, text, size).right[action]
      removes = is_real & (action == backspace(config))
      writes = is_real & ~removes
      wrong = removes & ~rights[jnp.maximum(size - 1, 0)]
      here = writes & (places == size)
      text, rights = jnp.where(here, action, text), jnp.where(here, right, rights)
      return (text, rights, size + writes - removes), (writes, right & writes, removes, wrong)

    start = jnp.zeros(width, jnp.int32), jnp.zeros(width, bool), 0
    real = jnp.arange(len(actions)) < num_actions
    return jax.lax.scan(step, start, (actions, real))[1]

  return jax.vmap(of_row)(samples.actions, samples.num_actions)
