"""Outliers by the density around a point, relative to that around its neighbors."""

import functools

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab._programs import map_over_rows


def local_outlier_factor(
  features: chex.Array, *, num_neighbors: int = 20, mask: chex.Array | None = None
) -> jax.Array:
  """How much sparser the points lie around a point than around its neighbors.

  It is about 1 inside a cluster of any density, and larger outside. It does not change if all
  features are moved, turned or scaled.

  Args:
    features: points, `[n, d]`.
    num_neighbors: nearest other points that are looked at, by Euclidean distance (the first ones on
      ties); at most as many as there are.
    mask: which points count, bool `[n]`; the others are nobody's neighbors. None counts all.

  Returns:
    `[n]`, float32 or wider; 1 for masked points and for a point without others. A point that is not
    finite gives NaN, and is nobody's neighbor.

  Raises:
    ValueError: if `num_neighbors` < 1 or the shapes do not fit.

  Reference: Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000,
  https://doi.org/10.1145/342009.335388.
  """
  check_at_least(1, num_neighbors=num_neighbors)
  check_arrays(features=(features, "[n, d]"), mask=(mask, "bool [n]"))
  features = as_accumulator(features)
  counts = jnp.ones(features.shape[0], bool) if mask is None else jnp.asarray(mask)
  groups = jnp.where(counts, 0, 1)
  return _outlier_factors(features, groups, num_groups=1, num_neighbors=num_neighbors)


def class_inlier_weights(
  features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  num_neighbors: int = 20,
  threshold: chex.Numeric = 1.5,
) -> jax.Array:
  """Leaves out the points that are outliers among those with their label.

  Wrongly labeled points often lie far from the points that are rightly labeled.

  Args:
    features: `[n, d]`, of an encoder that did not see the labels.
    labels: given classes, int `[n]`.
    num_classes: number of classes.
    num_neighbors: nearest points of the class that are looked at; at most as many as there are.
    threshold: largest `local_outlier_factor` inside its class that a point may have, above 0.

  Returns:
    1 for points that are kept and 0 for others, `[n]`, float32 or wider. A class of one or two
    points keeps them. NaN for points that are not finite and traced labels outside the classes.

  Raises:
    ValueError: if `num_classes` < 2, `num_neighbors` < 1, `threshold` <= 0, a known label lies
      outside the classes or the shapes do not fit.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_at_least(2, num_classes=num_classes)
  check_at_least(1, num_neighbors=num_neighbors)
  check_range("threshold", threshold, "(0, inf)")
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"))
  groups = as_classes("labels", labels, num_classes)
  return _inlier_weights(
    as_accumulator(features), groups, threshold, num_classes=num_classes, k=num_neighbors
  )


@functools.partial(jax.jit, static_argnames=("num_classes", "k"))
def _inlier_weights(features, groups, threshold, *, num_classes: int, k: int) -> jax.Array:
  factors = _outlier_factors(features, groups, num_groups=num_classes, num_neighbors=k)
  finite = jnp.all(jnp.isfinite(features), axis=1)
  sizes = jax.ops.segment_sum(finite.astype(jnp.int32), groups, num_classes)
  kept = (factors <= threshold) | (sizes[groups] < 3)
  known = finite & (groups < num_classes)
  return jnp.where(known, kept.astype(features.dtype), jnp.nan)


@functools.partial(jax.jit, static_argnames=("num_groups", "num_neighbors"))
def _outlier_factors(
  features: jax.Array, groups: jax.Array, *, num_groups: int, num_neighbors: int
) -> jax.Array:
  """Local outlier factors inside each group, in one pass; others than `num_groups` have none."""
  num, dim = features.shape
  finite = jnp.all(jnp.isfinite(features), axis=1)
  inside = groups < num_groups
  width = min(num_neighbors, num - 1)
  if width < 1:
    return jnp.where(inside & ~finite, jnp.nan, jnp.ones(num, features.dtype))
  groups = jnp.where(finite & inside, groups, num_groups)
  points = jnp.where(finite[:, None], features, 0.0)
  sizes = jax.ops.segment_sum(jnp.ones(num, jnp.int32), groups, num_groups)
  # Distances stay, and squares of centered points lose fewer digits.
  centers = jax.ops.segment_sum(points, groups, num_groups) / jnp.maximum(sizes, 1)[:, None]
  points = points - centers[groups]
  squares = jnp.sum(points * points, axis=1)
  places = jnp.arange(num)

  def nearest(ours, our_squares, our_groups, our_places):
    products = jnp.matmul(ours, points.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.maximum(our_squares[:, None] + squares[None] - 2 * products, 0.0)
    others = (our_groups[:, None] == groups[None]) & (our_places[:, None] != places[None])
    neighbors = jax.lax.top_k(-jnp.where(others, distances, jnp.inf), width)[1]
    # The expanded square finds neighbors; close to zero it is no distance.
    gaps = ours[:, None] - points[neighbors]
    return neighbors, _root(jnp.sum(gaps * gaps, axis=2))

  neighbors, distances = map_over_rows(
    nearest, points, squares, groups, places, width=max(num, width * dim)
  )
  counts = jnp.where(finite & inside, jnp.clip(sizes[groups] - 1, 0, width), 0)
  used = jnp.arange(width)[None] < counts[:, None]

  def mean(values):
    return jnp.sum(jnp.where(used, values, 0.0), axis=1) / jnp.maximum(counts, 1)

  farthest = jnp.max(jnp.where(used, distances, 0.0), axis=1)
  densities = 1 / (mean(jnp.maximum(distances, farthest[neighbors])) + 1e-10)
  factors = jnp.where(counts > 0, mean(densities[neighbors]) / densities, 1.0)
  return jnp.where(inside & ~finite, jnp.nan, factors)


def _root(squares: jax.Array) -> jax.Array:
  """Square roots, with gradient 0 at 0."""
  return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
