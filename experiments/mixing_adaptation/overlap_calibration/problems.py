"""Classification problems whose classes overlap by a known amount."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy.special import entr

from experiments.kit import datasets, sizes
from experiments.kit.datasets import Split
from jaxlab import data, models

GAUSSIANS = "gaussians"
# Of the Gaussians: dimensions, distance of the means from 0 (at 8 they do not overlap), batch.
_DIMS, _SEPARATION, _BATCH_SIZE = 105, 8.0, 100


class Task(NamedTuple):
  """A classification problem without overlap, and how a network is trained on it.

  Attributes:
    where: what the records say of it.
    num_classes: number of classes.
    draw: `seed -> (training, held-out, test rows)`.
    module: the network.
    batch_size: rows per update.
    num_steps: updates.
  """

  where: dict[str, str | int]
  num_classes: int
  draw: Callable[[int], tuple[Split, Split, Split]]
  module: nn.Module
  batch_size: int
  num_steps: int


def validate(config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, empty=("class_counts",), shares=("noise_rates", "smoothing"))
  rows = config.num_train, config.num_held_out, config.num_test
  for name in config.datasets:
    datasets.describe(name).check_splits(*rows)
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  steps = {"num_steps": config.num_steps, "dense_steps": config.dense_steps}
  sizes.check_divides(config.num_evals, **steps)


def tasks(config) -> Iterator[Task]:
  """The sets, and Gaussians in more and more classes."""
  training = config.batch_size, config.num_steps
  for name in config.datasets:
    draw, k = functools.partial(load, config, name), datasets.describe(name).num_classes
    yield Task({"dataset": name}, k, draw, network(config, k), *training)
  training = _BATCH_SIZE, config.dense_steps
  for k in config.class_counts:
    where, module = {"dataset": GAUSSIANS, "classes": k}, models.MLP(k, config.dense_widths)
    yield Task(where, k, functools.partial(gaussians, config, k), module, *training)


def load(config, name: str, seed: int) -> tuple[Split, ...]:
  """Rows of a set: training, held-out, test."""
  dataset = datasets.describe(name)
  generator = {} if dataset.is_image else {"corr_noise_scale": config.signal_noise}
  sizes = config.num_train, config.num_held_out, config.num_test
  return dataset.splits(*sizes, seed=seed, **generator)


def network(config, num_classes: int) -> nn.Module:
  """The classifier of a set."""
  if config.network == "signals":
    strides = (2,) * len(config.widths)
    return models.ConvNet(num_classes, config.widths, strides=strides)
  strides = (1,) + (2,) * (len(config.widths) - 1)
  return models.ConvNet(num_classes, config.widths, kernel_size=(3, 3), strides=strides)


def gaussians(config, num_classes: int, seed: int) -> tuple[Split, Split, Split]:
  """Rows of Gaussians that are far apart: training, held-out, test."""
  sizes = num_classes * config.rows_per_class, config.num_held_out, config.num_test

  @jax.jit
  def sample(seed):
    key = jax.random.fold_in(jax.random.key(num_classes), seed)
    shape = {"num_samples": sum(sizes), "num_classes": num_classes, "dim": _DIMS}
    return data.sample_overlapping_gaussians(key, **shape, separation=_SEPARATION)

  inputs, labels = (np.split(np.asarray(x), np.cumsum(sizes)[:-1]) for x in sample(seed)[:2])
  return tuple(map(Split, inputs, labels))


def flip(key, num_classes: int, splits: tuple[Split, ...], *, noise) -> tuple[Split, ...]:
  """The splits with labels that turn into those of a partner class, by one law in all of them."""
  keys = jax.random.split(key, 1 + len(splits))
  law = functools.partial(data.paired_label_noise, num_classes=num_classes, noise_rate=noise)
  partners = law(keys[0], splits[0].labels).partners
  return tuple(
    Split(jnp.asarray(inputs), law(k, labels, partners=partners).labels)
    for k, (inputs, labels) in zip(keys[1:], splits)
  )


def uniform_miss_nll(error: np.ndarray, num_classes: int) -> np.ndarray:
  """Loss of a prediction that knows its error and nothing of where it errs.

  Up to an error of 1/2 this is `metrics.interpolator_temperature_scaled_nll(2 * error, k)`.
  """
  error = np.asarray(error, np.float64)
  return entr(error) + entr(1 - error) + error * math.log(num_classes - 1)
