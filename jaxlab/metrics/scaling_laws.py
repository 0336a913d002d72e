"""Laws of coverage: how the share of solved problems grows with the number of samples."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_range, is_known

_NUM_STEPS = 100


class ExponentiatedPowerLaw(NamedTuple):
  """The law coverage = exp(a k^b).

  Attributes:
    a: log-coverage of one sample, negative.
    b: power of the number of samples, negative where coverage grows.
  """

  a: chex.Array
  b: chex.Array


def exponentiated_power_law(k: chex.Numeric, law: ExponentiatedPowerLaw) -> jax.Array:
  """Coverage that the law gives for k samples.

  Args:
    k: numbers of samples, `[...]`, at least 1.
    law: an `ExponentiatedPowerLaw` of scalars.

  Returns:
    `exp(a k^b)`, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `k` < 1.

  Reference: Brown et al., Large Language Monkeys, 2024, equation 2,
  https://arxiv.org/abs/2407.21787.
  """
  check_range("k", k, "[1, inf)")
  return jnp.exp(law.a * jnp.power(as_accumulator(k), law.b))


def fit_exponentiated_power_law(ks: chex.Array, coverage: chex.Array) -> ExponentiatedPowerLaw:
  """Fits the law to a curve of coverage by least squares.

  Starts from a straight-line fit of log(-log(coverage)) against log(k), then minimizes the squared
  error of the coverage itself by the Levenberg-Marquardt method.

  Args:
    ks: numbers of samples, `[m]`, at least 1.
    coverage: share of problems solved, `[m]`, in [0, 1].

  Returns:
    An `ExponentiatedPowerLaw` of scalars, in float32 or wider; NaN where fewer than two points
    of a JAX array lie strictly between 0 and 1, or one is NaN.

  Raises:
    ValueError: if a known k < 1, a known coverage lies outside [0, 1], or fewer than two known
      coverages lie strictly between 0 and 1.

  Reference: Brown et al., Large Language Monkeys, 2024, section 3.1,
  https://arxiv.org/abs/2407.21787.
  """
  check_arrays(ks=(ks, "[m]"), coverage=(coverage, "[m]"))
  check_range("ks", ks, "[1, inf)")
  check_range("coverage", coverage, "[0, 1]")
  if is_known(coverage) and np.sum((np.asarray(coverage) > 0) & (np.asarray(coverage) < 1)) < 2:
    raise ValueError(
      f"coverage must hold at least two values strictly between 0 and 1, got {coverage}."
    )
  return _fit(*as_accumulator(ks, coverage))


@jax.jit
def _fit(ks: jax.Array, coverage: jax.Array) -> ExponentiatedPowerLaw:
  inside = (coverage > 0) & (coverage < 1)
  log_k = jnp.log(ks)

  # a = -exp(params[0]) is negative, so that the law gives probabilities.
  def residuals(params):
    return jnp.exp(-jnp.exp(params[0] + params[1] * log_k)) - coverage

  params = _levenberg_marquardt(residuals, _line(log_k, coverage, inside))
  missing = (jnp.sum(inside) < 2) | jnp.any(jnp.isnan(coverage) | jnp.isnan(ks))
  params = jnp.where(missing, jnp.nan, params)
  return ExponentiatedPowerLaw(-jnp.exp(params[0]), params[1])


def _line(log_k: jax.Array, coverage: jax.Array, inside: jax.Array) -> jax.Array:
  """Intercept and slope of log(-log(coverage)) against log(k), over the points inside (0, 1)."""
  height = jnp.log(-jnp.log(jnp.where(inside, coverage, 0.5)))
  weight = inside / jnp.maximum(jnp.sum(inside), 1)
  mean_x, mean_y = jnp.sum(weight * log_k), jnp.sum(weight * height)
  spread = jnp.sum(weight * jnp.square(log_k - mean_x))
  slope = jnp.sum(weight * (log_k - mean_x) * (height - mean_y))
  slope /= jnp.where(spread > 0, spread, 1.0)
  return jnp.stack([mean_y - slope * mean_x, slope])


def _levenberg_marquardt(residuals, params: jax.Array) -> jax.Array:
  """Least squares in two unknowns; a step that does not help is undone, and damping increases."""

  def step(_, state):
    params, damping = state
    error, jacobian = residuals(params), jax.jacfwd(residuals)(params)
    gradient = jnp.sum(jacobian * error[:, None], axis=0)
    (p, q), (_, r) = jnp.sum(jacobian[:, :, None] * jacobian[:, None, :], axis=0)
    p, r = p * (1.0 + damping), r * (1.0 + damping)
    determinant = p * r - q * q
    # Solved by hand: two unknowns need no linear-algebra library.
    change = jnp.stack([r * gradient[0] - q * gradient[1], p * gradient[1] - q * gradient[0]])
    moved = params - change / jnp.where(determinant > 0, determinant, 1.0)
    better = jnp.sum(jnp.square(residuals(moved))) < jnp.sum(jnp.square(error))
    damping = jnp.clip(jnp.where(better, 0.3 * damping, 4.0 * damping), 1e-9, 1e9)
    return jnp.where(better, moved, params), damping

  start = params, jnp.full_like(params[0], 1e-3)
  return jax.lax.fori_loop(0, _NUM_STEPS, step, start)[0]


def beta_coverage(k: chex.Numeric, *, alpha: chex.Numeric, beta: chex.Numeric) -> jax.Array:
  """Coverage of k samples if the problems' success rates follow a beta distribution.

  Hard problems make coverage grow slowly: the share of unsolved problems falls like k^-alpha. With
  one rate for all problems it would fall exponentially.

  Args:
    k: numbers of samples, `[...]`, at least 1; the arguments are broadcast.
    alpha: first parameter of the distribution, > 0.
    beta: second parameter of the distribution, > 0.

  Returns:
    `1 - B(alpha, beta + k) / B(alpha, beta)`, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `k` < 1, `alpha` <= 0 or `beta` <= 0.

  Reference: Schaeffer et al., How Do Large Language Monkeys Get Their Power (Laws)?, ICML 2025,
  section 4, https://arxiv.org/abs/2502.17578.
  """
  check_range("k", k, "[1, inf)")
  check_range("alpha", alpha, "(0, inf)")
  check_range("beta", beta, "(0, inf)")
  k, alpha, beta = jnp.broadcast_arrays(*as_accumulator(k, alpha, beta))
  # The logarithm of the beta function keeps the digits that a difference of log-gammas loses.
  unsolved = jax.scipy.special.betaln(alpha, beta + k) - jax.scipy.special.betaln(alpha, beta)
  return -jnp.expm1(unsolved)
