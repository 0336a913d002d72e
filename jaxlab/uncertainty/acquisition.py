"""Acquisition functions of Gaussian predictions, for maximization."""

import chex
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxlab._checks import as_accumulator, check_arrays


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

  Reference: Jones et al., Efficient Global Optimization of Expensive Black-Box Functions, 1998,
  equation 15, https://doi.org/10.1023/A:1008306431147.
  """
  form = "[...]" if jnp.ndim(best) else "[]"
  check_arrays(mean=(mean, "[...]"), std=(std, "[...]"), best=(best, form))
  mean, std, best = as_accumulator(mean, std, best)
  safe = jnp.where(std > 0, std, 1.0)
  z = (mean - best) / safe
  gain = jnp.maximum(safe * (z * norm.cdf(z) + norm.pdf(z)), 0.0)
  return jnp.where(std > 0, gain, jnp.maximum(mean - best, 0.0))
