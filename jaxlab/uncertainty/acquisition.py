"""Acquisition functions of Gaussian predictions, for maximization."""

import chex
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jaxlab._checks import as_accumulator, check_arrays, check_range, weighted


def expected_improvement_gaussian(
  mean: chex.Array, std: chex.Array, best: chex.Numeric
) -> chex.Array:
  """Expected amount by which a Gaussian value exceeds the best one so far.

  Args:
    mean: predicted means, `[...]`.
    std: predicted standard deviations, `[...]`, not negative.
    best: the best value so far, a scalar or `[...]`.

  Returns:
    E max(value - best, 0), float32 (or wider) `[...]`; max(mean - best, 0) where `std` is 0.

  Raises:
    ValueError: if a known `std` is negative.

  Reference: Jones et al., Efficient Global Optimization of Expensive Black-Box Functions, 1998,
  equation 15, https://doi.org/10.1023/A:1008306431147.
  """
  mean, std, best = _checked(mean, std, best)
  certain = std <= 0
  safe = jnp.where(certain, 1.0, std)
  # Below -40 both terms are 0; an infinite `best` would give infinity * 0.
  z = jnp.maximum((mean - best) / safe, -40.0)
  gain = jnp.maximum(safe * (z * norm.cdf(z) + norm.pdf(z)), 0.0)
  return jnp.where(certain, jnp.maximum(mean - best, 0.0), gain)


def probability_of_improvement_gaussian(
  mean: chex.Array, std: chex.Array, best: chex.Numeric
) -> chex.Array:
  """Probability that a Gaussian value exceeds the best one so far.

  Args:
    mean: predicted means, `[...]`.
    std: predicted standard deviations, `[...]`, not negative.
    best: the best value so far, a scalar or `[...]`.

  Returns:
    P(value > best), float32 (or wider) `[...]`; 1 or 0 where `std` is 0.

  Raises:
    ValueError: if a known `std` is negative.

  Reference: Kushner, A New Method of Locating the Maximum Point of an Arbitrary Multipeak Curve in
  the Presence of Noise, 1964, https://doi.org/10.1115/1.3653121.
  """
  mean, std, best = _checked(mean, std, best)
  gap = mean - best
  # So many standard deviations away, a float cannot tell the probability from 0 or 1.
  certain = jnp.abs(gap) >= 40 * std
  z = jnp.where(certain, 0.0, gap) / jnp.where(certain, 1.0, std)
  return jnp.where(certain, (gap > 0).astype(gap.dtype), norm.cdf(z))


def upper_confidence_bound_gaussian(
  mean: chex.Array, std: chex.Array, *, beta: chex.Numeric = 2.0
) -> chex.Array:
  """Mean plus a multiple of the standard deviation.

  Args:
    mean: predicted means, `[...]`.
    std: predicted standard deviations, `[...]`, not negative.
    beta: number of standard deviations, >= 0.

  Returns:
    `mean + beta * std`, float32 (or wider) `[...]`.

  Raises:
    ValueError: if a known `std` or `beta` is negative.

  Reference: Srinivas et al., Gaussian Process Optimization in the Bandit Setting, ICML 2010,
  https://arxiv.org/abs/0912.3995.
  """
  check_range("beta", beta, "[0, inf)")
  check_arrays(mean=(mean, "[...]"), std=(std, "[...]"))
  check_range("std", std, "[0, inf]")
  mean, std = as_accumulator(mean, std)
  return mean + weighted(beta, std)


def _checked(mean, std, best) -> tuple:
  form = "[...]" if np.ndim(best) else "[]"
  check_arrays(mean=(mean, "[...]"), std=(std, "[...]"), best=(best, form))
  check_range("std", std, "[0, inf]")
  return as_accumulator(mean, std, best)
