"""Gaussian-process regression with unknown hyper-parameters, by blackjax and by scikit-learn."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxlab import training, uncertainty

_NUM_CHAINS = 4


class DataSet(NamedTuple):
  """Context and queries, `[n, 1]`, `[n]`, `[m, 1]`, `[m]`."""

  x: np.ndarray
  y: np.ndarray
  x_query: np.ndarray
  y_query: np.ndarray


def padded(values: np.ndarray, length: int) -> np.ndarray:
  """Pads rows with zeros up to a length."""
  return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1))


def nuts(
  gammas: Sequence[tuple[float, float]], *, num_steps: int, max_points: int
) -> Callable[[DataSet], np.ndarray]:
  """NUTS over the logs of the hyper-parameters, chains spread over the cores.

  Args:
    gammas: shape and rate of the gamma priors of lengthscale, outputscale and noise.
    num_steps: steps of the warm-up of every chain, and kept steps after it.
    max_points: all data sets of up to this many points share a compiled program.

  Returns:
    `data set -> log density of its queries` under the mixture of all kept steps.
  """
  import blackjax

  concentrations, rates = jnp.array(gammas).T

  def hyperparameters(position):
    lengthscale, outputscale, noise = jnp.exp(position)
    return dict(
      lengthscale=lengthscale,
      outputscale=outputscale,
      noise=jnp.maximum(noise, 1e-4),
      kernel="matern52",
    )

  def chain(key, x, y, mask):
    def log_density(position):
      values = jnp.exp(position)
      log_prior = jax.scipy.stats.gamma.logpdf(values, concentrations, scale=1 / rates)
      evidence = uncertainty.gp_log_marginal_likelihood(
        x, y, mask=mask, **hyperparameters(position)
      )
      return (log_prior + position).sum() + evidence

    start_key, warm_up_key, key = jax.random.split(key, 3)
    start = jnp.log(jax.random.gamma(start_key, concentrations) / rates)
    warm_up = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = warm_up.run(warm_up_key, start, num_steps=num_steps)
    kernel = blackjax.nuts(log_density, **parameters)

    def step(state, key):
      state, _ = kernel.step(key, state)
      return state, state.position

    return jax.lax.scan(step, state, jax.random.split(key, num_steps))[1]

  mesh = training.make_mesh({"data": math.gcd(_NUM_CHAINS, jax.device_count())})
  chains = training.data_parallel(
    jax.vmap(chain, (0, None, None, None)),
    mesh,
    replicated_argnums=(1, 2, 3),
    sharded_outputs=True,
  )

  @jax.jit
  def mixture(samples, x, y, mask, x_query, y_query):
    def log_prob(position):
      mean, variance = uncertainty.gp_posterior(
        x, y, x_query, mask=mask, **hyperparameters(position)
      )
      return jax.scipy.stats.norm.logpdf(y_query, mean, jnp.sqrt(variance))

    log_probs = jax.vmap(log_prob)(samples)
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(samples))

  seeds = itertools.count()

  def method(data):
    keys = jax.random.split(jax.random.key(next(seeds)), _NUM_CHAINS)
    x, y = padded(data.x, max_points), padded(data.y, max_points)
    mask = np.arange(max_points) < len(data.y)
    samples = chains(keys, x, y, mask)
    samples = np.asarray(samples).reshape(-1, samples.shape[-1])
    return np.asarray(mixture(samples, x, y, mask, data.x_query, data.y_query))

  return method


def maximum_likelihood(data: DataSet) -> np.ndarray:
  """Log density of the queries under scikit-learn's GP, fitted with five restarts."""
  from sklearn import gaussian_process
  from sklearn.gaussian_process import kernels

  kernel = kernels.ConstantKernel() * kernels.Matern(0.5, nu=2.5) + kernels.WhiteKernel(
    0.01, (1e-4, 10.0)
  )
  model = gaussian_process.GaussianProcessRegressor(kernel, n_restarts_optimizer=5, random_state=0)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Warnings that an optimum lies on a bound.
    mean, std = model.fit(data.x, data.y).predict(data.x_query, return_std=True)
  return stats.norm.logpdf(data.y_query, mean, std)
