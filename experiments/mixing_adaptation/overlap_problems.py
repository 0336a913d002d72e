"""Classification problems whose classes overlap by a known amount, for the overlap experiment."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification
from experiments.classification import Split
from jaxlab import data


class Problem(NamedTuple):
  """Examples of one law, and the loss of its posterior on the test examples.

  `clean_labels` are the test labels before the noise, or None.
  """

  train: Split
  held_out: Split
  test: Split
  clean_labels: Any
  bayes_nll: Any


class Setting(NamedTuple):
  """Overlaps of one set that one program measures: `draw(level, key) -> Problem`, a seed each."""

  dataset: str
  labels: tuple[str, ...]
  levels: tuple[float, ...]
  num_classes: int
  draw: Callable[..., Problem]


def settings(config: Any) -> list[Setting]:
  """All overlaps of all sets; the level is the noise, or the separation of the Gaussians."""
  found = []
  sizes = zip(config.num_train, config.num_held_out, config.num_test, strict=True)
  for name, (num_train, num_held_out, num_test) in zip(config.datasets, sizes, strict=True):
    if name == "gaussians":
      for k in config.class_counts:
        num_rows = (k * config.rows_per_class, num_held_out, num_test)
        draw = functools.partial(_gaussians, k, k + config.extra_dims, num_rows)
        found.append(Setting(name, (f"{k} classes",), (config.separation,), k, draw))
      continue
    pool, test = _load(name, num_train + num_held_out, num_test)
    num_classes = int(test.labels.max()) + 1
    draw = functools.partial(_noisy, pool, test, num_train, num_classes)
    labels = tuple(f"noise {rate:g}" for rate in config.noise_rates)
    found.append(Setting(name, labels, config.noise_rates, num_classes, draw))
  return found


def _load(name: str, num_pool: int, num_test: int) -> tuple[Split, Split]:
  """Rows to train on and hold out, and rows to test on."""
  if name == "mnist1d":
    return classification.mnist1d_splits(num_pool, num_test)
  if name == "digits":
    return classification.digits_splits(num_pool, num_test)
  parts = [data.as_arrays(data.load_source(name, split=split)) for split in ("train", "test")]
  images = [part["image"].astype(np.float32) / 255.0 for part in parts]
  shift, scale = images[0].mean((0, 1, 2)), images[0].std((0, 1, 2))
  pool, test = (
    Split((image - shift) / scale, part["label"].astype(np.int32))
    for image, part in zip(images, parts)
  )
  return jax.tree.map(lambda x: x[:num_pool], pool), jax.tree.map(lambda x: x[:num_test], test)


def _noisy(pool: Split, test: Split, num_train: int, num_classes: int, rate, key) -> Problem:
  """Shuffles the pool and flips labels by one law in all parts."""
  order_key, pool_key, test_key = jax.random.split(key, 3)
  flip = functools.partial(data.paired_label_noise, num_classes=num_classes, noise_rate=rate)
  noise = flip(pool_key, pool.labels)
  order = jax.random.permutation(order_key, len(pool.labels))
  train, held_out = (
    Split(jnp.asarray(pool.inputs)[rows], noise.labels[rows])
    for rows in (order[:num_train], order[num_train:])
  )
  labels = flip(test_key, test.labels, partners=noise.partners).labels
  # If the inputs tell the clean classes apart.
  bayes_nll = jax.scipy.special.entr(rate) + jax.scipy.special.entr(1 - rate)
  test = Split(jnp.asarray(test.inputs), labels), jnp.asarray(test.labels)
  return Problem(train, held_out, *test, bayes_nll)


def _gaussians(num_classes: int, dim: int, num_rows: tuple[int, ...], separation, key) -> Problem:
  """Fresh samples for every part."""
  sample = data.sample_overlapping_gaussians(
    key, num_samples=sum(num_rows), num_classes=num_classes, dim=dim, separation=separation
  )
  ends = np.cumsum(num_rows)
  train, held_out, test = (
    Split(sample.inputs[end - num : end], sample.labels[end - num : end])
    for end, num in zip(ends, num_rows)
  )
  true_probs = jnp.take_along_axis(sample.posterior[ends[1] :], test.labels[:, None], axis=1)
  return Problem(train, held_out, test, None, -jnp.mean(jnp.log(true_probs)))
