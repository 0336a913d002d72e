"""Gaussian-process priors over whole data sets."""

import functools

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab.samplers.priors import PriorBatch
from jaxlab.uncertainty.kernels import kernel_matrix

# Relative to the outputscale: keeps the float32 Cholesky factor finite.
_JITTER = 1e-6


def gp_prior(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  num_points: int,
  num_features: int = 1,
  lengthscale: chex.Numeric = 0.6,
  outputscale: chex.Numeric = 1.0,
  noise: chex.Numeric = 1e-4,
  kernel: str = "rbf",
  equidistant: bool = False,
) -> PriorBatch:
  """Noisy functions from one Gaussian process, at points uniform on the unit cube.

  Args:
    key: random key.
    batch_size: number of data sets, b.
    num_points: points of each, T.
    num_features: features of each point, f.
    lengthscale: scalar, or `[f]` for one per feature.
    outputscale: prior variance of the function.
    noise: variance of the observation noise, at least 0. As many roundings of the outputscale as
      there are points, about 1e-5 of it for 100, are the least that is used.
    kernel: see `jaxlab.uncertainty.kernel_matrix`.
    equidistant: whether the points are `linspace(0, 1, T)` in every data set.

  Returns:
    `PriorBatch` with targets equal to `y`.

  Raises:
    ValueError: if a size is below 1, `lengthscale` or `outputscale` is not positive, `noise` is
      negative, `kernel` is unknown, or `equidistant` is set with several features.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5.1,
  https://arxiv.org/abs/2112.10510.
  """
  check_at_least(1, batch_size=batch_size, num_points=num_points, num_features=num_features)
  if equidistant and num_features != 1:
    raise ValueError(f"equidistant points have one feature, got num_features={num_features}.")
  check_range("lengthscale", lengthscale, "(0, inf)")
  check_range("outputscale", outputscale, "(0, inf)")
  check_range("noise", noise, "[0, inf)")
  x_key, y_key = jax.random.split(key)
  factor = functools.partial(
    _gp_cholesky, lengthscale=lengthscale, outputscale=outputscale, noise=noise, kernel=kernel
  )
  normals = jax.random.normal(y_key, (batch_size, num_points))
  if equidistant:
    points = jnp.linspace(0.0, 1.0, num_points)[:, None]
    x = jnp.broadcast_to(points, (batch_size, num_points, 1))
    y = normals @ factor(points).T  # one factor serves all data sets
  else:
    x = jax.random.uniform(x_key, (batch_size, num_points, num_features))
    y = jnp.einsum("bts,bs->bt", jax.vmap(factor)(x), normals)
  return PriorBatch(x, y, y)


def _gp_cholesky(x, *, lengthscale, outputscale, noise, kernel):
  """Factor of the noisy covariance at x `[T, f]`."""
  covariance = kernel_matrix(x, x, lengthscale=lengthscale, outputscale=outputscale, kernel=kernel)
  return _noisy_cholesky(covariance, noise + _JITTER * outputscale)


def _noisy_cholesky(covariance: jax.Array, noise: chex.Numeric) -> jax.Array:
  """Factor of covariance plus noise, with as much noise as the factor needs to be finite."""
  num_points = covariance.shape[0]
  # The eigenvalues of a smooth kernel fall below its roundings, whose sum grows with the points.
  rounding = jnp.finfo(covariance.dtype).eps * jnp.max(jnp.diagonal(covariance))
  noise = jnp.maximum(noise, num_points * rounding)
  return jnp.linalg.cholesky(covariance + noise * jnp.eye(num_points, dtype=covariance.dtype))


def gp_hyper_prior(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  num_points: int,
  num_features: int = 1,
  lengthscale_gamma: tuple[float, float] = (3.0, 6.0),
  outputscale_gamma: tuple[float, float] = (2.0, 0.15),
  noise_gamma: tuple[float, float] = (1.1, 0.05),
  min_noise: float = 1e-4,
  kernel: str | tuple[str, ...] = "matern52",
) -> PriorBatch:
  """Noisy functions from Gaussian processes whose hyper-parameters are drawn per data set.

  Args:
    key: random key.
    batch_size: number of data sets, b.
    num_points: points of each, T, uniform on the unit cube.
    num_features: features of each point, f; every feature has a lengthscale of its own.
    lengthscale_gamma: shape and rate of the lengthscales' gamma distribution.
    outputscale_gamma: shape and rate of the outputscale's.
    noise_gamma: shape and rate of the noise variance's.
    min_noise: smallest noise variance, at least 0; see `gp_prior`.
    kernel: name of the kernel (see `jaxlab.uncertainty.kernel_matrix`), or a tuple of names, of
      which each data set draws one.

  Returns:
    `PriorBatch` with targets equal to `y`.

  Raises:
    ValueError: if a size is below 1, a shape or rate is not positive, `min_noise` is negative, or
      `kernel` is empty or names an unknown kernel.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5.2,
  https://arxiv.org/abs/2112.10510.
  """
  check_at_least(1, batch_size=batch_size, num_points=num_points, num_features=num_features)
  kernels = (kernel,) if isinstance(kernel, str) else tuple(kernel)
  if not kernels:
    raise ValueError(f"kernel must name at least one kernel, got {kernel!r}.")
  check_range("lengthscale_gamma", lengthscale_gamma, "(0, inf)")
  check_range("outputscale_gamma", outputscale_gamma, "(0, inf)")
  check_range("noise_gamma", noise_gamma, "(0, inf)")
  check_range("min_noise", min_noise, "[0, inf)")
  x_key, y_key, hyper_key, kernel_key = jax.random.split(key, 4)
  x = jax.random.uniform(x_key, (batch_size, num_points, num_features))
  # One call for all gammas, since each compiles a rejection loop.
  concentrations, rates = jnp.array(
    [lengthscale_gamma] * num_features + [outputscale_gamma, noise_gamma]
  ).T
  gammas = jax.random.gamma(hyper_key, concentrations, (batch_size, num_features + 2)) / rates[None]
  lengthscales, outputscales = gammas[:, :-2], gammas[:, -2]
  noises = jnp.maximum(gammas[:, -1], min_noise)
  choices = jax.random.randint(kernel_key, (batch_size,), 0, len(kernels))

  def draw(x, normals, lengthscale, outputscale, noise, choice):
    matrices = [
      functools.partial(
        kernel_matrix, x, x, lengthscale=lengthscale, outputscale=outputscale, kernel=name
      )
      for name in kernels
    ]
    covariance = jax.lax.switch(choice, matrices)
    return _noisy_cholesky(covariance, noise + _JITTER * outputscale) @ normals

  normals = jax.random.normal(y_key, (batch_size, num_points))
  y = jax.vmap(draw)(x, normals, lengthscales, outputscales, noises, choices)
  return PriorBatch(x, y, y)


def standardized_gp_kernel(
  key: chex.PRNGKey,
  x: chex.Array,
  x2: chex.Array,
  *,
  num_used: chex.Numeric,
  kernel: str = "matern52",
) -> tuple[chex.Array, chex.Array]:
  """Covariance under one draw of the hyper-parameters of `standardized_gp_prior`.

  With many keys, the posterior of that prior follows by importance sampling.

  Args:
    key: random key, which alone fixes the hyper-parameters.
    x: `[n, f]`.
    x2: `[m, f]`.
    num_used: inputs that are not constant, at most f.
    kernel: see `jaxlab.uncertainty.kernel_matrix`.

  Returns:
    Covariances of the function, `[n, m]`, and the variance of the noise.

  Raises:
    ValueError: if the shapes do not agree, a concrete `num_used` lies outside [1, f] or `kernel` is
      unknown.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5.2,
  https://arxiv.org/abs/2112.10510; the distributions are ours.
  """
  x, x2 = jnp.asarray(x), jnp.asarray(x2)
  check_arrays(x=(x, "[n, f]"), x2=(x2, "[m, f]"), num_used=(num_used, "[]"))
  check_range("num_used", num_used, f"[1, {x.shape[1]}]")
  kind_key, scale_key, hyper_key = jax.random.split(key, 3)
  lengthscales = jax.random.gamma(scale_key, 3.0, (x.shape[1],)) / 1.5
  gammas = jax.random.gamma(hyper_key, 2.0, (3,)) / jnp.array([0.2, 2.0, 2.0])
  outputscale, slope, noise = gammas
  covariance = 12 * slope / num_used * (x - 0.5) @ (x2 - 0.5).T
  bends = jax.random.bernoulli(kind_key)
  smooth = kernel_matrix(x, x2, lengthscale=lengthscales, outputscale=outputscale, kernel=kernel)
  return covariance + jnp.where(bends, smooth, 0.0), noise + 1e-3


def standardized_gp_prior(
  key: chex.PRNGKey, *, num_points: int, num_features: int, kernel: str = "matern52"
) -> PriorBatch:
  """A linear or smooth function of some of its inputs, noisy, standardized as real targets are.

  One to f inputs are used, the others constant: a network learns data sets of few inputs first, and
  with them to read a context at all. A linear function, whose variance is of the same distribution
  as the noise's (gamma of mean 1), in every second data set on average plus a Gaussian process of
  `kernel`, its lengthscales gamma distributed of mean 2 and its outputscale of mean 10.

  Args:
    key: random key.
    num_points: points T, uniform on the unit cube.
    num_features: features f of each point.
    kernel: see `jaxlab.uncertainty.kernel_matrix`.

  Returns:
    `PriorBatch` of one data set, with targets equal to `y`, of mean 0 and standard deviation 1.

  Raises:
    ValueError: if a size is below 1 or `kernel` is unknown.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 5.2,
  https://arxiv.org/abs/2112.10510; the distributions are ours.
  """
  check_at_least(1, num_points=num_points, num_features=num_features)
  used_key, x_key, hyper_key, y_key = jax.random.split(key, 4)
  num_used = jax.random.randint(used_key, (), 1, num_features + 1)
  used = jnp.arange(num_features) < num_used
  x = jnp.where(used[None], jax.random.uniform(x_key, (num_points, num_features)), 0.5)
  covariance, noise = standardized_gp_kernel(hyper_key, x, x, num_used=num_used, kernel=kernel)
  y = _noisy_cholesky(covariance, noise) @ jax.random.normal(y_key, (num_points,))
  y = (y - y.mean()) / (y.std() + 1e-6)
  return PriorBatch(x[None], y[None], y[None])
