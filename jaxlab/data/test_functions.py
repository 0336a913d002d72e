"""Functions with many local maxima, on which methods of optimization are compared."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays


class _Bounds(dict):
  """Name of a test function -> number of inputs, and the interval in which each lies."""


BOUNDS = _Bounds(
  ackley=(10, -5.0, 10.0),
  booth=(2, -4.0, 4.0),
  levy_n13=(2, -10.0, 10.0),
  multi_optima=(1, -1.0, 2.0),
  sinusoid=(1, -1.0, 2.0),
)


def multi_optima(x: chex.Array) -> jax.Array:
  """A wave with three frequencies, for maximization on [-1, 2].

  Args:
    x: `[n, 1]`.

  Returns:
    `sin(x) cos(5x) cos(22x)`, float32 or wider `[n]`; at most 0.949 in the interval.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  x = _column(x)
  return jnp.sin(x) * jnp.cos(5 * x) * jnp.cos(22 * x)


def sinusoid(x: chex.Array) -> jax.Array:
  """A chirp on a hill, for maximization on [-1, 2].

  Args:
    x: `[n, 1]`.

  Returns:
    `-sin(5x²) - x⁴ + 0.3x³ + 2x² + 4.1x`, float32 or wider `[n]`.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  x = _column(x)
  return -jnp.sin(5 * x * x) - x**4 + 0.3 * x**3 + 2 * x * x + 4.1 * x


def _column(x: chex.Array) -> jax.Array:
  check_arrays(x=(x, "[n, 1]"))
  return as_accumulator(x)[:, 0]


def levy_n13(x: chex.Array) -> jax.Array:
  """Levy's function number 13 with the sign changed, for maximization on [-10, 10]².

  Args:
    x: `[n, 2]`.

  Returns:
    Float32 or wider `[n]`; the maximum, 0, lies at (1, 1).

  Reference: Surjanovic and Bingham, Virtual Library of Simulation Experiments,
  https://www.sfu.ca/~ssurjano/levy13.html.
  """
  check_arrays(x=(x, "[n, 2]"))
  x, y = as_accumulator(x).T
  first = (x - 1) ** 2 * (1 + jnp.sin(3 * jnp.pi * y) ** 2)
  second = (y - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * y) ** 2)
  return -(jnp.sin(3 * jnp.pi * x) ** 2 + first + second)


def booth(x: chex.Array) -> jax.Array:
  """Booth's function with the sign changed, for maximization on [-4, 4]².

  Args:
    x: `[n, 2]`.

  Returns:
    `-((x + 2y - 7)² + (2x + y - 5)²)`, float32 or wider `[n]`; the maximum, 0, lies at (1, 3).

  Reference: Surjanovic and Bingham, Virtual Library of Simulation Experiments,
  https://www.sfu.ca/~ssurjano/booth.html.
  """
  check_arrays(x=(x, "[n, 2]"))
  x, y = as_accumulator(x).T
  return -((x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2)


def ackley(x: chex.Array) -> jax.Array:
  """Ackley's function with the sign changed, for maximization on [-5, 10]^d.

  Args:
    x: `[n, d]`, d >= 1.

  Returns:
    `20 exp(-0.2 sqrt(mean(x²))) + exp(mean(cos(2πx))) - 20 - e`, float32 or wider `[n]`; the
    maximum, 0, lies at the origin, where the gradient counts as 0.

  Reference: Surjanovic and Bingham, Virtual Library of Simulation Experiments,
  https://www.sfu.ca/~ssurjano/ackley.html.
  """
  check_arrays(x=(x, "[n, d]"))
  x = as_accumulator(x)
  square = jnp.mean(x * x, axis=1)
  is_origin = square == 0
  norm = jnp.where(is_origin, 0.0, jnp.sqrt(jnp.where(is_origin, 1.0, square)))
  waves = jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x), axis=1))
  return 20 * jnp.expm1(-0.2 * norm) + waves - math.e
