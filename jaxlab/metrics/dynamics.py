"""Distance that weights have moved, fits of its growth, and alignment of weights with features."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range
from jaxlab.metrics.regression import least_squares_line


class LogDiffusion(NamedTuple):
  """A fit of distance = slope · log(step) + intercept.

  Attributes:
    slope: distance per unit of the natural logarithm of the step.
    intercept: distance at step 1.
    r_squared: share of the variance of the distances that the fit explains.
  """

  slope: chex.Array
  intercept: chex.Array
  r_squared: chex.Array


class PowerDiffusion(NamedTuple):
  """A fit of log(distance) = exponent · log(step) + log_scale.

  Attributes:
    exponent: power of the step.
    log_scale: natural logarithm of the distance at step 1.
    r_squared: share of the variance of the log-distances that the fit explains.
  """

  exponent: chex.Array
  log_scale: chex.Array
  r_squared: chex.Array


def parameter_distance(params: chex.ArrayTree, initial: chex.ArrayTree) -> jax.Array:
  """Euclidean distance of two parameter vectors, over all leaves.

  Batch size and learning rate change how fast it grows during training.

  Args:
    params: parameters.
    initial: parameters to measure from, a tree of the same structure and shapes.

  Returns:
    The distance, `[]`; its gradient is 0 where both are equal.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 3.2,
  https://arxiv.org/abs/1705.08741.
  """
  leaves, structure = jax.tree.flatten_with_path(params)
  if jax.tree.structure(initial) != structure:
    raise ValueError(
      f"initial must have the structure of params, {structure}, got {jax.tree.structure(initial)}."
    )
  for (path, leaf), other in zip(leaves, jax.tree.leaves(initial)):
    place = jax.tree_util.keystr(path)
    check_arrays(**{f"params{place}": (leaf, "[...]"), f"initial{place}": (other, "[...]")})

  def squares(a, b):
    a, b = as_accumulator(a, b)
    return jnp.sum(jnp.square(a - b))

  total = sum(jax.tree.leaves(jax.tree.map(squares, params, initial)), start=jnp.float32(0.0))
  differ = total != 0
  return jnp.where(differ, jnp.sqrt(jnp.where(differ, total, 1.0)), 0.0)


def fit_log_diffusion(steps: chex.Array, distances: chex.Array) -> LogDiffusion:
  """Fits the law of ultra-slow diffusion, distance against the natural logarithm of the step.

  A random walk moves this way in a landscape whose height differences grow in proportion to
  distance. Runs with the same slope explore at the same rate.

  Args:
    steps: numbers of updates, `[m]`, positive. If all are equal the slope is 0.
    distances: distances from the start, `[m]`.

  Returns:
    A `LogDiffusion` of scalars; `r_squared` is 1 if all distances are equal.

  Raises:
    ValueError: if there are fewer than two points or a known step is not positive.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 3.2,
  https://arxiv.org/abs/1705.08741.
  """
  return LogDiffusion(*least_squares_line(_log_steps(steps, distances), as_accumulator(distances)))


def fit_power_diffusion(steps: chex.Array, distances: chex.Array) -> PowerDiffusion:
  """Fits a power law, the logarithm of the distance against that of the step.

  The alternative to logarithmic growth; ordinary diffusion has exponent 1/2.

  Args:
    steps: numbers of updates, `[m]`, positive. If all are equal the exponent is 0.
    distances: distances from the start, `[m]`, positive.

  Returns:
    A `PowerDiffusion` of scalars; `r_squared` is 1 if all distances are equal.

  Raises:
    ValueError: if there are fewer than two points or a known step or distance is not positive.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 3.2,
  https://arxiv.org/abs/1705.08741.
  """
  log_steps = _log_steps(steps, distances)
  check_range("distances", distances, "(0, inf)")
  return PowerDiffusion(*least_squares_line(log_steps, jnp.log(as_accumulator(distances))))


def _log_steps(steps: chex.Array, distances: chex.Array) -> jax.Array:
  check_arrays(steps=(steps, "[m]"), distances=(distances, "[m]"))
  if len(steps) < 2:
    raise ValueError(f"steps must hold at least two points, got {len(steps)}.")
  check_range("steps", steps, "(0, inf)")
  return jnp.log(as_accumulator(steps))


def feature_alignment(weights: chex.Array, features: chex.Array) -> jax.Array:
  """How strongly each class's filters respond to each feature, summed over filters.

  In a network with square activation this is the class score of the feature alone, so it shows
  which features have been learned.

  Args:
    weights: filters w, `[k, m, d]`.
    features: feature vectors f, `[f, d]`.

  Returns:
    `sum_r <w[c, r], f>^2`, `[k, f]`, in float32 or wider.

  Reference: Zou et al., The Benefits of Mixup for Feature Learning, ICML 2023,
  https://arxiv.org/abs/2303.08433.
  """
  check_arrays(weights=(weights, "[k, m, d]"), features=(features, "[f, d]"))
  weights, features = as_accumulator(weights, features)
  return jnp.square(jnp.einsum("kmd,fd->kmf", weights, features, precision="highest")).sum(1)
