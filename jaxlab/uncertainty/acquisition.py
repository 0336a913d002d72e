"""Acquisition functions of Gaussian predictions, for maximization."""

import chex
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jaxlab._checks import as_accumulator, check_arrays, check_range


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
  form = "[...]" if np.ndim(best) else "[]"
  check_arrays(mean=(mean, "[...]"), std=(std, "[...]"), best=(best, form))
  check_range("std", std, "[0, inf]")
  mean, std, best = as_accumulator(mean, std, best)
  certain = std <= 0
  safe = jnp.where(certain, 1.0, std)
  # Below -40 both terms are 0; an infinite `best` would give infinity * 0.
  z = jnp.maximum((mean - best) / safe, -40.0)
  gain = jnp.maximum(safe * (z * norm.cdf(z) + norm.pdf(z)), 0.0)
  return jnp.where(certain, jnp.maximum(mean - best, 0.0), gain)
