"""Exact Gaussian-process regression: the posterior that prior-fitted networks approximate."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)
from jaxlab._minimize import minimize
from jaxlab.uncertainty.kernels import kernel_matrix

_MIN_FITTED_NOISE = 1e-4
# Errors of a factorization in units of the floats' resolution, for one point.
_ROUNDING = 8.0


class GPPosterior(NamedTuple):
  """Predictive distribution of the noisy targets at some queries.

  Attributes:
    mean: predictive mean, `[m]`.
    variance: predictive variance, noise included, `[m]`.
  """

  mean: chex.Array
  variance: chex.Array


class GPHyperparameters(NamedTuple):
  """Hyper-parameters of a stationary kernel and a Gaussian likelihood.

  Attributes:
    lengthscale: length scale in units of the inputs.
    outputscale: prior variance of the function.
    noise: variance of the observation noise.
  """

  lengthscale: chex.Array
  outputscale: chex.Array
  noise: chex.Array


def gp_posterior(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  *,
  lengthscale: chex.Numeric = 1.0,
  outputscale: chex.Numeric = 1.0,
  noise: chex.Numeric = 1e-4,
  kernel: str = "rbf",
  mask: chex.Array | None = None,
) -> GPPosterior:
  """Exact posterior predictive of noisy targets under a Gaussian-process prior.

  Args:
    x: inputs, `[n, f]`; n may be 0, which gives the prior.
    y: noisy targets, `[n]`.
    x_query: where to predict, `[m, f]`.
    lengthscale: scalar or `[f]`.
    outputscale: prior variance of the function.
    noise: variance of the observation noise, not negative. No jitter is added to it, but targets
      are not trusted beyond the rounding of the covariance, about 1e-6 sqrt(n) of `outputscale`.
    kernel: see `kernel_matrix`.
    mask: bool `[n]`, which points count; all if None.

  Returns:
    `GPPosterior`.

  Raises:
    ValueError: if `kernel` is unknown, a known scale is not positive or a known noise is negative.

  Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations
  2.25 and 2.26, https://gaussianprocess.org/gpml.
  """
  check_arrays(x=(x, "[n, f]"), x_query=(x_query, "[m, f]"))
  hyperparameters = GPHyperparameters(lengthscale, outputscale, noise)
  conditioned = _condition(x, y, hyperparameters, kernel, mask)
  return _predict(conditioned, x_query, hyperparameters, kernel)


def gp_log_marginal_likelihood(
  x: chex.Array,
  y: chex.Array,
  *,
  lengthscale: chex.Numeric = 1.0,
  outputscale: chex.Numeric = 1.0,
  noise: chex.Numeric = 1e-4,
  kernel: str = "rbf",
  mask: chex.Array | None = None,
) -> chex.Array:
  """Log-density of all targets together under a Gaussian-process prior.

  Args:
    x: inputs, `[n, f]`; without points the result is 0.
    y: noisy targets, `[n]`.
    lengthscale: scalar or `[f]`.
    outputscale: prior variance of the function.
    noise: variance of the observation noise, not negative. No jitter is added to it, but targets
      are not trusted beyond the rounding of the covariance, about 1e-6 sqrt(n) of `outputscale`.
    kernel: see `kernel_matrix`.
    mask: bool `[n]`, which points count; all if None.

  Returns:
    Log marginal likelihood in nats, scalar.

  Raises:
    ValueError: if `kernel` is unknown, a known scale is not positive or a known noise is negative.

  Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation
  2.30, https://gaussianprocess.org/gpml.
  """
  hyperparameters = GPHyperparameters(lengthscale, outputscale, noise)
  return _log_evidence(_condition(x, y, hyperparameters, kernel, mask))


class _Conditioned(NamedTuple):
  x: chex.Array
  mask: chex.Array
  cholesky: chex.Array
  whitened: chex.Array


def _condition(x, y, hyperparameters, kernel, mask):
  """Factorizes the noisy covariance; a masked-out point has a row of the identity and y = 0."""
  check_arrays(x=(x, "[n, f]"), y=(y, "[n]"), mask=(mask, "[n]"))
  x, y = as_accumulator(x), as_accumulator(y)
  mask = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask, bool)
  x, y = jnp.where(mask[:, None], x, 0.0), jnp.where(mask, y, 0.0)
  lengthscale, outputscale, noise = hyperparameters
  check_arrays(noise=(noise, "[]"))
  check_range("noise", noise, "[0, inf)")
  covariance = kernel_matrix(x, x, lengthscale=lengthscale, outputscale=outputscale, kernel=kernel)
  covariance = jnp.where(mask[:, None] & mask[None], covariance, 0.0)
  # Below the rounding of the covariance, the noise would not keep the matrix positive definite.
  rounding = _ROUNDING * math.sqrt(y.size) * jnp.finfo(covariance.dtype).eps
  noise = jnp.maximum(as_accumulator(noise), rounding * as_accumulator(outputscale))
  covariance += jnp.diag(jnp.where(mask, noise, 1.0))
  cholesky = jnp.linalg.cholesky(covariance)
  return _Conditioned(x, mask, cholesky, solve_triangular(cholesky, y, lower=True))


def _predict(conditioned, x_query, hyperparameters, kernel):
  """Predictive of the noisy targets at the queries."""
  lengthscale, outputscale, noise = hyperparameters
  cross = kernel_matrix(
    conditioned.x, x_query, lengthscale=lengthscale, outputscale=outputscale, kernel=kernel
  )
  cross = jnp.where(conditioned.mask[:, None], cross, 0.0)
  cross = solve_triangular(conditioned.cholesky, cross, lower=True)
  # Rounding must not push the predictive variance below the noise.
  explained = jnp.minimum(jnp.sum(jnp.square(cross), axis=0), outputscale)
  return GPPosterior(conditioned.whitened @ cross, outputscale - explained + noise)


def _log_evidence(conditioned):
  """Log marginal likelihood of the points that count."""
  log_diagonal = jnp.log(jnp.diagonal(conditioned.cholesky))
  quadratic = jnp.sum(jnp.square(conditioned.whitened))
  num_points = jnp.sum(conditioned.mask)
  return -quadratic / 2 - jnp.sum(log_diagonal) - num_points * (math.log(2 * math.pi) / 2)


def gp_mixture_log_prob(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  y_query: chex.Array,
  lengthscales: chex.Array,
  outputscales: chex.Array,
  noises: chex.Array,
  log_weights: chex.Array,
  *,
  kernel: str = "matern52",
  mask: chex.Array | None = None,
) -> chex.Array:
  """Log predictive density when the hyper-parameters have a prior on a grid.

  The predictions of the grid points are weighted by prior weight times marginal likelihood, which
  gives the exact posterior predictive of a discrete hyper-prior.

  Args:
    x: inputs, `[n, f]`.
    y: noisy targets, `[n]`.
    x_query: where to predict, `[m, f]`.
    y_query: targets to score, `[m]`.
    lengthscales: `[G]`, or `[G, f]` for one per feature.
    outputscales: `[G]`.
    noises: variances of the observation noise, `[G]`.
    log_weights: log prior weights of the grid points up to a constant, `[G]`.
    kernel: see `kernel_matrix`.
    mask: bool `[n]`, which points count; all if None.

  Returns:
    Log-density of each query's target in nats, `[m]`.

  Raises:
    ValueError: if `kernel` is unknown, a known scale is not positive, a known noise is negative, or
      the grid is empty.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5,
  https://arxiv.org/abs/2112.10510.
  """
  check_filled(log_weights=log_weights)
  check_arrays(
    x=(x, "[n, f]"),
    x_query=(x_query, "[m, f]"),
    y_query=(y_query, "[m]"),
    lengthscales=(lengthscales, "[G, f]" if np.ndim(lengthscales) > 1 else "[G]"),
    outputscales=(outputscales, "[G]"),
    noises=(noises, "[G]"),
    log_weights=(log_weights, "[G]"),
  )
  check_range("lengthscales", lengthscales, "(0, inf)")
  check_range("outputscales", outputscales, "(0, inf)")
  check_range("noises", noises, "[0, inf)")
  grid = GPHyperparameters(*map(as_accumulator, (lengthscales, outputscales, noises)))

  def component(hyperparameters):
    conditioned = _condition(x, y, hyperparameters, kernel, mask)
    mean, variance = _predict(conditioned, x_query, hyperparameters, kernel)
    log_density = norm.logpdf(as_accumulator(y_query), mean, jnp.sqrt(variance))
    return _log_evidence(conditioned), log_density

  log_evidence, log_density = jax.vmap(component)(grid)
  log_posterior = jax.nn.log_softmax(as_accumulator(log_weights) + log_evidence)
  return jax.nn.logsumexp(log_posterior[:, None] + log_density, axis=0)


def fit_gp(
  x: chex.Array,
  y: chex.Array,
  *,
  kernel: str = "rbf",
  num_steps: int = 100,
  log_prior_fn: Callable[[GPHyperparameters], chex.Array] | None = None,
  mask: chex.Array | None = None,
  start: GPHyperparameters | None = None,
) -> GPHyperparameters:
  """Fits scalar hyper-parameters by their marginal likelihood (MLE-II), or with a prior (MAP-II).

  BFGS on the three logarithms. The noise is not fitted below 1e-4. The search ends early once steps
  are as small as rounding errors, and returns the best finite point of its path. It is local:
  `vmap` over `start` for restarts.

  Args:
    x: inputs, `[n, f]`.
    y: noisy targets, `[n]`.
    kernel: see `kernel_matrix`.
    num_steps: most evaluations of the likelihood after the first, static.
    log_prior_fn: maps `GPHyperparameters` to a scalar that is added to the log marginal
      likelihood; pure, static under `jit`. The mode of a density over the logarithms needs its
      Jacobian: add the sum of the logarithms to the log-density of the hyper-parameters.
    mask: bool `[n]`, which points count; all if None.
    start: where the search begins; None is lengthscale 0.5, outputscale 1 and noise 0.01.

  Returns:
    `GPHyperparameters` of scalars.

  Raises:
    ValueError: if `kernel` is unknown, `num_steps` is negative or a known number of `start` is not
      positive.

  Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section
  5.4.1, https://gaussianprocess.org/gpml.
  """
  check_at_least(0, num_steps=num_steps)
  check_arrays(x=(x, "[n, f]"), y=(y, "[n]"), mask=(mask, "[n]"))
  start = GPHyperparameters(0.5, 1.0, 0.01) if start is None else GPHyperparameters(*start)
  for name, value in start._asdict().items():
    check_range(f"start.{name}", value, "(0, inf)")
  x, y = as_accumulator(x), as_accumulator(y)
  mask = None if mask is None else jnp.asarray(mask, bool)
  start = jnp.array(start, x.dtype)
  return _fit(x, y, mask, start, kernel=kernel, num_steps=num_steps, log_prior_fn=log_prior_fn)


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps", "log_prior_fn"))
def _fit(x, y, mask, start, *, kernel, num_steps, log_prior_fn):
  def hyperparameters(log_params):
    lengthscale, outputscale, noise = jnp.exp(log_params)
    return GPHyperparameters(lengthscale, outputscale, jnp.maximum(noise, _MIN_FITTED_NOISE))

  def objective(log_params):
    proposal = hyperparameters(log_params)
    value = -_log_evidence(_condition(x, y, proposal, kernel, mask))
    return value if log_prior_fn is None else value - log_prior_fn(proposal)

  found = minimize(lambda rows: objective(rows[0])[None], jnp.log(start)[None], num_steps=num_steps)
  return hyperparameters(found[0])
