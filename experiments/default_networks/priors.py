"""What the default networks are fitted to: tables of a few inputs, and their targets or classes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from jaxlab import samplers
from jaxlab.samplers import PriorBatch

NUM_FEATURES = {"regressor": 10, "classifier": 16}
NUM_CLASSES = 10
GROUP = 4  # Data sets of a random network.


def regression_prior(key, num_used: chex.Numeric | None = None, *, num_points: int) -> PriorBatch:
  """One data set of the regressor's prior, of `num_used` inputs, or of a random number."""
  num_features = NUM_FEATURES["regressor"]
  used_key, input_key, hyper_key, y_key = jax.random.split(key, 4)
  if num_used is None:
    num_used = jax.random.randint(used_key, (), 1, num_features + 1)
  draw = functools.partial(_standard_input, num_points=num_points)
  # A loop, whose results are kept: fused into the kernel they would be drawn for every pair.
  x = jax.lax.map(draw, jax.random.split(input_key, num_features)).T
  x = jnp.where(jnp.arange(num_features) < num_used, x, 0.0)
  points = on_unit_cube(x)
  covariance, noise = samplers.standardized_gp_kernel(hyper_key, points, points, num_used=num_used)
  factor = jnp.linalg.cholesky(covariance + noise * jnp.eye(num_points))
  y = factor @ jax.random.normal(y_key, (num_points,))
  y = (y - y.mean()) / y.std()
  return PriorBatch(x[None], y[None], y[None])


def _standard_input(key, *, num_points: int) -> jax.Array:
  """An input that is normal, uniform, or takes two values, `[num_points]`."""
  kind_key, value_key, cut_key = jax.random.split(key, 3)
  normals = jax.random.normal(value_key, (num_points,))
  uniform = np.sqrt(12) * (stats.norm.cdf(normals) - 0.5)
  cut = 0.7 * jax.random.normal(cut_key)
  share = stats.norm.sf(cut)
  two_valued = ((normals > cut) - share) / jnp.sqrt(share * (1 - share))
  kind = jax.random.randint(kind_key, (), 0, 3)
  return jnp.select([kind == 0, kind == 1], [normals, uniform], two_valued)


def on_unit_cube(x):
  """Standardized inputs with the mean and the variance that uniform ones on [0, 1] have."""
  return 0.5 + x / np.sqrt(12)


def class_prior(key, num_classes: chex.Numeric | None = None, *, num_points: int) -> PriorBatch:
  """Data sets of one random network whose outputs are cut into classes, of unequal sizes."""
  draw_key, count_key, size_key, order_key = jax.random.split(key, 4)
  sizes = dict(batch_size=GROUP, group_size=GROUP, num_features=NUM_FEATURES["classifier"])
  batch = samplers.bnn_prior(draw_key, num_points=num_points, binary=False, **sizes)
  if num_classes is None:
    num_classes = jax.random.randint(count_key, (), 2, NUM_CLASSES + 1)
  used = jnp.arange(NUM_CLASSES) < num_classes
  shares = jax.nn.softmax(jax.random.normal(size_key, (GROUP, NUM_CLASSES)) / 2, where=used)
  ends = jnp.where(used, jnp.cumsum(shares, axis=1), jnp.inf)  # Where a class ends.
  ranks = jnp.argsort(jnp.argsort(batch.y, axis=1), axis=1)
  level = (ranks + 0.5) / num_points
  index = jnp.minimum((level[..., None] > ends[:, None]).sum(-1), num_classes - 1)
  # Classes in random order, those in use first.
  order = jax.random.uniform(order_key, (GROUP, NUM_CLASSES))
  order = jnp.argsort(jnp.where(used, order, jnp.inf), axis=1)
  labels = jnp.take_along_axis(order, index, axis=1).astype(jnp.float32)
  return PriorBatch(batch.x, labels, labels)
