"""Pre-training with every loss: features along the way, and how each tells the two halves apart."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.kit.datasets import Dataset
from experiments.kit.train import Trained, adamw_cosine, agrees, predict, train
from experiments.labels.look.data import COARSE, FINE, Problem, shift
from jaxlab import losses, metrics, models, training

CE, PROJECTED, SMOOTHED = "cross-entropy", "cross-entropy on the projection", "label smoothing"
SUPCON, SIMCLR, BOTH = "supervised contrastive", "SimCLR", "SimCLR + cross-entropy"
LOOK, TEN = "LOOK", "ten labels"


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    loss: one of the names above.
    num_neighbors: that vote, in the loss of LOOK and wherever a projection is to tell classes.
    width: of the features.
    followed: whether it is evaluated along the way, the random network included.
  """

  loss: str
  num_neighbors: int
  width: int
  followed: bool = False

  @property
  def labels(self) -> str:
    """What it learns from."""
    return FINE if self.loss == TEN else COARSE

  @property
  def has_head(self) -> bool:
    """Whether a linear head tells classes apart, and not the neighbors' votes."""
    return self.loss in (CE, PROJECTED, SMOOTHED, BOTH, TEN)


class Network(nn.Module):
  """`ConvEncoder` with a linear head on its features, or on its projection."""

  channels: tuple[int, ...]
  width: int
  projection: int
  num_classes: int
  on_projection: bool = False

  @nn.compact
  def __call__(self, inputs: chex.Array) -> models.ConvOutput:
    """Encodes and scores."""
    out = models.ConvEncoder(self.channels, self.width, projection=self.projection)(inputs)
    scored = out.projection if self.on_projection else out.features
    return out._replace(logits=nn.Dense(self.num_classes, name="head")(scored))


def network(config, dataset: Dataset, row: Row) -> Network:
  """The network of a row."""
  num_classes = dataset.num_classes if row.labels == FINE else 2
  sizes = config.channels, row.width, config.projection, num_classes
  return Network(*sizes, row.loss == PROJECTED)


def row_loss(config, module: Network, row: Row):
  """The engine's loss of a row on batches (inputs, labels)."""

  def loss(params, model_state, batch, key):
    del model_state
    num_views = 2 if row.loss in (SIMCLR, BOTH) else 1
    keys = jax.random.split(key, num_views)
    views = [shift(key, batch.inputs, max_shift=config.max_shift) for key in keys]
    out = module.apply({"params": params}, jnp.concatenate(views))
    labels = jnp.tile(batch.labels, num_views)
    return training.LossOutput(_values(config, row, out, labels))

  return loss


def _values(config, row: Row, out: models.ConvOutput, labels: chex.Array) -> jax.Array:
  tau = config.temperature
  if row.loss == LOOK:
    options = {"num_neighbors": row.num_neighbors, "temperature": tau}
    return losses.leave_one_out_knn_loss(out.projection, labels, **options)
  if row.loss == SUPCON:
    return losses.supervised_contrastive_loss(out.projection, labels, temperature=tau)
  values = jnp.zeros(len(labels))
  if row.loss in (SIMCLR, BOTH):
    values += losses.nt_xent_loss(*jnp.split(out.projection, 2), temperature=tau)
  if row.has_head:
    smoothing = config.label_smoothing if row.loss == SMOOTHED else 0.0
    values += losses.label_smoothed_cross_entropy(out.logits, labels, label_smoothing=smoothing)
  return values


def num_steps_of(row: Row, num_steps: int) -> int:
  """Updates of a row: half of them with two views."""
  return num_steps // 2 if row.loss in (SIMCLR, BOTH) else num_steps


def pretrain(config, dataset: Dataset, row: Row, num_steps: int, key, problem: Problem):
  """Trains with every learning rate, and keeps the one that upstream validation rows prefer.

  Returns:
    By evaluation: "features" of probe and test rows; "spread" within the coarse classes; accuracies
    "upstream" and "upstream validation", by such labels as it learns from; the share of rows of a
    batch "without a positive" among their neighbors. A row that is `followed` is evaluated before
    training and along the way, another at its end alone. And the chosen "rate".
  """
  module, num_steps = network(config, dataset, row), num_steps_of(row, num_steps)
  rows = problem.labeled("train", row.labels)
  init_key, train_key = jax.random.split(key)
  start = Trained(module.init(init_key, rows.inputs[:1])["params"], {})
  look_at = functools.partial(evaluate, config, module, row, problem)

  def fit(rate):
    optimizer = adamw_cosine(rate, num_steps, weight_decay=config.weight_decay)
    sizes = {"num_steps": num_steps, "batch_size": config.batch_size}
    num_evaluations = config.num_evaluations if row.followed else 1
    options = {"evaluate": look_at, "eval_every": num_steps // num_evaluations}
    loss = row_loss(config, module, row)
    scores = train(train_key, module, loss, optimizer, rows, start=start, **sizes, **options).scores
    if not row.followed:
      return scores
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), look_at(start), scores)

  rates = jnp.array(config.learning_rates)
  found = jax.lax.map(fit, rates)
  last = found["upstream validation"][:, -1]
  best = jnp.argmax(jnp.where(jnp.isnan(last), -jnp.inf, last))
  return jax.tree.map(lambda x: x[best], found) | {"rate": rates[best]}


def evaluate(config, module: Network, row: Row, problem: Problem, trained: Trained):
  """What `pretrain` returns of one evaluation."""
  splits = {n: problem.labeled(n, row.labels) for n in ("train", "validation", "probe", "test")}
  outs = {
    name: predict(module, trained.variables, jnp.asarray(split.inputs))
    for name, split in splits.items()
    if name != "train" or not row.has_head
  }

  def accuracy(name):
    scores = outs[name].logits
    if not row.has_head:
      keys = outs["train"].projection, splits["train"].labels
      options = {"num_neighbors": row.num_neighbors, "temperature": config.temperature}
      scores = losses.knn_probabilities(outs[name].projection, *keys, **options, num_classes=2)
    return jnp.mean(agrees(scores, splits[name].labels))

  test = outs["test"].features
  coarse = problem.labeled("test", COARSE).labels
  inputs, labels = (jnp.asarray(x[: config.batch_size]) for x in splits["train"])
  batch = predict(module, trained.variables, inputs).projection
  return {
    "features": jnp.concatenate([outs["probe"].features, test]),
    "spread": jnp.mean(metrics.intra_class_spread(test, coarse, num_classes=2)),
    "upstream": accuracy("test"),
    "upstream validation": accuracy("validation"),
    "without a positive": without_positive(batch, labels, row.num_neighbors),
  }


def without_positive(features: chex.Array, labels: chex.Array, num_neighbors: int) -> jax.Array:
  """The share of rows of a batch none of whose nearest other rows has their label."""
  units = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
  cosines = jnp.where(jnp.eye(len(labels), dtype=bool), -jnp.inf, units @ units.T)
  _, nearest = jax.lax.top_k(cosines, min(num_neighbors, len(labels) - 1))
  return jnp.mean(~jnp.any(labels[nearest] == labels[:, None], axis=-1))
