"""Unsupervised pretraining by a mixture of Gaussians of equal weight and unit variance.

The head is any classifier of the responsibilities::

    mixture = algorithms.fit_isotropic_mixture(key, unlabeled, num_components=8)
    features = algorithms.responsibilities(inputs, mixture.centers)
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled
from jaxlab._programs import varying_carry
from jaxlab.losses.latent import isotropic_mixture_nll, squared_distances

_EXACT = jax.lax.Precision.HIGHEST
# A component with less weight than this has no examples.
_MIN_WEIGHT = 1e-12


class IsotropicMixture(NamedTuple):
  """A fitted mixture.

  Attributes:
    centers: means of the components, `[k, d]`.
    log_likelihood: mean log-likelihood per example in nats, scalar.
  """

  centers: chex.Array
  log_likelihood: chex.Array


def responsibilities(data: chex.Array, centers: chex.Array) -> jax.Array:
  """Posterior probabilities of the components that rows were drawn from.

  Args:
    data: rows, `[n, d]`.
    centers: means of the components, `[k, d]`, at least one.

  Returns:
    `softmax_k(-|x - center_k|² / 2)`, float32 or wider `[n, k]`.

  Raises:
    ValueError: if there are no centers.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_filled(centers=centers)
  check_arrays(data=(data, "[n, d]"), centers=(centers, "[k, d]"))
  return jax.nn.softmax(-squared_distances(*as_accumulator(data, centers)) / 2, axis=1)


def em_update(data: chex.Array, centers: chex.Array) -> jax.Array:
  """One step of expectation maximization, which never lowers the likelihood.

  Args:
    data: rows, `[m, d]`.
    centers: means of the components, `[k, d]`, at least one.

  Returns:
    Means of the rows weighted by the responsibilities, float32 or wider `[k, d]`. A component whose
    weights sum to less than 1e-12 keeps its center.

  Raises:
    ValueError: if there are no centers.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  weights = responsibilities(data, centers)
  data, centers = as_accumulator(data, centers)
  totals = jnp.sum(weights, axis=0)[:, None]
  is_empty = totals < _MIN_WEIGHT
  means = jnp.matmul(weights.T, data, precision=_EXACT) / jnp.where(is_empty, 1.0, totals)
  return jnp.where(is_empty, centers, means)


def fit_isotropic_mixture(
  key: chex.PRNGKey,
  data: chex.Array,
  *,
  num_components: int,
  num_restarts: int = 10,
  num_steps: int = 100,
) -> IsotropicMixture:
  """Fits centers by expectation maximization from several starts, in one program.

  A start takes rows as centers, each drawn with a probability proportional to the squared distance
  from those that were taken before (k-means++).

  Args:
    key: random key of the starts.
    data: rows, `[m, d]`, m >= 1.
    num_components: number k of components.
    num_restarts: number of starts.
    num_steps: updates from each start.

  Returns:
    `IsotropicMixture` of the start that ends at the best likelihood, the first on ties.

  Raises:
    ValueError: if `num_components`, `num_restarts` or `num_steps` is below 1, or there are no rows.

  Reference: Arthur and Vassilvitskii, k-means++, SODA 2007; Ge et al., On the Provable Advantage of
  Unsupervised Pretraining, ICLR 2024, https://arxiv.org/abs/2303.01566.
  """
  check_at_least(1, num_components=num_components, num_restarts=num_restarts, num_steps=num_steps)
  check_filled(data=data)
  check_arrays(data=(data, "[m, d]"))
  return _fit(key, as_accumulator(data), num_components, num_restarts, num_steps)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(key, data, num_components, num_restarts, num_steps) -> IsotropicMixture:
  def step(centers, _):
    return em_update(data, centers), None

  def from_start(key):
    centers = _spread_rows(key, data, num_components)
    centers, _ = jax.lax.scan(step, centers, length=num_steps)
    return IsotropicMixture(centers, -jnp.mean(isotropic_mixture_nll(data, centers)))

  fits = jax.vmap(from_start)(jax.random.split(key, num_restarts))
  best = jnp.argmax(fits.log_likelihood)
  return jax.tree.map(lambda leaf: leaf[best], fits)


def _spread_rows(key: chex.PRNGKey, data: jax.Array, num_components: int) -> jax.Array:
  """Rows that are likely to lie far from each other, `[k, d]`."""
  first_key, *keys = jax.random.split(key, num_components)
  first = data[jax.random.randint(first_key, (), 0, data.shape[0])]
  if not keys:
    return first[None]

  def add(nearest, key):
    row = data[jax.random.categorical(key, jnp.log(nearest))]
    distances = jnp.sum(jnp.square(data - row[None]), axis=1)
    return jnp.minimum(nearest, distances), row

  keys = jnp.stack(keys)
  nearest = jnp.sum(jnp.square(data - first[None]), axis=1)
  _, rows = jax.lax.scan(add, varying_carry(add, nearest, keys), keys)
  return jnp.concatenate([first[None], rows])
