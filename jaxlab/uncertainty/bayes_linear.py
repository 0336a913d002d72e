"""Bayesian linear regression: what the best reader of a sequence of pairs would predict next.

Functions have weights `w` and no intercept, `y = w·x + noise`. Predictions are those of the noisy
value. A row that does not count (`mask`) may hold anything.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

from jaxlab._checks import as_accumulator, check_arrays, check_range
from jaxlab._programs import compiled_once

# Errors of a Gram matrix in units of the floats' resolution, for one feature.
_ROUNDING = 4.0
# Accelerators multiply float32 in fewer digits if not told.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class GaussianPredictive(NamedTuple):
  """Mean and variance of a predictive distribution, noise included.

  Attributes:
    mean: `[m]`.
    variance: `[m]`.
  """

  mean: chex.Array
  variance: chex.Array


def gaussian_predictive(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  *,
  weight_std: chex.Numeric = 1.0,
  noise_std: chex.Numeric = 1.0,
  mask: chex.Array | None = None,
) -> GaussianPredictive:
  """Bayes predictor for normal weights and noise of a known level.

  Args:
    x: inputs seen, `[n, f]`; n may be 0, which gives the prior.
    y: noisy values, `[n]`.
    x_query: where to predict, `[m, f]`.
    weight_std: prior standard deviation of each weight, above 0.
    noise_std: standard deviation of the noise, above 0.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    `GaussianPredictive` in float32 or wider.

  Raises:
    ValueError: if a known standard deviation is not positive.

  Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation 2.9,
  https://gaussianprocess.org/gpml.
  """
  check_range("weight_std", weight_std, "(0, inf)")
  check_range("noise_std", noise_std, "(0, inf)")
  x, y, x_query, mask = _pairs(x, y, x_query, mask)
  weight_std, noise_std = as_accumulator(weight_std, noise_std)
  return _known_noise(x, y, x_query, mask, weight_std, noise_std)[0]


def noise_grid_predictive(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  noise_stds: chex.Array,
  prior_probs: chex.Array,
  *,
  weight_std: chex.Numeric = 1.0,
  mask: chex.Array | None = None,
) -> GaussianPredictive:
  """Bayes predictor for normal weights and a noise level that is one of several.

  Every level predicts as in `gaussian_predictive`, and is weighted by its prior probability times
  the density that it gives to all pairs seen.

  Args:
    x: inputs seen, `[n, f]`.
    y: noisy values, `[n]`.
    x_query: where to predict, `[m, f]`.
    noise_stds: levels, above 0, `[g]`.
    prior_probs: their probabilities, `[g]`, rescaled to sum to 1.
    weight_std: prior standard deviation of each weight, above 0.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    `GaussianPredictive` with mean and variance of the mixture; NaN if all probabilities are 0.

  Raises:
    ValueError: if a known standard deviation is not positive or a known probability negative.

  Reference: Liu et al., Towards Better Understanding of In-Context Learning Ability from In-Context
  Uncertainty Quantification, 2024, https://arxiv.org/abs/2405.15115.
  """
  check_range("weight_std", weight_std, "(0, inf)")
  check_range("noise_stds", noise_stds, "(0, inf)")
  check_range("prior_probs", prior_probs, "[0, inf)")
  check_arrays(noise_stds=(noise_stds, "[g]"), prior_probs=(prior_probs, "[g]"))
  x, y, x_query, mask = _pairs(x, y, x_query, mask)
  weight_std, noise_stds, prior_probs = as_accumulator(weight_std, noise_stds, prior_probs)
  level = functools.partial(_known_noise, x, y, x_query, mask, weight_std)
  predictive, log_evidence = jax.vmap(level)(noise_stds)
  impossible = prior_probs == 0
  log_prior = jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1.0, prior_probs)))
  return _mixture(jax.nn.softmax(log_prior + log_evidence), *predictive)


def nig_predictive(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  *,
  shape: chex.Numeric = 2.0,
  rate: chex.Numeric = 1.0,
  weight_precision: chex.Numeric = 1.0,
  mask: chex.Array | None = None,
) -> GaussianPredictive:
  """Bayes predictor for an unknown noise level: the normal-inverse-gamma prior.

  The noise variance is inverse-gamma, and given it the weights are normal with variance
  `noise variance / weight_precision`, as `samplers.sample_linear_tasks` draws them. The predictive
  distribution is Student's t; here are its mean and variance, `nig_log_predictive` is its density.

  Args:
    x: inputs seen, `[n, f]`.
    y: noisy values, `[n]`.
    x_query: where to predict, `[m, f]`.
    shape: of the inverse-gamma distribution, above 0.
    rate: of the inverse-gamma distribution, above 0.
    weight_precision: precision of the weights in units of that of the noise, above 0.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    `GaussianPredictive`; the variance is infinite unless `shape + n / 2 > 1`.

  Raises:
    ValueError: if a known `shape`, `rate` or `weight_precision` is not positive.

  Reference: Gelman et al., Bayesian Data Analysis, third edition, 2013, section 14.2,
  https://sites.stat.columbia.edu/gelman/book.
  """
  mean, spread, posterior_shape = _student(x, y, x_query, mask, shape, rate, weight_precision)
  finite = posterior_shape > 1
  divisor = jnp.where(finite, posterior_shape - 1, 1.0)
  return GaussianPredictive(mean, jnp.where(finite, spread / divisor, jnp.inf))


def nig_log_predictive(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  y_query: chex.Array,
  *,
  shape: chex.Numeric = 2.0,
  rate: chex.Numeric = 1.0,
  weight_precision: chex.Numeric = 1.0,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Log-density of noisy values under the predictive distribution of `nig_predictive`.

  No predictor has a higher mean on data of this prior. Sums over a sequence, each value given those
  before, are the evidence for the prior.

  Args:
    x: inputs seen, `[n, f]`.
    y: noisy values, `[n]`.
    x_query: inputs of the values, `[m, f]`.
    y_query: the values, `[m]`, each on its own.
    shape: of the inverse-gamma distribution, above 0.
    rate: of the inverse-gamma distribution, above 0.
    weight_precision: precision of the weights in units of that of the noise, above 0.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    Log-density of Student's t in nats, `[m]`, in float32 or wider.

  Raises:
    ValueError: if a known `shape`, `rate` or `weight_precision` is not positive.

  Reference: Gelman et al., 2013, section 14.2, https://sites.stat.columbia.edu/gelman/book.
  """
  check_arrays(x_query=(x_query, "[m, *]"), y_query=(y_query, "[m]"))
  mean, spread, half = _student(x, y, x_query, mask, shape, rate, weight_precision)
  scaled = jnp.square(as_accumulator(y_query) - mean) / (2 * spread)
  constant = gammaln(half + 0.5) - gammaln(half) - 0.5 * math.log(2 * math.pi)
  return constant - 0.5 * jnp.log(spread) - (half + 0.5) * jnp.log1p(scaled)


def task_pool_predictive(
  x: chex.Array,
  y: chex.Array,
  x_query: chex.Array,
  weights: chex.Array,
  noise_stds: chex.Array,
  *,
  mask: chex.Array | None = None,
) -> GaussianPredictive:
  """Bayes predictor where the function is one of a finite pool, equally likely at first.

  Args:
    x: inputs seen, `[n, f]`.
    y: noisy values, `[n]`.
    x_query: where to predict, `[m, f]`.
    weights: weights of the functions, `[p, f]`.
    noise_stds: their noise levels, above 0, `[p]`.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    `GaussianPredictive` with mean and variance of the mixture.

  Raises:
    ValueError: if a known noise level is not positive.

  Reference: Raventós et al., Pretraining Task Diversity and the Emergence of Non-Bayesian
  In-Context Learning for Regression, NeurIPS 2023, https://arxiv.org/abs/2306.15063; Liu et al.,
  2024, https://arxiv.org/abs/2405.15115.
  """
  check_range("noise_stds", noise_stds, "(0, inf)")
  check_arrays(x=(x, "[n, f]"), weights=(weights, "[p, f]"), noise_stds=(noise_stds, "[p]"))
  x, y, x_query, mask = _pairs(x, y, x_query, mask)
  weights, noise_stds = as_accumulator(weights, noise_stds)
  log_probs = norm.logpdf(y[:, None], _product(x, weights.T), noise_stds[None])
  total = jnp.sum(jnp.where(mask[:, None], log_probs, 0.0), axis=0)
  means = _product(weights, x_query.T)
  variances = jnp.broadcast_to(jnp.square(noise_stds)[:, None], means.shape)
  return _mixture(jax.nn.softmax(total), means, variances)


def least_squares_predictive(
  x: chex.Array, y: chex.Array, x_query: chex.Array, *, mask: chex.Array | None = None
) -> GaussianPredictive:
  """Least squares without a prior, with the variance of its residuals: what Bayes is compared with.

  Args:
    x: inputs seen, `[n, f]`.
    y: noisy values, `[n]`.
    x_query: where to predict, `[m, f]`.
    mask: which pairs count, bool `[n]`; None for all.

  Returns:
    `GaussianPredictive`. With n <= f pairs the mean is that of the smallest weights that fit, and
    the variance is NaN; else it is the sum of squared residuals over n - f, the same everywhere.

  Raises:
    ValueError: if shapes do not agree.

  Reference: Garg et al., What Can Transformers Learn In-Context?, NeurIPS 2022, section 4,
  https://arxiv.org/abs/2208.01066.
  """
  x, y, x_query, mask = _pairs(x, y, x_query, mask)
  weights = _product(jnp.linalg.pinv(x), y) if x.size else jnp.zeros(x.shape[1], x.dtype)
  freedom = jnp.sum(mask) - x.shape[1]
  variance = jnp.sum(jnp.square(y - _product(x, weights))) / jnp.maximum(freedom, 1)
  mean = _product(x_query, weights)
  return GaussianPredictive(mean, jnp.full_like(mean, jnp.where(freedom > 0, variance, jnp.nan)))


def prefix_predictives(
  predict_fn: Callable[..., Any], x: chex.Array, y: chex.Array
) -> GaussianPredictive:
  """Predicts every pair of a sequence from those before it.

  Args:
    predict_fn: `predict_fn(x[T, f], y[T], x_query[1, f], mask=bool[T])` returns a
      `GaussianPredictive` of one query: a function of this module with its settings bound. Pass the
      same object again, and it is not compiled again.
    x: inputs, `[b, T, f]`.
    y: noisy values, `[b, T]`.

  Returns:
    `GaussianPredictive` of `[b, T]`: entry i knows the first i pairs.

  Raises:
    ValueError: if shapes do not agree.

  Reference: Liu et al., 2024, https://arxiv.org/abs/2405.15115.
  """
  check_arrays(x=(x, "[b, T, f]"), y=(y, "[b, T]"))
  return _predict_prefixes(predict_fn, *as_accumulator(x, y))


@compiled_once
def _predict_prefixes(predict_fn, x, y):
  places = jnp.arange(x.shape[1])

  def of_prefix(x, y, i):
    predictive = predict_fn(x, y, x[i][None], mask=places < i)
    return jax.tree.map(lambda values: values[0], predictive)

  return jax.vmap(lambda x, y: jax.vmap(of_prefix, (None, None, 0))(x, y, places))(x, y)


def _pairs(x, y, x_query, mask):
  """Checks and casts; pairs that do not count become zeros."""
  check_arrays(x=(x, "[n, f]"), y=(y, "[n]"), x_query=(x_query, "[m, f]"), mask=(mask, "[n]"))
  x, y, x_query = as_accumulator(x, y, x_query)
  mask = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask, bool)
  return jnp.where(mask[:, None], x, 0.0), jnp.where(mask, y, 0.0), x_query, mask


class _Ridge(NamedTuple):
  """Ridge regression; `y·y - w·Λw` is written as residuals plus penalty, which is not negative."""

  mean: jax.Array  # w·x of the queries.
  leverage: jax.Array  # x·Λ⁻¹x of the queries.
  loss: jax.Array  # Squared residuals and penalty.
  log_det: jax.Array  # Of Λ = XᵀX + penalty.


def _ridge(x, y, x_query, penalty) -> _Ridge:
  gram = _product(x.T, x)
  rounding = _ROUNDING * jnp.finfo(x.dtype).eps * jax.lax.stop_gradient(jnp.trace(gram))
  # A smaller penalty could not be told from 0, and the factor of a singular matrix is NaN.
  diagonal = jnp.eye(x.shape[1], dtype=x.dtype) * jnp.maximum(penalty, rounding)
  factor = jnp.linalg.cholesky(gram + diagonal, symmetrize_input=False)
  half = solve_triangular(factor, _product(x.T, y), lower=True)
  weights = solve_triangular(factor, half, lower=True, trans=1)
  whitened = solve_triangular(factor, x_query.T, lower=True)
  residuals = jnp.sum(jnp.square(y - _product(x, weights)))
  return _Ridge(
    _product(x_query, weights),
    jnp.sum(jnp.square(whitened), axis=0),
    residuals + penalty * jnp.sum(jnp.square(weights)),
    2 * jnp.sum(jnp.log(jnp.diagonal(factor))),
  )


def _known_noise(x, y, x_query, mask, weight_std, noise_std):
  """The predictive distribution, and the log-density of the pairs seen."""
  variance = jnp.square(noise_std)
  penalty = jnp.square(noise_std / weight_std)
  ridge = _ridge(x, y, x_query, penalty)
  num_pairs, num_features = jnp.sum(mask), x.shape[1]
  log_evidence = -0.5 * (
    num_pairs * (math.log(2 * math.pi) + 2 * jnp.log(noise_std))
    + ridge.log_det
    - num_features * jnp.log(penalty)
    + ridge.loss / variance
  )
  return GaussianPredictive(ridge.mean, variance * (1 + ridge.leverage)), log_evidence


def _student(x, y, x_query, mask, shape, rate, weight_precision):
  """Location, `rate * (1 + leverage)` and half of the degrees of freedom of Student's t."""
  for name, value in (("shape", shape), ("rate", rate), ("weight_precision", weight_precision)):
    check_range(name, value, "(0, inf)")
  x, y, x_query, mask = _pairs(x, y, x_query, mask)
  shape, rate, weight_precision = as_accumulator(shape, rate, weight_precision)
  ridge = _ridge(x, y, x_query, weight_precision)
  spread = (rate + 0.5 * ridge.loss) * (1 + ridge.leverage)
  return ridge.mean, spread, shape + 0.5 * jnp.sum(mask)


def _mixture(weights, means, variances) -> GaussianPredictive:
  """Moments of a mixture, weights `[g]`, means and variances `[g, m]`."""
  mean = jnp.einsum("g,gm->m", weights, means)
  spread = variances + jnp.square(means - mean[None])
  return GaussianPredictive(mean, jnp.einsum("g,gm->m", weights, spread))
