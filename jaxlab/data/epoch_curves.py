"""Epoch curves: the validation accuracy of small networks, trained once on tables of packages."""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab._checks import check_at_least
from jaxlab.data.generated import load_generated
from jaxlab.data.recorded_curves import LearningCurves
from jaxlab.data.sources import as_arrays, load_source

# Sources with at least 1,600 rows on which a network needs more than a few epochs.
EPOCH_CURVE_SETS = (
  "digits",
  "mnist1d",
  *("keel/banana", "keel/chess", "keel/letter", "keel/magic", "keel/marketing", "keel/penbased"),
  *("keel/phoneme", "keel/ring", "keel/satimage", "keel/segment", "keel/spambase", "keel/splice"),
  *("keel/texture", "keel/twonorm"),
)
_WIDTH = 64  # Hidden units, of which a network uses the first few.
_BATCH_SIZE = 32
_VERSION = 1  # To be increased with any change of the curves, so that no stored ones are read.


class NetworkSettings(NamedTuple):
  """Hyper-parameters of k networks, each an array `[k]`.

  Attributes:
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: L2 penalty, which joins the gradient.
    dropout: rate, of both hidden layers.
    width: units per hidden layer, at most 64.
    cosine: 1 if the learning rate falls to 0 as a cosine, 0 if it is constant.
  """

  learning_rate: chex.Array
  momentum: chex.Array
  weight_decay: chex.Array
  dropout: chex.Array
  width: chex.Array
  cosine: chex.Array


class TableSplit(NamedTuple):
  """Features `f32[n, d]` and labels `i32[n]`."""

  features: chex.Array
  labels: chex.Array


def load_epoch_curves(
  *,
  datasets: Sequence[str] = EPOCH_CURVE_SETS,
  num_networks: int = 20,
  num_epochs: int = 30,
  num_rows: int = 800,
  seed: int = 0,
  data_dir: str | os.PathLike | None = None,
) -> LearningCurves:
  """Loads epoch curves: validation accuracy after each epoch of networks on tabular sets.

  A curve is one network with random hyper-parameters (`NetworkSettings`) on one data set, as in
  LCBench: two hidden layers, SGD with momentum, batches of 32. Every curve is kept, also where
  training fails. The first call trains the networks, in about half a minute on one core with the
  default arguments; the curves are then read from `data_dir`.

  Args:
    datasets: classification sets, names for `load_source`.
    num_networks: networks per data set.
    num_epochs: length of every curve.
    num_rows: rows that a network is trained on, and as many others that it is evaluated on.
    seed: of rows, hyper-parameters and training.
    data_dir: where the curves are kept; as in `load_source`.

  Returns:
    `LearningCurves(values f32[n, num_epochs], lengths i32[n], anchors i32[n, num_epochs] (the
    epoch), dataset_ids i32[n] (position in `datasets`), learners str[n] (the hyper-parameters))`,
    sorted by data set.

  Raises:
    ValueError: if a data set is unknown or has too few rows, or a number is below 1.
    ImportError: if a package that holds a data set is missing.

  Reference: Zimmer et al., Auto-PyTorch Tabular, TPAMI 2021 (LCBench),
  https://arxiv.org/abs/2006.13799.
  """
  check_at_least(1, num_networks=num_networks, num_epochs=num_epochs, num_rows=num_rows)
  arguments = [_VERSION, list(datasets), num_networks, num_epochs, num_rows, seed]

  def generate():
    return _train_on_all(tuple(datasets), num_networks, num_epochs, num_rows, seed, data_dir)

  arrays = load_generated("epoch_curves", arguments, generate, data_dir=data_dir)
  num_curves = len(arrays["values"])
  return LearningCurves(
    values=arrays["values"],
    lengths=np.full(num_curves, num_epochs, np.int32),
    anchors=np.tile(np.arange(1, num_epochs + 1, dtype=np.int32), (num_curves, 1)),
    dataset_ids=np.repeat(np.arange(len(datasets), dtype=np.int32), num_networks),
    learners=arrays["learners"],
  )


@functools.partial(jax.jit, static_argnames="num_epochs")
def train_networks(
  key: chex.PRNGKey,
  train: TableSplit,
  validation: TableSplit,
  settings: NetworkSettings,
  num_classes: chex.Numeric,
  *,
  num_epochs: int,
) -> chex.Array:
  """Trains one network per setting and evaluates it after every epoch.

  Args:
    key: of initialization, order of the rows and dropout, drawn independently for each network.
    train: training rows, at least 32; features that are 0 in all rows count as absent.
    validation: rows that the accuracy is measured on.
    settings: hyper-parameters of the k networks.
    num_classes: classes C, at most 32; may be traced.
    num_epochs: epochs, of batches of 32; an incomplete batch is dropped.

  Returns:
    Accuracy, `f32[k, num_epochs]`.
  """
  train, validation = jax.tree.map(jnp.asarray, (train, validation))
  num_batches = len(train.labels) // _BATCH_SIZE
  num_features = jnp.sum(jnp.any(train.features != 0, axis=0))
  absent = jnp.arange(32) >= num_classes

  def accuracies(key, setting):
    init_key, train_key = jax.random.split(key)
    keys = jax.random.split(init_key, 3)
    used = jnp.arange(_WIDTH) < setting.width
    sizes = ((train.features.shape[1], _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 32))
    fan_ins = num_features, setting.width, setting.width
    params = [
      (jax.random.normal(k, size) * jnp.sqrt(2.0 / fan_in), jnp.zeros(size[1]))
      for k, size, fan_in in zip(keys, sizes, fan_ins)
    ]

    def apply(params, h, keeps):
      for (kernel, bias), keep in zip(params, keeps):
        h = jax.nn.relu(h @ kernel + bias) * used * keep
      kernel, bias = params[-1]
      return jnp.where(absent, -1e9, h @ kernel + bias)

    def step(state, inputs):
      params, velocity = state
      rows, key, progress = inputs
      kept = jax.random.uniform(key, (2, len(rows), _WIDTH)) >= setting.dropout

      def loss(params):
        logits = apply(params, train.features[rows], kept / (1 - setting.dropout))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, train.labels[rows])
        return losses.mean()

      factor = jnp.where(setting.cosine > 0, 0.5 * (1 + jnp.cos(jnp.pi * progress)), 1.0)
      velocity = jax.tree.map(
        lambda v, g, p: setting.momentum * v + g + setting.weight_decay * p,
        velocity,
        jax.grad(loss)(params),
        params,
      )
      rate = factor * setting.learning_rate
      return (jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity), None

    def epoch(state, index):
      order_key, dropout_key = jax.random.split(jax.random.fold_in(train_key, index))
      rows = jax.random.permutation(order_key, len(train.labels))[: num_batches * _BATCH_SIZE]
      progress = (index + jnp.arange(num_batches) / num_batches) / num_epochs
      keys = jax.random.split(dropout_key, num_batches)
      inputs = rows.reshape(num_batches, _BATCH_SIZE), keys, progress
      state, _ = jax.lax.scan(step, state, inputs)
      predicted = jnp.argmax(apply(state[0], validation.features, (1.0, 1.0)), axis=-1)
      return state, jnp.mean(predicted == validation.labels)

    start = params, jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(epoch, start, jnp.arange(num_epochs))[1]

  keys = jax.random.split(key, len(settings.width))
  return jax.vmap(accuracies)(keys, settings)


def _train_on_all(datasets, num_networks, num_epochs, num_rows, seed, data_dir):
  """Values and learners of all curves; sets are padded to one shape and so share a program."""
  tables = [_read(name, num_rows, seed, data_dir) for name in datasets]
  num_features = max(table.features.shape[1] for table in tables)

  @jax.jit
  def train(index, *arguments):
    key = jax.random.fold_in(jax.random.key(seed), index)
    return train_networks(key, *arguments, num_epochs=num_epochs)

  values, learners = [], []
  for index, (features, labels) in enumerate(tables):
    rng = np.random.default_rng([seed, index])
    settings = _draw_settings(rng, num_networks)
    padded = np.pad(features, ((0, 0), (0, num_features - features.shape[1])))
    parts = (
      TableSplit(padded[part], labels[part]) for part in np.split(np.arange(2 * num_rows), 2)
    )
    values.append(np.asarray(train(index, *parts, settings, labels.max() + 1)))
    learners += [
      ",".join(f"{name}={value:.3g}" for name, value in zip(settings._fields, row))
      for row in zip(*settings)
    ]
  return {"values": np.concatenate(values), "learners": np.array(learners)}


def _read(name: str, num_rows: int, seed: int, data_dir) -> TableSplit:
  """Random rows, training before validation, standardized by the training rows."""
  arrays = as_arrays(load_source(name, split="all", data_dir=data_dir))
  labels = arrays.pop("label")
  (inputs,) = (array for field, array in arrays.items() if field != "index")
  if len(labels) < 2 * num_rows:
    raise ValueError(f"{name} has {len(labels)} rows, fewer than two parts of num_rows={num_rows}.")
  rows = np.random.default_rng(seed).permutation(len(labels))[: 2 * num_rows]
  features = inputs.reshape(len(inputs), -1).astype(np.float32)[rows]
  mean, std = features[:num_rows].mean(0), features[:num_rows].std(0)
  return TableSplit(
    (features - mean) / np.where(std > 0, std, np.inf), labels[rows].astype(np.int32)
  )


def _draw_settings(rng: np.random.Generator, number: int) -> NetworkSettings:
  """Random search: log-uniform learning rates, weight decays and widths, the rest uniform."""

  def log_uniform(low, high):
    return np.exp(rng.uniform(np.log(low), np.log(high), number))

  return NetworkSettings(
    learning_rate=log_uniform(1e-3, 0.3).astype(np.float32),
    momentum=rng.uniform(0.1, 0.95, number).astype(np.float32),
    weight_decay=log_uniform(1e-5, 1e-2).astype(np.float32),
    dropout=rng.uniform(0.0, 0.6, number).astype(np.float32),
    width=log_uniform(4, 65).astype(np.int32),
    cosine=rng.integers(0, 2, number).astype(np.int32),
  )
