"""Tasks for regression in context: linear functions with a noise level each.

A sampler draws whole sequences. Its result has the fields `x`, `y` and `targets` of a `PriorBatch`,
so that `algorithms.prior_fitting` takes it as a prior.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)


class LinearTasks(NamedTuple):
  """Linear functions with a noise level each.

  Attributes:
    weights: `[b, f]`.
    noise_stds: standard deviations of the noise, `[b]`.
  """

  weights: chex.Array
  noise_stds: chex.Array


class RegressionSequences(NamedTuple):
  """Sequences of pairs, one function each; also a batch of `algorithms.prior_fitting`.

  Attributes:
    x: inputs, `[b, T, f]`.
    y: noisy values, `[b, T]`.
  """

  x: chex.Array
  y: chex.Array

  @property
  def targets(self) -> chex.Array:
    """The noisy values, which predictions are scored on."""
    return self.y


def sample_linear_tasks(
  key: chex.PRNGKey,
  *,
  batch_size: int,
  num_features: int,
  shape: chex.Numeric = 3.0,
  rate: chex.Numeric = 2.0,
  weight_precision: chex.Numeric = 1.0,
) -> LinearTasks:
  """Draws linear functions and noise levels from the conjugate prior.

  The noise variance is inverse-gamma, with mean `rate / (shape - 1)`, and given it the weights are
  normal with variance `noise variance / weight_precision`. The Bayes predictor is
  `uncertainty.nig_predictive`.

  Args:
    key: random key.
    batch_size: number of tasks, b.
    num_features: features, f.
    shape: of the inverse-gamma distribution, above 0.
    rate: of the inverse-gamma distribution, above 0.
    weight_precision: precision of the weights in units of that of the noise, above 0.

  Returns:
    `LinearTasks`.

  Raises:
    ValueError: if a size is below 1, or `shape`, `rate` or `weight_precision` is not positive.

  Reference: Liu et al., Towards Better Understanding of In-Context Learning Ability from In-Context
  Uncertainty Quantification, 2024, https://arxiv.org/abs/2405.15115; the prior is ours.
  """
  check_at_least(1, batch_size=batch_size, num_features=num_features)
  for name, value in (("shape", shape), ("rate", rate), ("weight_precision", weight_precision)):
    check_range(name, value, "(0, inf)")
  shape, rate, weight_precision = as_accumulator(shape, rate, weight_precision)
  noise_key, weight_key = jax.random.split(key)
  # By logarithms, since a gamma variable of a small shape underflows.
  log_gamma = jax.random.loggamma(noise_key, shape, (batch_size,))
  noise_stds = jnp.exp(0.5 * (jnp.log(rate) - log_gamma))
  normals = jax.random.normal(weight_key, (batch_size, num_features))
  return LinearTasks(normals * (noise_stds * jax.lax.rsqrt(weight_precision))[:, None], noise_stds)


def sample_from_pool(key: chex.PRNGKey, pool: LinearTasks, *, batch_size: int) -> LinearTasks:
  """Draws tasks from a finite pool, uniformly and with replacement.

  Args:
    key: random key.
    pool: the tasks, weights `[p, f]` and noise `[p]`.
    batch_size: number of tasks, b.

  Returns:
    `LinearTasks` of b tasks.

  Raises:
    ValueError: if `batch_size` is below 1 or the pool is empty.

  Reference: Liu et al., 2024, https://arxiv.org/abs/2405.15115.
  """
  check_at_least(1, batch_size=batch_size)
  check_arrays(**{"pool.weights": (pool.weights, "[p, f]"), "pool.noise_stds": (pool[1], "[p]")})
  check_filled(**{"pool.weights": pool.weights})
  chosen = jax.random.randint(key, (batch_size,), 0, jnp.shape(pool.weights)[0])
  return LinearTasks(*(jnp.asarray(field)[chosen] for field in pool))


def sample_linear_regression(
  key: chex.PRNGKey,
  tasks: LinearTasks,
  *,
  num_points: int,
  input_scale: chex.Numeric = 1.0,
) -> RegressionSequences:
  """Draws a sequence of noisy pairs of every task.

  Args:
    key: random key.
    tasks: the functions, weights `[b, f]` and noise `[b]`.
    num_points: pairs of a sequence, T.
    input_scale: standard deviation of the normal inputs, not negative; a scalar or `[b]`.

  Returns:
    `RegressionSequences`.

  Raises:
    ValueError: if `num_points` is below 1, or a known scale or noise level is negative.

  Reference: Liu et al., 2024, https://arxiv.org/abs/2405.15115.
  """
  check_at_least(1, num_points=num_points)
  check_arrays(
    **{"tasks.weights": (tasks.weights, "[b, f]"), "tasks.noise_stds": (tasks.noise_stds, "[b]")},
    input_scale=(input_scale, "[b]" if jnp.ndim(input_scale) else "[]"),
  )
  check_range("tasks.noise_stds", tasks.noise_stds, "[0, inf)")
  check_range("input_scale", input_scale, "[0, inf)")
  weights, noise_stds, scale = as_accumulator(*tasks, input_scale)
  x_key, noise_key = jax.random.split(key)
  batch_size, num_features = weights.shape
  x = jax.random.normal(x_key, (batch_size, num_points, num_features))
  x = x * jnp.broadcast_to(scale, (batch_size,))[:, None, None]
  noise = noise_stds[:, None] * jax.random.normal(noise_key, (batch_size, num_points))
  return RegressionSequences(x, jnp.einsum("btf,bf->bt", x, weights) + noise)
