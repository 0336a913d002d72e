"""Likelihoods of latent-variable models: hidden factors, and a mixture of equal Gaussians."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from jaxlab._checks import as_accumulator, check_arrays, check_filled
from jaxlab._programs import map_over_rows

_EXACT = jax.lax.Precision.HIGHEST


class FactorPosterior(NamedTuple):
  """Posterior of the hidden factors of some rows.

  Attributes:
    mean: of each row, `[n, r]`.
    cholesky: lower factor of the precision, which all rows share, `[r, r]`.
  """

  mean: chex.Array
  cholesky: chex.Array


def factor_posterior(data: jax.Array, loadings: jax.Array) -> FactorPosterior:
  """Posterior of z in x = B z + noise, where z and the noise are standard normal.

  Args:
    data: rows x, floats `[n, d]`.
    loadings: B, floats `[d, r]`.

  Returns:
    `FactorPosterior`.
  """
  cholesky = factor_precision(loadings)
  projected = jnp.matmul(data, loadings, precision=_EXACT)
  return FactorPosterior(cho_solve((cholesky, True), projected.T).T, cholesky)


def factor_precision(loadings: jax.Array) -> jax.Array:
  """Lower Cholesky factor of I + Bᵀ B, the precision of z given x.

  Args:
    loadings: B, floats `[d, r]`.

  Returns:
    `[r, r]`.
  """
  gram = jnp.matmul(loadings.T, loadings, precision=_EXACT)
  return jnp.linalg.cholesky(jnp.eye(gram.shape[0], dtype=gram.dtype) + gram)


def factor_model_nll(data: chex.Array, loadings: chex.Array) -> jax.Array:
  """Negative log-likelihood of rows that are driven by a few hidden factors.

  The model is x = B z + noise with z and the noise standard normal and no mean: x has mean 0 and
  covariance B Bᵀ + I. Rotating the factors changes nothing.

  Args:
    data: rows x, `[n, d]`.
    loadings: B, `[d, r]`.

  Returns:
    Nats per row, float32 or wider `[n]`.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566; Tipping and Bishop, Probabilistic Principal Component Analysis,
  1999, https://doi.org/10.1111/1467-9868.00196.
  """
  check_arrays(data=(data, "[n, d]"), loadings=(loadings, "[d, r]"))
  data, loadings = as_accumulator(data, loadings)
  mean, cholesky = factor_posterior(data, loadings)
  # As a sum of squares, in which nothing cancels, where x and B are large.
  residual = data - jnp.matmul(mean, loadings.T, precision=_EXACT)
  quadratic = jnp.sum(jnp.square(residual), axis=1) + jnp.sum(jnp.square(mean), axis=1)
  log_volume = jnp.sum(jnp.log(jnp.diagonal(cholesky)))
  return quadratic / 2 + log_volume + data.shape[1] / 2 * math.log(2 * math.pi)


def isotropic_mixture_nll(data: chex.Array, centers: chex.Array) -> jax.Array:
  """Negative log-likelihood under a mixture of Gaussians of equal weight and unit variance.

  Args:
    data: rows, `[n, d]`.
    centers: means of the components, `[k, d]`, at least one.

  Returns:
    Nats per row, float32 or wider `[n]`.

  Raises:
    ValueError: if there are no centers.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_filled(centers=centers)
  check_arrays(data=(data, "[n, d]"), centers=(centers, "[k, d]"))
  data, centers = as_accumulator(data, centers)
  num_components, dim = centers.shape
  log_sum = jax.nn.logsumexp(-squared_distances(data, centers) / 2, axis=1)
  return math.log(num_components) + dim / 2 * math.log(2 * math.pi) - log_sum


@jax.jit
def squared_distances(rows: jax.Array, points: jax.Array) -> jax.Array:
  """Squared distances of rows to points, from differences: expanded squares would cancel.

  Args:
    rows: floats `[n, d]`.
    points: floats `[k, d]`.

  Returns:
    `[n, k]`.
  """

  def of_block(block):
    return jnp.sum(jnp.square(block[:, None] - points[None]), axis=2)

  return map_over_rows(of_block, rows, width=points.size)
