"""What open-set adaptation starts from: data with unknown classes, their stream, a source model."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.kit.source_model import smoothed_loss
from experiments.kit.train import accuracy, adamw_cosine, train
from jaxlab import augment, data, models

UNKNOWN = -1  # Label of all rows of unknown classes.
NUM_DAYS = 1096  # Of power demand.


class Task(NamedTuple):
  """Known rows to train on, known and unknown rows to test on; unknown labels are -1."""

  train: Split
  known: Split
  unknown: Split


def load_task(config, seed: int) -> Task:
  """The data of a seed: signals standardized by the training rows, images in [0, 1]."""
  if config.dataset == "cifar10":
    parts = (
      datasets.raw_images("cifar10", "train", limit=config.num_train),
      datasets.raw_images("cifar10", "test", limit=config.num_test),
      datasets.raw_images("svhn_cropped", "test", limit=config.num_test),
    )
  else:
    known = datasets.describe("mnist1d").splits(config.num_train, config.num_test, seed=seed)
    parts = *known, power_curves(config.num_test, seed)
  train, known, unknown = parts
  return Task(train, known, unknown._replace(labels=np.full_like(unknown.labels, UNKNOWN)))


def power_curves(num_rows: int, seed: int) -> Split:
  """Days of power demand, 24 hours drawn out to signals of 40 values; standardized."""
  days = data.as_arrays(data.load_source("aeon/ItalyPowerDemand", split="all"))
  rows = np.random.default_rng(seed).permutation(len(days["label"]))[:num_rows]
  hours, places = np.arange(24), np.linspace(0, 23, 40)
  series = np.stack([np.interp(places, hours, day) for day in days["series"][rows, :, 0]])
  series = (series - series.mean()) / series.std()
  return Split(series[..., None].astype(np.float32), days["label"][rows].astype(np.int32))


def open_set_stream(key: chex.PRNGKey, config, known: Split, unknown: Split) -> Split:
  """The batches of one round `[m, 2 b, ...]`: the known rows of a batch stand first."""
  halves = [
    augment.corruption_stream(
      half_key,
      *rows,
      kinds=config.kinds,
      severities=(config.severity,),
      batch_size=config.batch_size,
    )
    for half_key, rows in zip(jax.random.split(key), (known, unknown))
  ]
  return Split(*(jnp.concatenate(parts, axis=1) for parts in zip(*halves)))


def network(config):
  """The classifier of the ten known classes."""
  if config.dataset == "cifar10":
    return models.WideResNet(10, depth=40, widen_factor=2)
  return models.ConvNet(10, config.widths, strides=(2,) * len(config.widths))


def source_training(config):
  """The engine's loss and the optimizer of a source model."""
  loss = smoothed_loss(network(config), label_smoothing=config.label_smoothing)
  return loss, adamw_cosine(config.train_learning_rate, config.train_steps)


def train_source(key: chex.PRNGKey, task: Task, *, config) -> dict:
  """Trains the source model of a seed; its variables, and its error on clean rows."""
  module = network(config)
  trained = train(
    key,
    module,
    *source_training(config),
    task.train,
    num_steps=config.train_steps,
    batch_size=config.train_batch,
  )
  return {
    "params": trained.params,
    "model_state": trained.model_state,
    "clean error": 1 - accuracy(module, trained.variables, task.known),
    "bad_step": trained.bad_step,
  }
