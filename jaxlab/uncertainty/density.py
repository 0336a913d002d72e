"""Log-densities of data sets, as a sign of how far an input is from what a model has seen."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range
from jaxlab.losses.latent import squared_distances

_EXACT = jax.lax.Precision.HIGHEST
_HALF_LOG_2_PI = math.log(2 * math.pi) / 2


def kde_log_density(
  x: chex.Array,
  data: chex.Array,
  *,
  bandwidth: chex.Numeric,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Log of a kernel density estimate: the mean of Gaussians around the points of a data set.

  Args:
    x: where to evaluate, `[n, d]`.
    data: `[m, d]`.
    bandwidth: standard deviation of each Gaussian, > 0, in units of the inputs.
    mask: which rows of the data count, bool `[m]`, for a buffer that is not full; None for all.

  Returns:
    Nats, float32 or wider `[n]`; -inf without data.

  Raises:
    ValueError: if `bandwidth` <= 0 or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_range("bandwidth", bandwidth, "(0, inf)")
  x, data, mask = _points(x, data, mask)
  return _kde(x, data, mask, as_accumulator(bandwidth))


def gaussian_log_density(
  x: chex.Array,
  data: chex.Array,
  *,
  ridge: chex.Numeric = 1e-6,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Log-density of the Gaussian with the mean and covariance of a data set.

  Args:
    x: where to evaluate, `[n, d]`.
    data: `[m, d]`; no gradient flows into it.
    ridge: added to the diagonal of the covariance (whose divisor is the number of rows), > 0.
    mask: which rows of the data count, bool `[m]`; None for all.

  Returns:
    Nats, float32 or wider `[n]`; -inf without data. One row gives the covariance `ridge` times I.

  Raises:
    ValueError: if `ridge` <= 0 or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_range("ridge", ridge, "(0, inf)")
  x, data, mask = _points(x, data, mask)
  return _gaussian(x, data, mask, as_accumulator(ridge))


def smooth_kde_log_density(
  x: chex.Array,
  data: chex.Array,
  *,
  bandwidth: chex.Numeric = 0.1,
  alpha: chex.Numeric = 0.3,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Log of a kernel density estimate mixed with the Gaussian of all data.

  Far from the data the estimate alone falls so steeply that nothing can be learned from it.

  Args:
    x: where to evaluate, `[n, d]`.
    data: `[m, d]`; no gradient flows into it.
    bandwidth: standard deviation of the kernel, > 0, in units of the inputs.
    alpha: share of the kernel density estimate, in (0, 1).
    mask: which rows of the data count, bool `[m]`; None for all.

  Returns:
    Nats, float32 or wider `[n]`; -inf without data.

  Raises:
    ValueError: if `bandwidth` <= 0, `alpha` lies outside (0, 1) or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_range("bandwidth", bandwidth, "(0, inf)")
  check_range("alpha", alpha, "(0, 1)")
  x, data, mask = _points(x, jax.lax.stop_gradient(data), mask)
  alpha = as_accumulator(alpha)
  near = _kde(x, data, mask, as_accumulator(bandwidth)) + jnp.log(alpha)
  wide = _gaussian(x, data, mask, as_accumulator(1e-6)) + jnp.log1p(-alpha)
  empty = ~jnp.any(mask)
  both = jnp.logaddexp(jnp.where(empty, 0.0, near), jnp.where(empty, 0.0, wide))
  return jnp.where(empty, near, both)


def _points(x, data, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
  check_arrays(x=(x, "[n, d]"), data=(data, "[m, d]"), mask=(mask, "bool [m]"))
  x, data = as_accumulator(x, data)
  mask = jnp.ones(data.shape[0], bool) if mask is None else jnp.asarray(mask)
  return x, jnp.where(mask[:, None], data, 0.0), mask


@jax.jit
def _kde(x, data, mask, bandwidth) -> jax.Array:
  if data.shape[0] == 0:
    return jnp.where(jnp.isnan(x).any(axis=1), jnp.nan, -jnp.inf)
  num = jnp.sum(mask)
  logs = -squared_distances(x / bandwidth, data / bandwidth) / 2
  # Without data the sum of no terms would have no gradient.
  logs = jnp.where(mask[None] | (num == 0), logs, -jnp.inf)
  dim = x.shape[1]
  log_volume = jnp.log(jnp.maximum(num, 1)) + dim * (jnp.log(bandwidth) + _HALF_LOG_2_PI)
  return _or_nothing(jax.nn.logsumexp(logs, axis=1) - log_volume, num)


@jax.jit
def _gaussian(x, data, mask, ridge) -> jax.Array:
  data = jax.lax.stop_gradient(data)
  num, dim = jnp.sum(mask), x.shape[1]
  divisor = jnp.maximum(num, 1)
  mean = jnp.sum(data, axis=0) / divisor
  centered = jnp.where(mask[:, None], data - mean[None], 0.0)
  covariance = jnp.matmul(centered.T, centered, precision=_EXACT) / divisor
  # Rounding can make an eigenvalue of a few rows more negative than the ridge is positive.
  values, vectors = jnp.linalg.eigh(covariance)
  values = jnp.maximum(values, 0.0) + ridge
  projected = jnp.matmul(x - mean[None], vectors, precision=_EXACT)
  squares = jnp.sum(jnp.square(projected) / values[None], axis=1)
  log_density = -(squares + jnp.sum(jnp.log(values))) / 2 - dim * _HALF_LOG_2_PI
  return _or_nothing(log_density, num)


def _or_nothing(log_density: jax.Array, num: jax.Array) -> jax.Array:
  return jnp.where((num == 0) & ~jnp.isnan(log_density), -jnp.inf, log_density)
