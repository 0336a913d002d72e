"""Selection of features: the relevant ones, and among these the ones that are not redundant."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_filled,
)
from jaxlab._programs import varying_carry
from jaxlab.metrics.regression import unit_columns
from jaxlab.metrics.selection import anova_f

_LEVELS = {"l1": (0, 4), "l2": (4, 8), "l1l2": (0, 8)}  # First column, and that after the last.


class MRMRSelection(NamedTuple):
  """Features of large relevance and small redundancy, in ascending order, each `[num_features]`.

  Attributes:
    indices: their columns, i32; -1 in what is left over if there are too few.
    scores: relevance over redundancy at the time of the choice, 0 for none.
    relevance: F statistic, 0 for none.
  """

  indices: chex.Array
  scores: chex.Array
  relevance: chex.Array


class KernelSelection(NamedTuple):
  """Kernels, and which of their features are used.

  Attributes:
    kernels: distinct triples in lexicographic order, i32 `[m, 3]`.
    feature_mask: bool `[m, 8]`; every row has an entry.
  """

  kernels: np.ndarray
  feature_mask: np.ndarray


def anova_select(
  features: chex.Array, labels: chex.Array, *, num_features: int, num_classes: int
) -> jax.Array:
  """Selects the features with the largest F statistic.

  Args:
    features: `[n, F]`; they are rounded to seven decimals, so that what differs by rounding alone
      is constant.
    labels: classes, int `[n]`.
    num_features: how many are selected.
    num_classes: number of classes.

  Returns:
    Their columns in ascending order, i32 `[num_features]`. Constant features, and those that are
    not finite, are never selected; if there are too few others, the rest is -1. Of equal
    statistics, the first columns are selected.

  Raises:
    ValueError: if there are no features, `num_features` < 1, `num_classes` < 2, shapes do not
      agree, or a known label is no class.
    TypeError: if labels are no integers.

  Reference: Leontiou et al., LightWaveS, DCOSS 2022, https://arxiv.org/abs/2204.01379.
  """
  check_at_least(1, num_features=num_features)
  scores = _relevance(_rounded(features), labels, num_classes)
  num_selected = min(num_features, scores.shape[0])
  scores, indices = jax.lax.top_k(scores, num_selected)
  indices = jnp.sort(jnp.where(scores >= 0, indices, _LAST))
  indices = jnp.where(indices == _LAST, -1, indices)
  return jnp.pad(indices, (0, num_features - num_selected), constant_values=-1)


def mrmr_select(
  features: chex.Array, labels: chex.Array, *, num_features: int, num_classes: int
) -> MRMRSelection:
  """Selects features one by one: the most relevant, relative to its likeness to those before.

  The first is that with the largest F statistic. Each further one has the largest quotient of its F
  statistic and its mean absolute correlation with the features that are selected already.

  Args:
    features: `[n, F]`.
    labels: classes, int `[n]`.
    num_features: how many are selected.
    num_classes: number of classes.

  Returns:
    An `MRMRSelection`. Constant features, and those that are not finite, are never selected. Of
    equal scores, the first column is selected.

  Raises:
    ValueError: as `anova_select`.
    TypeError: if labels are no integers.

  Reference: Zhao et al., Maximum Relevance and Minimum Redundancy Feature Selection Methods, 2019,
  https://arxiv.org/abs/1908.05376; Leontiou et al., LightWaveS, DCOSS 2022,
  https://arxiv.org/abs/2204.01379.
  """
  check_at_least(1, num_features=num_features)
  relevance = _relevance(features, labels, num_classes)
  return _mrmr(as_accumulator(features), relevance, num_features)


@functools.partial(jax.jit, static_argnums=2)
def _mrmr(features, relevance, num_features):
  candidates = relevance >= 0
  rows = unit_columns(jnp.where(candidates[None], features, 0.0))[0].T

  def choose(carry, step):
    redundancy, left = carry
    score = relevance / jnp.maximum(redundancy / jnp.maximum(step, 1), 1e-12)
    score = jnp.where(left, jnp.where(step == 0, relevance, score), -1.0)
    best = jnp.argmax(score)
    found = score[best] >= 0
    likeness = jnp.matmul(rows, rows[best], precision=jax.lax.Precision.HIGHEST)
    redundancy += jnp.where(found, jnp.minimum(jnp.abs(likeness), 1.0), 0.0)
    chosen = jnp.where(found, best, _LAST).astype(jnp.int32)
    values = jnp.where(found, jnp.stack([score[best], relevance[best]]), 0.0)
    return (redundancy, left & (jnp.arange(left.size) != best)), (chosen, values)

  steps = jnp.arange(num_features)
  start = varying_carry(choose, (jnp.zeros_like(relevance), candidates), steps)
  _, (indices, values) = jax.lax.scan(choose, start, steps)
  order = jnp.argsort(indices)
  indices, values = indices[order], values[order]
  return MRMRSelection(jnp.where(indices == _LAST, -1, indices), values[:, 0], values[:, 1])


_LAST = np.int32(2**31 - 1)  # Sorts behind all columns.


def _relevance(features: chex.Array, labels: chex.Array, num_classes: int) -> jax.Array:
  """F statistics, -1 for features that are constant or not finite."""
  statistics = anova_f(features, labels, num_classes=num_classes)
  features = as_accumulator(features)
  varies = jnp.max(features, axis=0) != jnp.min(features, axis=0)
  return jnp.where(varies & jnp.isfinite(statistics), statistics, -1.0)


def _rounded(features: chex.Array) -> jax.Array:
  check_arrays(features=(features, "[n, F]"))
  features = as_accumulator(features)
  # From 1 on, the spacing of float32 is above 1e-7, and multiplication could overflow.
  return jnp.where(jnp.abs(features) < 1, jnp.round(features, 7), features)


def select_kernel_features(
  transform_fn: Callable[[np.ndarray], chex.Array],
  kernels: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  num_features: int = 500,
  pool_size: int = 1500,
  block_size: int = 4032,
  features: str = "l1l2",
) -> KernelSelection:
  """Selects features of many kernels, whose features need not fit into memory together.

  Block by block, the features with the largest F statistics (`anova_select`) enter a pool, of which
  `mrmr_select` takes the final ones. Blocks could be scored on different machines: the pool does
  not depend on them.

  Args:
    transform_fn: `(kernels [block_size, 3]) -> features [n, block_size, 8]` of the n training
      series, such as `models.scatter_features`. All calls have one size: the last block is filled
      up by its last kernel.
    kernels: triples, int `[N, 3]`.
    labels: classes of the training series, int `[n]`.
    num_classes: number of classes.
    num_features: how many features are selected, fewer if fewer vary.
    pool_size: size of the pool.
    block_size: kernels of a block; n times 8 times as many numbers are in memory.
    features: which levels are selected from, "l1", "l2" or "l1l2".

  Returns:
    A `KernelSelection`, on the host.

  Raises:
    ValueError: if `features` is unknown, a size is below 1, `num_classes` < 2, there are no
      kernels, shapes do not agree, or a label is no class.

  Reference: as `anova_select`.
  """
  check_choice("features", features, _LEVELS)
  check_at_least(1, num_features=num_features, pool_size=pool_size, block_size=block_size)
  check_arrays(kernels=(kernels, "int [N, 3]"), labels=(labels, "int [n]"))
  check_filled(kernels=kernels)
  check_at_least(2, num_classes=num_classes)
  labels = as_classes("labels", labels, num_classes)
  kernels = np.asarray(kernels, np.int32)
  # The lexicographic order decides between equal scores.
  kernels = np.unique(kernels, axis=0)
  block_size = min(block_size, len(kernels))
  columns = _LEVELS[features]
  width = columns[1] - columns[0]
  scores, places, pool = np.empty(0), np.empty(0, int), np.empty((len(labels), 0), np.float32)
  for start in range(0, len(kernels), block_size):
    block = kernels[start : start + block_size]
    num_real = len(block)
    block = np.pad(block, ((0, block_size - num_real), (0, 0)), mode="edge")
    values = jnp.asarray(transform_fn(block))
    check_arrays(**{"transform_fn's features": (values, f"[{len(labels)}, {block_size}, 8]")})
    num_kept = min(pool_size, width * block_size)
    best = _best_of_block(values, labels, num_real, num_classes, num_kept, columns)
    scores = np.concatenate([scores, best[0]])
    places = np.concatenate([places, width * start + np.asarray(best[1])])
    pool = np.concatenate([pool, best[2]], axis=1)
    # Stable, so that earlier kernels come first among equals.
    kept = np.argsort(-scores, kind="stable")[:pool_size]
    scores, places, pool = scores[kept], places[kept], pool[:, kept]
  order = np.argsort(places)
  # Constant features are never selected.
  pool = np.where(scores >= 0, pool, 0.0)[:, order]
  chosen = np.asarray(_select_from_pool(pool, labels, num_features, num_classes))
  kernel, feature = np.divmod(places[order][chosen[chosen >= 0]], width)
  mask = np.zeros((len(kernels), 8), bool)
  mask[kernel, columns[0] + feature] = True
  used = mask.any(axis=1)
  return KernelSelection(kernels[used], mask[used])


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _best_of_block(values, labels, num_real, num_classes, num_kept, columns):
  """Scores, places in the block and values of its best features."""
  flat = values[:, :, slice(*columns)].reshape(values.shape[0], -1)
  scores = _relevance(_rounded(flat), labels, num_classes)
  scores = jnp.where(jnp.arange(flat.shape[1]) < (columns[1] - columns[0]) * num_real, scores, -1.0)
  scores, places = jax.lax.top_k(scores, num_kept)
  return scores, places, flat[:, places]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _select_from_pool(pool, labels, num_features, num_classes):
  return mrmr_select(pool, labels, num_features=num_features, num_classes=num_classes).indices


def apply_selection(features: chex.Array, feature_mask: chex.Array) -> jax.Array:
  """The selected features of selected kernels.

  Args:
    features: features of the kernels of a `KernelSelection`, `[b, m, 8]`.
    feature_mask: which are used, bool `[m, 8]`, known.

  Returns:
    Kernel by kernel, `[b, num_selected]`, in the type of `features`.

  Raises:
    ValueError: if shapes do not agree.

  Reference: as `anova_select`.
  """
  check_arrays(feature_mask=(feature_mask, "bool [m, k]"), features=(features, "[b, m, k]"))
  features = jnp.asarray(features)
  return features.reshape(features.shape[0], -1)[:, np.flatnonzero(feature_mask)]
