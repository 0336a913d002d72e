"""Estimates of conditional probabilities by a language model of variables and their values.

Tokens are those of `data.local_documents`: 1 starts a text, 2 and 3 are the values 0 and 1, and
4 + i is variable i. A text begins with the target and with the condition and its value.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, is_known
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.samplers.decode_fns import DecodeFns, repeat_rows

_START, _VALUES, _VARIABLES = 1, 2, 4
_PROMPT = 4  # Tokens.


class FreeEstimate(NamedTuple):
  """Estimates from texts that the model writes.

  Attributes:
    prob: mean over the texts that reach the target, `[q]`; NaN if none does.
    prop_valid: share of texts that do, `[q]`.
    traces: variables between condition and target, -1 after the last, i32
      `[q, num_samples, num_variables]`.
  """

  prob: chex.Array
  prop_valid: chex.Array
  traces: chex.Array


def direct_estimate(
  decode_fns: DecodeFns,
  targets: chex.Array,
  conditions: chex.Array,
  condition_values: chex.Array,
  *,
  num_variables: int,
) -> jax.Array:
  """Asks for the target right after the condition.

  Args:
    decode_fns: the model.
    targets: variables that are asked for, int `[q]`.
    conditions: variables that are known, int `[q]`.
    condition_values: their values, 0 or 1, int `[q]`.
    num_variables: number N of variables.

  Returns:
    Probability that the target is 1, between the two values alone, float32 or wider, `[q]`.

  Raises:
    ValueError: if shapes do not agree, or known variables lie outside [0, N), a target is its
      condition, or values are neither 0 nor 1.
    TypeError: if they are no integers.

  Reference: Prystawski et al., Why Think Step by Step?, NeurIPS 2023, section 3.4,
  https://arxiv.org/abs/2304.03843.
  """
  prompts = _prompts(targets, conditions, condition_values, num_variables)
  cache, _ = _start(decode_fns, prompts, _PROMPT + 1)
  positions = jnp.full(prompts.shape[:1], _PROMPT)
  return _ask(decode_fns, cache, prompts[:, 1] - _VARIABLES, positions)[0]


def scaffolded_estimate(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  targets: chex.Array,
  conditions: chex.Array,
  condition_values: chex.Array,
  scaffolds: chex.Array,
  *,
  num_variables: int,
  num_samples: int = 10,
) -> jax.Array:
  """Lets the model draw the values of given variables before it is asked for the target.

  Args:
    key: random key.
    decode_fns: the model.
    targets: variables that are asked for, int `[q]`.
    conditions: variables that are known, int `[q]`.
    condition_values: their values, 0 or 1, int `[q]`.
    scaffolds: variables in between, in order, -1 after the last, int `[q, s]`.
    num_variables: number N of variables.
    num_samples: draws, whose estimates are averaged.

  Returns:
    Probability that the target is 1, float32 or wider, `[q]`.

  Raises:
    ValueError: as `direct_estimate`, if `num_samples` < 1, or known scaffolds hold other numbers
      than variables and -1.
    TypeError: if variables or values are no integers.

  Reference: as `direct_estimate`.
  """
  check_at_least(1, num_samples=num_samples)
  check_arrays(scaffolds=(scaffolds, "int [q, s]"), targets=(targets, "[q]"))
  check_range("scaffolds", scaffolds, f"[-1, {num_variables})")
  prompts = _prompts(targets, conditions, condition_values, num_variables)
  return _scaffolded(key, decode_fns, prompts, jnp.asarray(scaffolds), num_samples)


@compiled_once
def _scaffolded(key, decode_fns, prompts, scaffolds, num_samples):
  num_steps = scaffolds.shape[1]
  cache, _ = _start(decode_fns, prompts, _PROMPT + 2 * num_steps + 1)
  prompts, cache = repeat_rows((prompts, cache), num_samples)
  steps = jnp.repeat(scaffolds.astype(jnp.int32), num_samples, axis=0).T
  positions = prompts[:, 0] * 0 + _PROMPT

  def write(carry, step):
    cache, positions = carry
    key, variables = step
    probs, cache = _ask(decode_fns, cache, jnp.maximum(variables, 0), positions)
    values = _draw(key, probs)
    _, cache = _feed(decode_fns, cache, _VALUES + values, positions + 1)
    # Where there is no variable, what was written is written over.
    return (cache, jnp.where(variables >= 0, positions + 2, positions)), None

  if num_steps:
    rows = jax.random.split(key, num_steps), steps
    carry = varying_carry(write, (cache, positions), rows)
    (cache, positions), _ = jax.lax.scan(write, carry, rows)
  probs, _ = _ask(decode_fns, cache, prompts[:, 1] - _VARIABLES, positions)
  return jnp.mean(probs.reshape(-1, num_samples), axis=1)


def free_estimate(
  key: chex.PRNGKey,
  decode_fns: DecodeFns,
  targets: chex.Array,
  conditions: chex.Array,
  condition_values: chex.Array,
  *,
  num_variables: int,
  num_samples: int = 10,
) -> FreeEstimate:
  """Lets the model write variables and values until it comes to the target.

  Args:
    key: random key.
    decode_fns: the model.
    targets: variables that are asked for, int `[q]`.
    conditions: variables that are known, int `[q]`.
    condition_values: their values, 0 or 1, int `[q]`.
    num_variables: number N of variables, and of those that a text may have after the condition.
    num_samples: texts for each target.

  Returns:
    A `FreeEstimate`. Variables are drawn among variables, and values among values.

  Raises:
    ValueError: as `direct_estimate`, or if `num_samples` < 1.
    TypeError: if variables or values are no integers.

  Reference: as `direct_estimate`.
  """
  check_at_least(1, num_samples=num_samples)
  prompts = _prompts(targets, conditions, condition_values, num_variables)
  return _free(key, decode_fns, prompts, num_variables, num_samples)


@compiled_once
def _free(key, decode_fns, prompts, num_variables, num_samples):
  cache, logits = _start(decode_fns, prompts, _PROMPT + 2 * num_variables)
  prompts, cache, logits = repeat_rows((prompts, cache, logits), num_samples)
  targets = prompts[:, 1] - _VARIABLES
  num_rows = targets.shape[0]
  columns = jnp.arange(num_variables)[None]

  def is_open(state):
    step, _, _, _, probs, reached, _ = state
    del probs
    return (step < num_variables) & ~jnp.all(reached)

  def write(state):
    step, cache, positions, logits, probs, reached, traces = state
    variable_key, value_key = jax.random.split(jax.random.fold_in(key, step))
    choices = as_accumulator(logits)[:, _VARIABLES : _VARIABLES + num_variables]
    variables = jax.random.categorical(variable_key, choices, axis=-1)
    chances, cache = _ask(decode_fns, cache, variables, positions)
    hit = ~reached & (variables == targets)
    probs = jnp.where(hit, chances, probs)
    written = ~reached & ~hit
    here = written[:, None] & (columns == step)
    traces = jnp.where(here, variables[:, None].astype(jnp.int32), traces)
    values = _draw(value_key, chances)
    logits, cache = _feed(decode_fns, cache, _VALUES + values, positions + 1)
    positions = jnp.where(written, positions + 2, positions)
    return step + 1, cache, positions, logits, probs, reached | hit, traces

  state = (
    jnp.int32(0),
    cache,
    targets * 0 + _PROMPT,
    logits,
    jnp.zeros(num_rows, jnp.promote_types(logits.dtype, jnp.float32)),
    jnp.zeros(num_rows, bool),
    jnp.full((num_rows, num_variables), -1, jnp.int32),
  )
  state = jax.lax.while_loop(is_open, write, varying_carry(write, state))
  probs, reached, traces = (x.reshape(-1, num_samples, *x.shape[1:]) for x in state[4:])
  num_valid = jnp.sum(reached, axis=1)
  total = jnp.sum(jnp.where(reached, probs, 0.0), axis=1)
  prob = jnp.where(num_valid > 0, total / jnp.maximum(num_valid, 1), jnp.nan)
  return FreeEstimate(prob, num_valid / num_samples, traces)


def _prompts(targets, conditions, condition_values, num_variables) -> jax.Array:
  """Start, target, condition and its value, i32 `[q, 4]`."""
  check_at_least(2, num_variables=num_variables)
  arrays = {"targets": targets, "conditions": conditions, "condition_values": condition_values}
  check_arrays(**{name: (array, "int [q]") for name, array in arrays.items()})
  check_range("targets", targets, f"[0, {num_variables})")
  check_range("conditions", conditions, f"[0, {num_variables})")
  check_range("condition_values", condition_values, "[0, 1]")
  if is_known((targets, conditions)):
    for i, (target, condition) in enumerate(zip(targets, conditions)):
      if target == condition:
        raise ValueError(f"targets[{i}] must differ from its condition, got {target} for both.")
  targets, conditions, values = (jnp.asarray(x).astype(jnp.int32) for x in arrays.values())
  start = jnp.full_like(targets, _START)
  return jnp.stack([start, _VARIABLES + targets, _VARIABLES + conditions, _VALUES + values], axis=1)


def _start(decode_fns, prompts, max_length):
  """The cache after prompts, and the logits of what follows."""
  cache = decode_fns.init_cache(prompts.shape[0], max_length)
  positions = jnp.broadcast_to(jnp.arange(_PROMPT), prompts.shape)
  logits, cache = decode_fns.apply(prompts, cache, positions)
  return cache, logits[:, -1]


def _feed(decode_fns, cache, tokens, positions):
  """Writes one token a row; returns the logits of the next, and the cache."""
  logits, cache = decode_fns.apply(tokens[:, None], cache, positions[:, None])
  return logits[:, 0], cache


def _ask(decode_fns, cache, variables, positions):
  """Writes one variable a row; returns the probability of 1 among the two values, and the cache."""
  logits, cache = _feed(decode_fns, cache, _VARIABLES + variables.astype(jnp.int32), positions)
  logits = as_accumulator(logits)
  return jax.nn.sigmoid(logits[:, _VALUES + 1] - logits[:, _VALUES]), cache


def _draw(key, probs):
  return (jax.random.uniform(key, probs.shape, probs.dtype) < probs).astype(jnp.int32)
