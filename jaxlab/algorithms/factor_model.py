"""Unsupervised pretraining by a factor model: hidden factors from inputs, a head from few labels.

The inputs are x = B z + noise with z and the noise standard normal, and targets are linear in z::

    loadings = algorithms.factor_mle(unlabeled, rank=5)
    head = algorithms.factor_regression(inputs, targets, loadings, posterior_loss=False)
    predictions = algorithms.factor_posterior_mean(new_inputs, loadings) @ head
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled
from jaxlab.losses.latent import factor_posterior, factor_precision

_EXACT = jax.lax.Precision.HIGHEST


def factor_mle_gram(data: chex.Array, *, rank: int) -> jax.Array:
  """Maximum-likelihood estimate of B Bᵀ, the part of a factor model that inputs determine.

  Args:
    data: unlabeled inputs, `[m, d]`, m >= 1. The model's mean is 0, and none is subtracted.
    rank: number r of factors.

  Returns:
    `[d, d]`, float32 or wider, of rank r at most: the covariance without the noise along its r
    main axes. No gradient flows into the data.

  Raises:
    ValueError: if `rank` lies outside [1, d] or there are no rows.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566; Tipping and Bishop, Probabilistic Principal Component Analysis,
  1999, https://doi.org/10.1111/1467-9868.00196.
  """
  strengths, axes = _main_axes(data, rank)
  return jnp.matmul(axes * strengths[None], axes.T, precision=_EXACT)


def factor_mle(data: chex.Array, *, rank: int) -> jax.Array:
  """Maximum-likelihood loadings of a factor model with unit noise.

  Loadings are known up to a rotation of the factors, which a linear head absorbs.

  Args:
    data: unlabeled inputs, `[m, d]`, m >= 1. The model's mean is 0, and none is subtracted.
    rank: number r of factors.

  Returns:
    `[d, r]`, float32 or wider: orthogonal columns from the strongest factor to the weakest; the
    largest entry of each in absolute value (the first on ties) is positive. A factor that is no
    stronger than the noise is 0. No gradient flows into the data.

  Raises:
    ValueError: if `rank` lies outside [1, d] or there are no rows.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566; Tipping and Bishop, Probabilistic Principal Component Analysis,
  1999, https://doi.org/10.1111/1467-9868.00196.
  """
  strengths, axes = _main_axes(data, rank)
  largest = jnp.argmax(jnp.abs(axes), axis=0)
  signs = jnp.where(jnp.take_along_axis(axes, largest[None], axis=0) < 0, -1.0, 1.0)
  return axes * signs * jnp.sqrt(strengths)[None]


def _main_axes(data: chex.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """Variances beyond the noise, `[r]`, decreasing, and their axes, `[d, r]`."""
  check_filled(data=data)
  check_arrays(data=(data, "[m, d]"))
  check_at_least(1, rank=rank)
  if rank > data.shape[1]:
    raise ValueError(f"rank must be at most the number of inputs, got {rank} > {data.shape[1]}.")
  # Equal eigenvalues, such as those of fewer rows than inputs, have no gradient.
  data = jax.lax.stop_gradient(as_accumulator(data))
  values, vectors = jnp.linalg.eigh(jnp.matmul(data.T, data, precision=_EXACT) / data.shape[0])
  return jnp.maximum(values[::-1][:rank] - 1, 0.0), vectors[:, ::-1][:, :rank]


def factor_posterior_mean(data: chex.Array, loadings: chex.Array) -> jax.Array:
  """Expected hidden factors of inputs: the features that a head is fitted on.

  Args:
    data: inputs, `[n, d]`.
    loadings: B, `[d, r]`.

  Returns:
    `(I + Bᵀ B)⁻¹ Bᵀ x`, float32 or wider `[n, r]`.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_arrays(data=(data, "[n, d]"), loadings=(loadings, "[d, r]"))
  return factor_posterior(*as_accumulator(data, loadings)).mean


def factor_posterior_covariance(loadings: chex.Array) -> jax.Array:
  """Covariance of the hidden factors given an input, the same for all inputs.

  Args:
    loadings: B, `[d, r]`.

  Returns:
    `(I + Bᵀ B)⁻¹`, float32 or wider `[r, r]`.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_arrays(loadings=(loadings, "[d, r]"))
  return _covariance(factor_precision(as_accumulator(loadings)))


def _covariance(cholesky: jax.Array) -> jax.Array:
  return cho_solve((cholesky, True), jnp.eye(cholesky.shape[0], dtype=cholesky.dtype))


def factor_regression(
  data: chex.Array, targets: chex.Array, loadings: chex.Array, *, posterior_loss: bool = True
) -> jax.Array:
  """Fits a linear head on the hidden factors of labeled inputs.

  Args:
    data: labeled inputs, `[n, d]`, n >= 1.
    targets: `[n]`.
    loadings: B, `[d, r]`.
    posterior_loss: whether the squared error is that of factors drawn from their posterior, which
      shrinks the head; else it is that of their means, the right one if predictions are evaluated
      by their squared error. Static.

  Returns:
    Coefficients of `factor_posterior_mean`, without intercept, float32 or wider `[r]`. With means
    and n < r it is the shortest solution.

  Raises:
    ValueError: if there are no rows or the shapes do not fit.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_filled(data=data)
  check_arrays(data=(data, "[n, d]"), targets=(targets, "[n]"), loadings=(loadings, "[d, r]"))
  data, targets, loadings = as_accumulator(data, targets, loadings)
  factors, cholesky = factor_posterior(data, loadings)
  if not posterior_loss:
    return jnp.matmul(jnp.linalg.pinv(factors), targets, precision=_EXACT)
  gram = jnp.matmul(factors.T, factors, precision=_EXACT) + data.shape[0] * _covariance(cholesky)
  products = jnp.matmul(targets, factors, precision=_EXACT)
  return cho_solve((jnp.linalg.cholesky(gram), True), products)
