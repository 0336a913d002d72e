"""Classes of unequal size, and label noise that depends on sizes or on inputs."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range


class RegionNoise(NamedTuple):
  """Labels that are wrong in a region of the inputs.

  Attributes:
    labels: i32 `[n]`.
    is_flipped: which labels were changed, bool `[n]`.
  """

  labels: np.ndarray
  is_flipped: np.ndarray


def long_tailed_counts(max_count: int, *, num_classes: int, imbalance: float) -> list[int]:
  """Sizes of classes that fall geometrically.

  Args:
    max_count: examples of the first class.
    num_classes: number k of classes.
    imbalance: how many times the last class is smaller than the first, at least 1.

  Returns:
    `int(max_count / imbalance ** (c / (k - 1)))` for the classes c = 0 to k - 1.

  Raises:
    ValueError: if `max_count` < 1, `num_classes` < 2 or `imbalance` < 1.

  Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
  NeurIPS 2019, section 4, https://arxiv.org/abs/1906.07413; Zhang et al., When Noisy Labels Meet
  Long Tail Dilemmas, ICCV 2023, https://arxiv.org/abs/2211.10955.
  """
  check_at_least(1, max_count=max_count)
  return [int(max_count / factor) for factor in _factors(num_classes, imbalance)]


def _factors(num_classes: int, imbalance: float) -> list[float]:
  """How many times each class is smaller than the first."""
  check_at_least(2, num_classes=num_classes)
  check_range("imbalance", imbalance, "[1, inf)")
  return [imbalance ** (c / (num_classes - 1)) for c in range(num_classes)]


def long_tailed_indices(labels: chex.Array, *, imbalance: float, seed: int = 0) -> np.ndarray:
  """Draws rows so that the sizes of classes fall geometrically, on the host.

  Sizes are those of `long_tailed_counts` with the largest first class for which every class has
  enough rows.

  Args:
    labels: classes, int `[n]`; class 0 keeps most rows.
    imbalance: how many times the last class is smaller than the first, at least 1.
    seed: of the draw.

  Returns:
    Rows in increasing order, i64 `[m]`.

  Raises:
    ValueError: if `imbalance` < 1, there are fewer than two classes, or one up to the last has no
      rows.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023,
  https://arxiv.org/abs/2211.10955.
  """
  check_arrays(labels=(labels, "int [n]"))
  labels = np.asarray(labels)
  check_range("labels", labels, "[0, inf)")
  sizes = np.bincount(labels)
  factors = np.array(_factors(len(sizes), imbalance))
  if not sizes.all():
    raise ValueError(f"every class must have rows, class {np.flatnonzero(sizes == 0)[0]} has none.")
  # int(most / factor) <= size wants most < (size + 1) * factor.
  most = int(np.min(np.ceil((sizes + 1) * factors))) - 1
  counts = np.minimum(long_tailed_counts(most, num_classes=len(sizes), imbalance=imbalance), sizes)
  rng = np.random.default_rng(seed)
  rows = [
    rng.choice(np.flatnonzero(labels == c), count, replace=False) for c, count in enumerate(counts)
  ]
  return np.sort(np.concatenate(rows)).astype(np.int64)


def proportional_noise_matrix(counts: chex.Array, *, noise_rate: chex.Numeric) -> chex.Array:
  """Label noise that turns labels into those of a class in proportion to its size.

  Labels of the tail turn into those of large classes more often than the other way round, which
  makes the tail look even smaller.

  Args:
    counts: examples of each class before the noise, `[k]`.
    noise_rate: share r of labels that are drawn anew, in [0, 1].

  Returns:
    `T[i, j] = (1 - r) [i = j] + r counts[j] / sum(counts)`, the probability that class j is given
    if i is true, `[k, k]`, float32 or wider; rows sum to 1.

  Raises:
    ValueError: if k < 2, `noise_rate` lies outside [0, 1] or a known count is negative.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 4,
  https://arxiv.org/abs/2211.10955.
  """
  check_arrays(counts=(counts, "[k]"))
  check_at_least(2, **{"the number of counts": len(counts)})
  check_range("counts", counts, "[0, inf)")
  check_range("noise_rate", noise_rate, "[0, 1]")
  counts, noise_rate = as_accumulator(counts), as_accumulator(noise_rate)
  shares = counts / jnp.sum(counts)
  return (1 - noise_rate) * jnp.eye(len(shares), dtype=shares.dtype) + noise_rate * shares[None]


def apply_noise_matrix(labels: chex.Array, matrix: chex.Array, *, seed: int = 0) -> np.ndarray:
  """Draws given labels from true ones, on the host.

  Args:
    labels: true classes, int `[n]`.
    matrix: `matrix[i, j]` is the probability that class j is given if i is true, `[k, k]`; that of
      `proportional_noise_matrix`, or the transpose of `NoiseMatrices.noise`.
    seed: of the draw.

  Returns:
    Given classes, i32 `[n]`.

  Raises:
    ValueError: if a label lies outside the classes, or a row of the matrix has a negative entry or
      does not sum to 1.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 4,
  https://arxiv.org/abs/2211.10955.
  """
  check_arrays(matrix=(matrix, "[k, k]"), labels=(labels, "int [n]"))
  matrix, labels = np.asarray(matrix, np.float64), np.asarray(labels)
  as_classes("labels", labels, len(matrix))
  bad = np.flatnonzero(~(np.all(matrix >= 0, axis=1) & (abs(matrix.sum(axis=1) - 1) < 1e-4)))
  if bad.size:
    raise ValueError(f"matrix must have rows of probabilities, got {matrix[bad[0]]} in {bad[0]}.")
  uniform = np.random.default_rng(seed).random(len(labels))
  given = np.empty(len(labels), np.int32)
  for c, row in enumerate(matrix):
    cumulated = np.cumsum(row)
    members = labels == c
    given[members] = np.searchsorted(cumulated / cumulated[-1], uniform[members], side="right")
  return given


def region_noise(
  inputs: chex.Array,
  labels: chex.Array,
  *,
  source: int,
  target: int,
  fraction: float,
  seed: int = 0,
) -> RegionNoise:
  """Gives one class's examples in a region the label of another class, on the host.

  The region is the upper end of the first principal component of the class. Unlike flips at random
  it can be learned, and a flexible model learns it.

  Args:
    inputs: features, `[n, d]`. For a region at both ends of an axis pass one column, the distance
      from the middle along the axis: a single column is its own first component.
    labels: classes, int `[n]`.
    source: class that loses labels.
    target: class that gets them.
    fraction: share of the source class that is relabeled, in [0, 1].
    seed: of the choice among equal inputs.

  Returns:
    A `RegionNoise`, with `round(fraction * m)` of the m labels of the source class changed. The
    component points to where its largest loading is positive.

  Raises:
    ValueError: if `fraction` lies outside [0, 1], source and target are one class or negative, the
      source class has no rows, or one of its inputs is not finite.

  Reference: after Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021, section 5,
  https://arxiv.org/abs/2103.14749.
  """
  check_range("fraction", fraction, "[0, 1]")
  check_at_least(0, source=source, target=target)
  check_arrays(inputs=(inputs, "[n, d]"), labels=(labels, "int [n]"))
  if source == target:
    raise ValueError(f"source and target must differ, got {source} for both.")
  labels = np.array(labels, np.int32)
  rows = np.flatnonzero(labels == source)
  if not rows.size:
    raise ValueError(f"source must be a class with rows, got {source}, which has none.")
  members = np.asarray(inputs, np.float64)[rows]
  bad = np.flatnonzero(~np.isfinite(members).all(axis=1))
  if bad.size:
    raise ValueError(f"inputs must be finite, those of row {rows[bad[0]]} are not.")
  members = members - members.mean(axis=0)
  axis = np.linalg.svd(members, full_matrices=False)[2][0]
  axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
  ties = np.random.default_rng(seed).random(len(rows))
  order = np.lexsort((ties, -(members @ axis)))
  is_flipped = np.zeros(len(labels), bool)
  is_flipped[rows[order[: round(fraction * len(rows))]]] = True
  return RegionNoise(np.where(is_flipped, np.int32(target), labels), is_flipped)
