"""Long-tailed training sets with wrong labels, beside clean rows of all classes."""

from typing import NamedTuple

import chex
import jax
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import data


class Task(NamedTuple):
  """A training set whose first class is the largest, and clean rows beside it.

  Training sees not the true classes `[n]` but those given at each noise rate, `[rates, n]`.
  """

  inputs: chex.Array
  truth: chex.Array
  given: chex.Array
  validation: Split
  test: Split


def gaussian_counts(config) -> list[int]:
  """Training rows of each Gaussian."""
  return data.long_tailed_counts(
    config.max_count, num_classes=config.num_classes, imbalance=config.imbalance
  )


def image_counts(config) -> list[int]:
  """Training images of each class."""
  return data.long_tailed_counts(
    config.image_count,
    num_classes=datasets.describe(config.dataset).num_classes,
    imbalance=config.image_imbalance,
  )


def given_labels(config, truth: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
  """Labels that turn into those of large classes more often, at every noise rate."""
  matrices = np.asarray(_noise_matrices(np.array(counts), np.array(config.noise_rates)))
  return np.stack([data.apply_noise_matrix(truth, matrix, seed=seed) for matrix in matrices])


@jax.jit
def _noise_matrices(counts, rates):
  return jax.vmap(lambda rate: data.proportional_noise_matrix(counts, noise_rate=rate))(rates)


def gaussian_task(config, seed: int) -> Task:
  """Gaussians whose means know nothing of their rank; tails share a head's covariance, nearly."""
  rng = np.random.default_rng(seed)
  counts, dim = np.array(gaussian_counts(config)), config.num_dims
  num = len(counts)
  # Two such means lie about `distance` apart.
  means = config.distance / np.sqrt(2 * dim) * rng.normal(size=(num, dim))
  roots = config.spread / np.sqrt(dim) * rng.normal(size=(num, dim, dim))
  is_tail = counts * num < counts.sum()
  for c in np.flatnonzero(is_tail):
    change = config.perturbation / np.sqrt(dim) * rng.normal(size=(dim, dim))
    roots[c] = roots[rng.choice(np.flatnonzero(~is_tail))] @ (np.eye(dim) + change)

  def draw(labels):
    noise = rng.normal(size=(len(labels), dim))
    points = means[labels] + np.einsum("nij,nj->ni", roots[labels], noise)
    return Split(points.astype(np.float32), labels.astype(np.int32))

  train = draw(np.repeat(np.arange(num), counts))
  clean = [draw(np.arange(size) % num) for size in (config.num_validation, config.num_test)]
  return Task(*train, given_labels(config, train.labels, counts, seed), *clean)


def image_task(config, seed: int) -> Task:
  """Images whose classes come in a new order of size; what is left over is the test set."""
  dataset = datasets.describe(config.dataset)
  pool, *other = dataset.splits(*dataset.num_rows, seed=seed)
  counts, num = image_counts(config), dataset.num_classes
  rank = np.random.default_rng(seed).permutation(num).astype(np.int32)
  pool, *other = (Split(part.inputs, rank[part.labels]) for part in (pool, *other))
  per_class = config.image_validation // num
  rows = [np.flatnonzero(pool.labels == c) for c in range(num)]
  ends = [(count, count + per_class) for count in counts]
  parts = zip(*(np.split(own, end) for own, end in zip(rows, ends)))
  train, validation, rest = (Split(*(x[np.concatenate(r)] for x in pool)) for r in parts)
  given = given_labels(config, train.labels, counts, seed)
  return Task(*train, given, validation, *(other or [rest]))
