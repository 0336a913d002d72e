"""What is lost by answering at once instead of step by step, where only neighbors were seen."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_filled, check_range


class ConditionalErrors(NamedTuple):
  """Mean squared distance of estimates, scalars.

  Attributes:
    mse: from the true conditional probabilities.
    mse_to_marginal: from the marginal probabilities, which ignore the condition.
  """

  mse: chex.Array
  mse_to_marginal: chex.Array


def chain_conditional(
  initial: chex.Array, transitions: chex.Array, source: int, destination: int
) -> jax.Array:
  """Distribution of one variable of a Markov chain given another.

  Args:
    initial: distribution of the first variable, `[S]`.
    transitions: matrices from each variable to the next, rows for values of the former,
      `[L, S, S]`.
    source: number of the variable that is known, in [0, L].
    destination: number of the other one; it may come before.

  Returns:
    Rows for the values of the source, float32 or wider, `[S, S]`. A value of probability 0 has the
    destination's marginal distribution if this comes before.

  Raises:
    ValueError: if shapes do not agree, or a number lies outside [0, L].

  Reference: Prystawski et al., Why Think Step by Step?, NeurIPS 2023, section 2,
  https://arxiv.org/abs/2304.03843.
  """
  initial, transitions = _check_chain(initial, transitions, source, destination)
  if source <= destination:
    return _path(transitions, source, destination)
  start = _distribution(initial, transitions, destination)
  joint = start[:, None] * _path(transitions, destination, source)
  total = jnp.sum(joint, axis=0)[:, None]
  posterior = joint.T / jnp.where(total == 0, 1.0, total)
  return jnp.where(total == 0, start[None], posterior)


def chain_reasoning_gap(
  initial: chex.Array, transitions: chex.Array, source: int, destination: int
) -> jax.Array:
  """Expected squared error of the marginal distribution as an answer about a chain.

  A learner that saw pairs of neighbors alone has nothing better to say at once, while chaining what
  it knows about neighbors has no error.

  Args:
    initial: as for `chain_conditional`.
    transitions: `[L, S, S]`.
    source: number of the variable that is known.
    destination: number of the one that is asked for.

  Returns:
    Mean over the values of the destination of the squared difference of conditional and marginal
    probability, expected over the source's values, float32 or wider, a scalar.

  Raises:
    ValueError: as `chain_conditional`.

  Reference: as `chain_conditional`.
  """
  conditional = chain_conditional(initial, transitions, source, destination)
  initial, transitions = as_accumulator(initial, transitions)
  marginal = _distribution(initial, transitions, destination)
  errors = jnp.mean(jnp.square(conditional - marginal[None]), axis=1)
  return jnp.sum(_distribution(initial, transitions, source) * errors)


def conditional_errors(
  estimates: chex.Array, conditionals: chex.Array, marginals: chex.Array
) -> ConditionalErrors:
  """How far estimates of conditional probabilities are from the truth, and from the marginals.

  Args:
    estimates: `[q]`.
    conditionals: true conditional probabilities, `[q]`.
    marginals: true marginal probabilities of the targets, `[q]`.

  Returns:
    `ConditionalErrors`, float32 or wider.

  Raises:
    ValueError: if there are no estimates or shapes do not agree.

  Reference: as `chain_conditional`, section 3.5.
  """
  check_arrays(
    estimates=(estimates, "[q]"), conditionals=(conditionals, "[q]"), marginals=(marginals, "[q]")
  )
  check_filled(estimates=estimates)
  estimates, *truths = as_accumulator(estimates, conditionals, marginals)
  return ConditionalErrors(*(jnp.mean(jnp.square(estimates - truth)) for truth in truths))


def _check_chain(initial, transitions, source, destination):
  check_arrays(initial=(initial, "[S]"), transitions=(transitions, "[L, S, S]"))
  length = jnp.shape(transitions)[0]
  check_range("source", source, f"[0, {length}]")
  check_range("destination", destination, f"[0, {length}]")
  return as_accumulator(initial, transitions)


def _path(transitions: jax.Array, start: int, stop: int) -> jax.Array:
  product = jnp.eye(transitions.shape[1], dtype=transitions.dtype)
  for matrix in range(start, stop):
    product = jnp.matmul(product, transitions[matrix], precision=jax.lax.Precision.HIGHEST)
  return product


def _distribution(initial: jax.Array, transitions: jax.Array, place: int) -> jax.Array:
  return jnp.sum(initial[:, None] * _path(transitions, 0, place), axis=0)
