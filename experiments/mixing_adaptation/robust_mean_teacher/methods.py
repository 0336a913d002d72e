"""The source model, the methods that adapt it, each as `init` and `update`, and their errors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import forward_fn
from experiments.kit.train import Trained, classification_loss, epoch_rows, predict, train
from jaxlab import algorithms, augment, losses, models

SOURCE, NORM, TENT, COTTA = "source", "norm adaptation", "TENT", "CoTTA"
PLAIN, SYMMETRIC = "mean teacher, CE", "mean teacher, SCE"
RMT, REPLAY = "RMT", "RMT + source"


class Problem(NamedTuple):
  """What a method may use.

  Attributes:
    config: the experiment's.
    source: what `train_source` gave.
    train: source data.
    setting: its learning rate, and what tells mean teachers apart; may be traced.
    key: of what the method draws before the stream.
  """

  config: Any
  source: Mapping[str, Any]
  train: Split
  setting: Mapping[str, chex.Numeric]
  key: chex.PRNGKey

  @property
  def forward(self) -> Callable:
    """The network, by the statistics of each batch."""
    return forward_fn(network(self.config), self.source["model_state"])


class Method(NamedTuple):
  """An adapter, how the state is made that it begins with, and whether it replays source data."""

  adapter: algorithms.OnlineAdapter
  start: Callable[[], Any]
  replays: bool = False


def network(config) -> nn.Module:
  """The network of a data set."""
  if config.dataset == "mnist1d":
    return models.ConvNet(10, widths=config.widths, strides=(2,) * len(config.widths))
  return models.WideResNet(10, depth=config.depth, widen_factor=config.widen_factor)


def train_source(key: chex.PRNGKey, splits: tuple[Split, Split], *, config) -> dict[str, Any]:
  """Trains the source model with running statistics, or reads it; prototypes of its classes."""
  rows, test = splits
  module = network(config)
  if config.checkpoint:
    variables = models.load_vision_checkpoint(config.checkpoint, module)
    trained = Trained(variables.pop("params"), variables)
  else:
    start_key, key = jax.random.split(key)
    variables = dict(module.init(start_key, rows.inputs[: config.batch_size]))
    trained = train(
      key,
      module,
      classification_loss(module),
      optax.adamw(config.train_learning_rate),
      rows,
      num_steps=config.train_steps,
      batch_size=config.batch_size,
      start=Trained(variables.pop("params"), variables),
    )
  whole = len(rows.inputs) // config.batch_size * config.batch_size
  batches = rows.inputs[:whole].reshape(-1, config.batch_size, *rows.inputs.shape[1:])
  forward = functools.partial(forward_fn(module, trained.model_state), trained.params)
  features = jax.lax.map(lambda batch: forward(batch).features, batches)
  prototypes = losses.class_prototypes(
    features.reshape(whole, -1), rows.labels[:whole], num_classes=10
  )
  predictions = jnp.argmax(predict(module, trained.variables, test.inputs).logits, -1)
  return {
    "params": trained.params,
    "model_state": trained.model_state,
    "prototypes": prototypes,
    "clean error": jnp.mean(predictions != test.labels),
  }


def projector(config) -> nn.Module:
  """The two layers before the contrastive loss."""
  return nn.Sequential(
    [nn.Dense(config.projector_width), nn.relu, nn.Dense(config.projector_width)]
  )


def _plain(problem: Problem, adapter: algorithms.OnlineAdapter) -> Method:
  return Method(adapter, lambda: adapter.init(problem.source["params"]))


def _source(problem: Problem) -> Method:
  module, model_state = network(problem.config), problem.source["model_state"]
  return _plain(problem, algorithms.norm_adaptation(forward_fn(module, model_state, train=False)))


def _norm_adaptation(problem: Problem) -> Method:
  return _plain(problem, algorithms.norm_adaptation(problem.forward))


def _tent(problem: Problem) -> Method:
  optimizer = optax.adam(problem.setting["learning_rate"])
  return _plain(problem, algorithms.entropy_minimization(problem.forward, optimizer))


def _cotta(problem: Problem) -> Method:
  config = problem.config
  adapter = algorithms.continual_mean_teacher(
    problem.forward,
    jitter(config),
    optax.adam(problem.setting["learning_rate"]),
    decay=config.decay,
    num_augmentations=config.num_augmentations,
    confidence_threshold=config.confidence_threshold,
    restore_prob=config.restore_prob,
  )
  return Method(adapter, lambda: _warmed(problem, adapter.init(problem.source["params"]), 0.0))


def _mean_teacher(problem: Problem, *, source_weight: float = 0.0) -> Method:
  config, project = problem.config, projector(problem.config)
  prototypes, alpha = problem.source["prototypes"], problem.setting["alpha"]
  adapter = algorithms.robust_mean_teacher(
    problem.forward,
    jitter(config),
    optax.adam(problem.setting["learning_rate"]),
    prototypes=prototypes,
    project_fn=project.apply,
    alpha=alpha,
    decay=config.decay,
    contrastive_weight=problem.setting["contrastive_weight"],
    source_weight=source_weight,
  )

  def start():
    projector_params = project.init(jax.random.split(problem.key)[0], prototypes)
    return _warmed(problem, adapter.init(problem.source["params"], projector_params), alpha)

  return Method(adapter, start, replays=source_weight > 0)


def jitter(config) -> Callable:
  """The augmentation of the mean teachers."""
  return augment.jitter_signals if config.dataset == "mnist1d" else augment.jitter_images


def _warmed(problem: Problem, state, alpha: float):
  """The state after some source batches, on which the rate rises to that of the stream."""
  config = problem.config
  rows = epoch_rows(
    jax.random.split(problem.key)[1],
    len(problem.train.labels),
    num_steps=config.warm_up_steps,
    batch_size=config.batch_size,
  )
  return algorithms.mean_teacher_warm_up(
    problem.forward,
    optax.adam(lambda step: problem.setting["learning_rate"] * (step + 1) / config.warm_up_steps),
    state,
    problem.train.inputs[rows],
    alpha=alpha,
    decay=config.decay,
  )


# How adapters are made. What differs within one is traced, so that it is one program.
ADAPTERS: dict[str, Callable[[Problem], Method]] = {
  SOURCE: _source,
  NORM: _norm_adaptation,
  TENT: _tent,
  COTTA: _cotta,
  "mean teacher": _mean_teacher,
  "mean teacher with replay": functools.partial(_mean_teacher, source_weight=1.0),
}

_FULL = {"alpha": 0.5, "contrastive_weight": 1.0}
# Adapter -> its methods -> what they set.
METHODS: dict[str, dict[str, dict[str, float]]] = {
  **{method: {method: {}} for method in (SOURCE, NORM, TENT, COTTA)},
  "mean teacher": {
    PLAIN: {"alpha": 0.0, "contrastive_weight": 0.0},
    SYMMETRIC: {"alpha": 0.5, "contrastive_weight": 0.0},
    RMT: _FULL,
  },
  "mean teacher with replay": {REPLAY: _FULL},
}


def online_errors(config, adapter: str, key, data, *, setting) -> dict[str, jax.Array]:
  """Share of wrong predictions in each batch of each stream, `[m]`, and the size of the state.

  All streams run in one scan, in which the state begins anew where a stream says so.
  """
  source, train, streams = data
  method_key, adapt_key, replay_key = jax.random.split(key, 3)
  stream = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *streams.values())
  problem = Problem(config, source, train, setting, method_key)
  adapter, start, replays = ADAPTERS[adapter](problem)
  first = start()

  def update(key, state, row, *extra):
    inputs, labels, reset = row
    state = jax.tree.map(functools.partial(jnp.where, reset), first, state)
    state, info = adapter.update(key, state, inputs, *extra)
    return state, jnp.mean(jnp.argmax(info.logits, -1) != labels)

  source_batches = None
  if replays:
    rows = epoch_rows(
      replay_key, len(train.labels), num_steps=len(stream.labels), batch_size=config.batch_size
    )
    source_batches = tuple(array[rows] for array in train)
  resetting = algorithms.OnlineAdapter(start, update)
  _, wrong = algorithms.adapt_stream(adapt_key, resetting, first, stream, source_batches)
  ends = np.cumsum([len(part.labels) for part in streams.values()])[:-1]
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first))
  return {"state bytes": jnp.float32(size), **dict(zip(streams, jnp.split(wrong, ends)))}
