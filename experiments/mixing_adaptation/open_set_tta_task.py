"""What open-set adaptation starts from: data with unknown classes, their stream, a source model."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification
from experiments.classification import Split
from jaxlab import augment, data, models

UNKNOWN = -1  # Label of all rows of unknown classes.


class Task(NamedTuple):
  """Known rows to train on, known and unknown rows to test on; unknown labels are -1."""

  train: Split
  known: Split
  unknown: Split


def load_task(config) -> Task:
  """The data, signals standardised by the training rows, images in [0, 1]."""
  if config.dataset == "cifar10":
    return Task(
      _images("cifar10", "train", config.num_train),
      _images("cifar10", "test", config.num_test),
      _as_unknown(_images("svhn_cropped", "test", config.num_test)),
    )
  num_unknown = 10 - config.num_known
  a_class = max(
    -(-(config.num_train + config.num_test) // config.num_known),
    -(-config.num_test // num_unknown),
  )
  signals = data.load_mnist1d(10 * a_class)
  is_known = signals.labels < config.num_known
  series, labels = signals.series[is_known], signals.labels[is_known]
  mean, std = series[: config.num_train].mean(), series[: config.num_train].std()

  def split(series, labels, rows):
    return Split((series[rows] - mean) / std, labels[rows])

  end = config.num_train + config.num_test
  foreign = signals.series[~is_known], signals.labels[~is_known]
  return Task(
    split(series, labels, slice(config.num_train)),
    split(series, labels, slice(config.num_train, end)),
    _as_unknown(split(*foreign, slice(config.num_test))),
  )


def _images(name: str, split: str, limit: int) -> Split:
  arrays = data.as_arrays(data.load_source(name, split=split), limit=limit)
  return Split(arrays["image"].astype(np.float32) / 255, arrays["label"].astype(np.int32))


def _as_unknown(split: Split) -> Split:
  return split._replace(labels=np.full_like(split.labels, UNKNOWN))


def open_set_stream(key: chex.PRNGKey, config, task: Task) -> Split:
  """One round `[kinds, batches, 2 b, ...]`: the known rows of a batch stand first."""
  halves = [
    augment.corruption_stream(
      half_key,
      *rows,
      kinds=config.kinds,
      severities=(config.severity,),
      batch_size=config.batch_size,
    )
    for half_key, rows in zip(jax.random.split(key), (task.known, task.unknown))
  ]
  inputs, labels = (jnp.concatenate(parts, axis=1) for parts in zip(*halves))
  shape = len(config.kinds), -1
  return Split(inputs.reshape(*shape, *inputs.shape[1:]), labels.reshape(*shape, *labels.shape[1:]))


def network(config):
  """The classifier of the known classes."""
  if config.dataset == "cifar10":
    return models.WideResNet(config.num_known, depth=40, widen_factor=2)
  return models.ConvNet(config.num_known)


def source_optimizer(config) -> optax.GradientTransformation:
  """AdamW with a cosine."""
  return optax.adamw(optax.cosine_decay_schedule(config.train_learning_rate, config.train_steps))


def source_loss(config):
  """The engine's loss: augmented rows, smoothed labels.

  In place of AugMix, with which the paper's networks are trained, signals are jittered and images
  flipped.
  """

  def loss(apply, key, batch):
    if batch.inputs.ndim == 3:
      inputs = augment.jitter_signals(key, batch.inputs)
    else:
      flip = jax.random.bernoulli(key, 0.5, (len(batch.inputs), 1, 1, 1))
      inputs = jnp.where(flip, batch.inputs[:, :, ::-1], batch.inputs)
    targets = jax.nn.one_hot(batch.labels, config.num_known)
    targets = optax.smooth_labels(targets, config.label_smoothing)
    return optax.softmax_cross_entropy(apply(inputs).logits, targets)

  return classification.classification_loss(network(config), loss)


def train_source(config, task: Task, key):
  """Trains the source model of a seed; its variables, and its error on clean rows."""
  module = network(config)
  trained = classification.train(
    key,
    module,
    source_loss(config),
    source_optimizer(config),
    task.train,
    num_steps=config.train_steps,
    batch_size=config.train_batch,
  )
  error = 1 - classification.accuracy(module, trained.variables, task.known)
  return {"params": trained.params, "model_state": trained.model_state}, error
