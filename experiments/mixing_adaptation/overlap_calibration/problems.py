"""Classification problems whose classes overlap by a known amount."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr

from experiments.kit import datasets
from experiments.kit.datasets import Split
from jaxlab import data

# Of the Gaussians: training rows of each, further dimensions, distance of their means from 0.
_ROWS_PER_CLASS, _EXTRA_DIMS, _SEPARATION = 100, 5, 2.0


class Problem(NamedTuple):
  """Examples of one law, the test labels before any noise, and the loss of the law's posterior."""

  train: Split
  held_out: Split
  test: Split
  clean_labels: Any  # None where there is no noise.
  bayes_nll: Any


def families(config, seeds: range) -> Iterator[tuple]:
  """All overlaps of all sets, those in one tuple that one program measures.

  Yields:
    What the records say of all of them, the number of classes, what tells them apart (keyword
    arguments of `draw`), the data of all seeds, and `draw(key, splits, **setting) -> Problem`.
  """
  sizes = zip(config.num_train, config.num_held_out, config.num_test, strict=True)
  for name, (num_train, num_held_out, num_test) in zip(config.datasets, sizes, strict=True):
    if name == "gaussians":
      for k in config.class_counts:
        draw = functools.partial(gaussians, k, (k * _ROWS_PER_CLASS, num_held_out, num_test))
        yield {"dataset": name, "num_classes": k}, k, [{}], (), draw
      continue
    dataset, pool = datasets.describe(name), num_train + num_held_out
    draw = functools.partial(dataset.splits, pool, num_test)
    splits = datasets.stack_seeds(lambda seed, draw=draw: draw(seed=seed), seeds)
    noise = [{"noise": rate} for rate in config.noise_rates]
    draw = functools.partial(noisy, num_train, dataset.num_classes)
    yield {"dataset": name}, dataset.num_classes, noise, splits, draw


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


def gaussians(num_classes: int, num_rows, key, splits) -> Problem:
  """Fresh samples for every part."""
  del splits  # Drawn here.
  sizes = {"num_samples": sum(num_rows), "num_classes": num_classes}
  dims = num_classes + _EXTRA_DIMS
  sample = data.sample_overlapping_gaussians(key, **sizes, dim=dims, separation=_SEPARATION)
  ends = np.cumsum(num_rows)
  train, held_out, test = (
    Split(sample.inputs[end - num : end], sample.labels[end - num : end])
    for end, num in zip(ends, num_rows)
  )
  true_probs = jnp.take_along_axis(sample.posterior[ends[1] :], test.labels[:, None], axis=1)
  return Problem(train, held_out, test, None, -jnp.mean(jnp.log(true_probs)))


def uniform_miss_nll(error: np.ndarray, num_classes: int) -> np.ndarray:
  """Loss of a prediction that knows its error and nothing of where it errs.

  Up to an error of 1/2 this is `metrics.interpolator_temperature_scaled_nll(2 * error, k)`.
  """
  error = np.asarray(error, np.float64)
  return entr(error) + entr(1 - error) + error * math.log(num_classes - 1)
