"""Arithmetic that is written out step by step, for language models on a laptop.

Modular chains show every partial result and may hold systematic errors and noise; products of whole
numbers are answered directly. Both give rows of tokens with a loss mask on the response.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once

PAD_TOKEN, EQUALS_TOKEN, EOS_TOKEN = 0, 1, 2
# Operators of chains are +, -, x at 3 to 5 and numbers follow; products have x at 3, then digits.
_FIRST_OP, _NUM_OPS = 3, 3
_FIRST_NUMBER = _FIRST_OP + _NUM_OPS
_TIMES_TOKEN, _FIRST_DIGIT = 3, 4
_MAX_DIGITS = 4  # Products stay below 2^31.


@dataclasses.dataclass(frozen=True)
class ModularChainConfig:
  """The settings of modular chains.

  Attributes:
    modulus: values are taken modulo this, at least 2.
    num_terms: numbers in a problem, at least 2; a chain has one step less.
    verbose: whether a step restates operator and operand before its result.
    misconception_rate: share of the (operator, left, right) table whose entries are misconceptions,
      in [0, 1].
    misconception_prob: probability that a step at such an entry shows the entry's wrong value, in
      [0, 1].
    noise: probability that a step shows a uniform value, in [0, 1].
    table_seed: of the misconceptions; inside a compiled function it may be a traced integer.

  Raises:
    ValueError: if a field is out of range.
  """

  modulus: int = 11
  num_terms: int = 5
  verbose: bool = True
  misconception_rate: float = 0.12
  misconception_prob: float = 0.7
  noise: float = 0.03
  table_seed: int = 0

  def __post_init__(self):
    check_at_least(2, modulus=self.modulus, num_terms=self.num_terms)
    for name in ("misconception_rate", "misconception_prob", "noise"):
      check_range(name, getattr(self, name), "[0, 1]")

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return _FIRST_NUMBER + self.modulus

  @property
  def prompt_length(self) -> int:
    """Tokens of a problem, with its equals sign."""
    return 2 * self.num_terms

  @property
  def response_length(self) -> int:
    """Tokens of a whole response, with its end."""
    return (self.num_terms - 1) * self._step_length + 1

  @property
  def _step_length(self) -> int:
    return 3 if self.verbose else 1


class ChainBatch(NamedTuple):
  """Problems with their responses.

  Attributes:
    tokens: prompt and response, int32 `[b, T]`, T = `prompt_length + response_length`.
    loss_mask: 1 on the response and its end, float32 `[b, T]`.
    prompt_lengths: int32 `[b]`.
    answers: the problems' true values, int32 `[b]`, whatever the responses show.
    steps: the partial results that the responses show, int32 `[b, num_terms - 1]`.
    num_misconceptions: steps that met an entry that is a misconception, int32 `[b]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  prompt_lengths: chex.Array
  answers: chex.Array
  steps: chex.Array
  num_misconceptions: chex.Array


class ParsedChain(NamedTuple):
  """The content of a response.

  Attributes:
    steps: partial results, int32 `[b, num_terms - 1]`; -1 where a step is malformed.
    answer: the last one, int32 `[b]`; -1 unless every step is well formed and the end follows.
  """

  steps: chex.Array
  answer: chex.Array


@compiled_once
def modular_chain_batch(
  key: chex.PRNGKey, config: ModularChainConfig, batch_size: int, *, clean: bool = False
) -> ChainBatch:
  """Draws problems `a0 op1 a1 op2 a2 ... =` and responses that show every partial result.

  Values are reduced from left to right, modulo the modulus. At an entry of the table that is a
  misconception, a step shows its one wrong value with `misconception_prob`; with probability
  `noise` any step shows a uniform value; the chain goes on from the value shown. A model of these
  texts therefore has systematic errors, problems of different difficulty, and known probabilities.

  Args:
    key: random key.
    config: the chains.
    batch_size: number b of problems.
    clean: whether every step is right, as for evaluation.

  Returns:
    A `ChainBatch`. Tokens: 0 padding, 1 `=`, 2 end, 3 to 5 the operators +, -, x, then the numbers.

  Raises:
    ValueError: if `batch_size` is not positive.
  """
  check_at_least(1, batch_size=batch_size)
  n, modulus = config.num_terms, config.modulus
  term_key, op_key, hit_key, noise_key, value_key = jax.random.split(key, 5)
  terms = jax.random.randint(term_key, (n, batch_size), 0, modulus)
  ops = jax.random.randint(op_key, (n - 1, batch_size), 0, _NUM_OPS)
  is_wrong, wrong_values = _misconceptions(config)
  shape = (n - 1, batch_size)
  believed = jax.random.bernoulli(hit_key, config.misconception_prob, shape)
  noisy = jax.random.bernoulli(noise_key, config.noise, shape)
  values = jax.random.randint(value_key, shape, 0, modulus)

  def step(carry, inputs):
    shown, true = carry
    op, right, believed, noisy, value = inputs
    met = is_wrong[op, shown, right]
    result = _apply(op, shown, right, modulus)
    if not clean:
      result = jnp.where(met & believed, wrong_values[op, shown, right], result)
      result = jnp.where(noisy, value, result)
    return (result, _apply(op, true, right, modulus)), (result, met)

  inputs = ops, terms[1:], believed, noisy, values
  (_, answers), (steps, met) = jax.lax.scan(step, (terms[0], terms[0]), inputs)

  numbers, operators = _FIRST_NUMBER + terms.T, _FIRST_OP + ops.T
  pairs = jnp.stack([operators, numbers[:, 1:]], axis=-1)
  results = _FIRST_NUMBER + steps.T
  written = results[..., None]
  if config.verbose:
    written = jnp.concatenate([pairs, written], axis=-1)
  tokens = jnp.concatenate(
    [
      numbers[:, :1],
      pairs.reshape(batch_size, -1),
      jnp.full((batch_size, 1), EQUALS_TOKEN),
      written.reshape(batch_size, -1),
      jnp.full((batch_size, 1), EOS_TOKEN),
    ],
    axis=1,
  ).astype(jnp.int32)
  return ChainBatch(
    tokens,
    _response_mask(tokens.shape, config.prompt_length),
    jnp.full(batch_size, config.prompt_length, jnp.int32),
    answers.astype(jnp.int32),
    steps.T.astype(jnp.int32),
    met.sum(0, dtype=jnp.int32),
  )


def parse_chain(config: ModularChainConfig, response_tokens: chex.Array) -> ParsedChain:
  """Reads the partial results out of responses.

  Args:
    config: the chains.
    response_tokens: what follows the equals sign, int `[b, R]`, of any length; what is missing is
      malformed, what comes after the end is ignored.

  Returns:
    A `ParsedChain`. A step is well formed if its result is a number and, in verbose chains, an
    operator and a number precede it; it need not be right.
  """
  check_arrays(response_tokens=(response_tokens, "int [b, R]"))
  length = config.response_length
  tokens = jnp.asarray(response_tokens, jnp.int32)[:, :length]
  tokens = jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))
  ended = jnp.cumsum(tokens == EOS_TOKEN, axis=1) > 0
  tokens = jnp.where(ended & (tokens != EOS_TOKEN), PAD_TOKEN, tokens)
  parts = tokens[:, :-1].reshape(len(tokens), config.num_terms - 1, -1)
  is_number = (parts >= _FIRST_NUMBER) & (parts < config.vocab_size)
  well_formed = is_number[..., -1]
  if config.verbose:
    is_op = (parts[..., 0] >= _FIRST_OP) & (parts[..., 0] < _FIRST_NUMBER)
    well_formed &= is_op & is_number[..., 1]
  steps = jnp.where(well_formed, parts[..., -1] - _FIRST_NUMBER, -1)
  complete = jnp.all(well_formed, axis=1) & (tokens[:, -1] == EOS_TOKEN)
  return ParsedChain(steps, jnp.where(complete, steps[:, -1], -1))


def check_steps(
  config: ModularChainConfig, prompt_tokens: chex.Array, steps: chex.Array
) -> jax.Array:
  """Whether each step follows from the value that was shown before it.

  Args:
    config: the chains.
    prompt_tokens: the problems, int `[b, P]` with P at least `prompt_length`.
    steps: partial results, int `[b, num_terms - 1]`, -1 where malformed.

  Returns:
    bool `[b, num_terms - 1]`; a malformed step and the one after it are not right.

  Raises:
    ValueError: if the prompts are shorter than a problem, or shapes do not fit.
    TypeError: if an array is not of integers.
  """
  check_arrays(
    prompt_tokens=(prompt_tokens, "int [b, P]"), steps=(steps, f"int [b, {config.num_terms - 1}]")
  )
  prompt_tokens, steps = jnp.asarray(prompt_tokens, jnp.int32), jnp.asarray(steps, jnp.int32)
  if prompt_tokens.shape[1] < config.prompt_length:
    raise ValueError(
      f"prompt_tokens must hold {config.prompt_length} tokens per row, "
      f"got {prompt_tokens.shape[1]}."
    )
  problem = prompt_tokens[:, : config.prompt_length - 1]
  terms, ops = problem[:, ::2] - _FIRST_NUMBER, problem[:, 1::2] - _FIRST_OP
  left = jnp.concatenate([terms[:, :1], steps[:, :-1]], axis=1)
  right = _apply(ops, left, terms[:, 1:], config.modulus)
  return (left >= 0) & (steps == right)


def _misconceptions(config: ModularChainConfig) -> tuple[jax.Array, jax.Array]:
  """Which entries of the table are misconceptions, and the wrong value of each entry."""
  count = round(config.misconception_rate * _NUM_OPS * config.modulus**2)
  return _table(jax.random.key(config.table_seed), count, modulus=config.modulus)


@partial(jax.jit, static_argnames="modulus")
def _table(key, count, *, modulus: int) -> tuple[jax.Array, jax.Array]:
  where_key, value_key = jax.random.split(key)
  shape = (_NUM_OPS, modulus, modulus)
  size = _NUM_OPS * modulus**2
  chosen = jax.random.permutation(where_key, size) < count
  op, left, right = jnp.indices(shape)
  shift = jax.random.randint(value_key, shape, 1, modulus)
  return chosen.reshape(shape), (_apply(op, left, right, modulus) + shift) % modulus


def _apply(op, left, right, modulus: int) -> jax.Array:
  """The operators by number: +, -, x."""
  return jnp.where(op == 0, left + right, jnp.where(op == 1, left - right, left * right)) % modulus


def _response_mask(shape: tuple[int, int], prompt_length: int) -> jax.Array:
  return jnp.broadcast_to(jnp.arange(shape[1]) >= prompt_length, shape).astype(jnp.float32)


# --------------------------------------------------------------------------------------- products


class MultiplicationBatch(NamedTuple):
  """Products, written out.

  Attributes:
    tokens: `a x b = product`, then the end; int32 `[n, T]`.
    loss_mask: 1 on the product and the end, float32 `[n, T]`.
    prompt_lengths: int32 `[n]`.
    answers: the products, int32 `[n]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  prompt_lengths: chex.Array
  answers: chex.Array


class MultiplicationData(NamedTuple):
  """Disjoint problems for training and for testing."""

  train: MultiplicationBatch
  test: MultiplicationBatch


def multiplication_dataset(
  key: chex.PRNGKey, *, num_digits: int = 2, num_train: int, num_test: int
) -> MultiplicationData:
  """Draws products of numbers that have `num_digits` digits each, answered without steps.

  Leading and last digits of a product are easy, the middle ones are hard. A model therefore has
  partial knowledge, and several samples can help where it is uncertain.

  Args:
    key: random key of the order of all pairs: training problems are the first, test problems the
      last of them.
    num_digits: digits of a factor, 1 to 4; factors have no leading zero.
    num_train: number of training problems.
    num_test: number of test problems, disjoint from these.

  Returns:
    `MultiplicationData`; T = 4 num_digits + 3, products have 2 num_digits digits, the most
    significant first. Tokens: 0 padding, 1 `=`, 2 end, 3 `x`, then the digits. `a x b` and `b x a`
    stand side by side, and never one for training and the other for testing, unless all pairs are
    drawn.

  Raises:
    ValueError: if `num_digits` is out of range, a count is negative, or both together exceed the
      number of pairs.

  Reference: a setting for Chen et al., Rethinking Fine-Tuning when Scaling Test-Time Compute,
  NeurIPS 2025, https://arxiv.org/abs/2502.07154.
  """
  if not 1 <= num_digits <= _MAX_DIGITS:
    raise ValueError(f"num_digits must lie in [1, {_MAX_DIGITS}], got {num_digits}.")
  smallest, count = 10 ** (num_digits - 1), 9 * 10 ** (num_digits - 1)
  check_at_least(0, num_train=num_train, num_test=num_test)
  if num_train + num_test > count**2:
    raise ValueError(
      f"num_train + num_test must not exceed the {count**2} pairs of {num_digits}-digit factors, "
      f"got {num_train} + {num_test}."
    )
  order = jnp.triu(jax.random.permutation(key, count**2).reshape(count, count))
  order = jnp.argsort((order + jnp.triu(order, 1).T).ravel())
  pairs = jnp.concatenate([order[:num_train], order[count**2 - num_test :]])
  left, right = smallest + pairs // count, smallest + pairs % count
  answers = left * right

  def digits(numbers, width):
    return numbers[:, None] // 10 ** jnp.arange(width - 1, -1, -1)[None] % 10 + _FIRST_DIGIT

  def symbol(token):
    return jnp.full((len(pairs), 1), token)

  tokens = jnp.concatenate(
    [
      digits(left, num_digits),
      symbol(_TIMES_TOKEN),
      digits(right, num_digits),
      symbol(EQUALS_TOKEN),
      digits(answers, 2 * num_digits),
      symbol(EOS_TOKEN),
    ],
    axis=1,
  ).astype(jnp.int32)
  prompt_length = 2 * num_digits + 2
  rows = MultiplicationBatch(
    tokens,
    _response_mask(tokens.shape, prompt_length),
    jnp.full(len(pairs), prompt_length, jnp.int32),
    answers.astype(jnp.int32),
  )
  return MultiplicationData(
    jax.tree.map(lambda array: array[:num_train], rows),
    jax.tree.map(lambda array: array[num_train:], rows),
  )
