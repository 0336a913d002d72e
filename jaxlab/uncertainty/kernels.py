"""Kernels of Gaussian processes: prior covariances of a function's values."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_choice, check_range

# At this distance every kernel is 0 in float32; an infinite one would give 0 * inf in Matérn's.
_MAX_DISTANCE = 1e4


def kernel_matrix(
  x: chex.Array,
  x2: chex.Array,
  *,
  lengthscale: chex.Numeric,
  outputscale: chex.Numeric,
  kernel: str = "rbf",
) -> chex.Array:
  """Prior covariance of a function's values at two sets of points.

  Args:
    x: `[n, f]`.
    x2: `[m, f]`.
    lengthscale: scalar, or `[f]` for one per feature; positive, in units of the inputs.
    outputscale: prior variance of the function, positive.
    kernel: "rbf", or "matern12", "matern32", "matern52" for functions that are 0, 1, 2 times
      differentiable.

  Returns:
    Covariances, `[n, m]`.

  Raises:
    ValueError: if `kernel` is unknown, or a scale is not positive.

  Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations
  4.9 and 4.17, https://gaussianprocess.org/gpml.
  """
  check_choice("kernel", kernel, _CORRELATIONS)
  check_arrays(
    x=(x, "[n, f]"),
    x2=(x2, "[m, f]"),
    lengthscale=(lengthscale, "[f]" if np.ndim(lengthscale) else "[]"),
    outputscale=(outputscale, "[]"),
  )
  check_range("lengthscale", lengthscale, "(0, inf)")
  check_range("outputscale", outputscale, "(0, inf)")
  x, x2, lengthscale, outputscale = map(as_accumulator, (x, x2, lengthscale, outputscale))
  return _kernel_matrix(x, x2, lengthscale, outputscale, kernel=kernel)


@functools.partial(jax.jit, static_argnames="kernel")
def _kernel_matrix(x, x2, lengthscale, outputscale, *, kernel):
  # Differences are taken first: expanding the square would cancel where points are close.
  differences = x[:, None, :] - x2[None, :, :]
  differences = differences / jnp.broadcast_to(lengthscale, differences.shape)
  differences = jnp.clip(differences, -_MAX_DISTANCE, _MAX_DISTANCE)
  squared = jnp.sum(jnp.square(differences), axis=-1)
  return outputscale * _CORRELATIONS[kernel](squared)


def _distance(squared):
  """Square root with gradient 0 at 0, the distance of every point to itself."""
  same = squared == 0
  return jnp.where(same, 0.0, jnp.sqrt(jnp.where(same, 1.0, squared)))


def _matern12(squared):
  return jnp.exp(-_distance(squared))


def _matern32(squared):
  scaled = math.sqrt(3) * _distance(squared)
  return (1 + scaled) * jnp.exp(-scaled)


def _matern52(squared):
  scaled = math.sqrt(5) * _distance(squared)
  return (1 + scaled + 5 * squared / 3) * jnp.exp(-scaled)


_CORRELATIONS = {
  "rbf": lambda squared: jnp.exp(-squared / 2),
  "matern12": _matern12,
  "matern32": _matern32,
  "matern52": _matern52,
}
