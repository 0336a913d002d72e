"""Classification problems whose classes overlap by a known amount."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import data


class Problem(NamedTuple):
  """Examples of one law, and the loss of its posterior on the test examples.

  `clean_labels` are the test labels before any noise.
  """

  train: Split
  held_out: Split
  test: Split
  clean_labels: Any
  bayes_nll: Any


class Family(NamedTuple):
  """Overlaps that one program measures.

  Attributes:
    where: what the records say of all of them.
    num_classes: number of classes.
    settings: what tells them apart: keyword arguments of `draw`, which it takes as traced numbers.
    splits: data of all seeds, stacked, or ().
    draw: `(key, splits, **setting) -> Problem`.
  """

  where: Mapping[str, str | int]
  num_classes: int
  settings: list[Mapping[str, float]]
  splits: Any
  draw: Callable[..., Problem]


def families(config, num_seeds: int) -> Iterator[Family]:
  """All overlaps of all sets: the rates of noise of one set, or a number of Gaussians."""
  sizes = zip(config.num_train, config.num_held_out, config.num_test, strict=True)
  for name, (num_train, num_held_out, num_test) in zip(config.datasets, sizes, strict=True):
    if name == "gaussians":
      for k in config.class_counts:
        rows = k * config.rows_per_class, num_held_out, num_test
        draw = functools.partial(gaussians, k, k + config.extra_dims, rows, config.separation)
        yield Family({"dataset": name, "num_classes": k}, k, [{}], (), draw)
      continue
    dataset = datasets.describe(name)
    splits = datasets.stack_seeds(
      lambda seed: dataset.splits(num_train + num_held_out, num_test, seed=seed),  # noqa: B023
      num_seeds,
    )
    noise = [{"noise": rate} for rate in config.noise_rates]
    draw = functools.partial(noisy, num_train, dataset.num_classes)
    yield Family({"dataset": name}, dataset.num_classes, noise, splits, draw)


def noisy(num_train: int, num_classes: int, key, splits: tuple[Split, Split], *, noise) -> Problem:
  """Shuffles the pool and flips labels by one law in all parts."""
  pool, test = splits
  order_key, pool_key, test_key = jax.random.split(key, 3)
  flip = functools.partial(data.paired_label_noise, num_classes=num_classes, noise_rate=noise)
  flipped = flip(pool_key, pool.labels)
  order = jax.random.permutation(order_key, len(pool.labels))
  train, held_out = (
    Split(jnp.asarray(pool.inputs)[rows], flipped.labels[rows])
    for rows in (order[:num_train], order[num_train:])
  )
  labels = flip(test_key, test.labels, partners=flipped.partners).labels
  # If the inputs tell the clean classes apart.
  bayes_nll = jax.scipy.special.entr(noise) + jax.scipy.special.entr(1 - noise)
  return Problem(train, held_out, Split(test.inputs, labels), test.labels, bayes_nll)


def gaussians(num_classes: int, dim: int, num_rows, separation: float, key, splits) -> Problem:
  """Fresh samples for every part."""
  del splits  # Drawn here.
  sample = data.sample_overlapping_gaussians(
    key, num_samples=sum(num_rows), num_classes=num_classes, dim=dim, separation=separation
  )
  ends = np.cumsum(num_rows)
  train, held_out, test = (
    Split(sample.inputs[end - num : end], sample.labels[end - num : end])
    for end, num in zip(ends, num_rows)
  )
  true_probs = jnp.take_along_axis(sample.posterior[ends[1] :], test.labels[:, None], axis=1)
  return Problem(train, held_out, test, test.labels, -jnp.mean(jnp.log(true_probs)))


def uniform_miss_nll(error: np.ndarray, num_classes: int) -> np.ndarray:
  """Loss of a prediction that knows its error and nothing of where it errs.

  Up to an error of 1/2 this is `metrics.interpolator_temperature_scaled_nll(2 * error, k)`.
  """
  error = np.asarray(error, np.float64)
  return entr(error) + entr(1 - error) + error * math.log(num_classes - 1)
