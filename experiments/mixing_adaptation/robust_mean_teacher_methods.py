"""The source model, and the methods that adapt it, each as `init` and `update`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments import classification
from experiments.mixing_adaptation import robust_mean_teacher_tasks as tasks
from jaxlab import algorithms, losses, models


class Source(NamedTuple):
  """A trained source model: variables of the network, prototypes of its classes, clean error."""

  params: Any
  model_state: Any
  prototypes: jax.Array
  clean_error: jax.Array


class Method(NamedTuple):
  """An adapter and the state it begins with; whether it replays source data."""

  adapter: algorithms.OnlineAdapter
  start: Callable[[], Any]
  replays: bool = False


def train_source(config, task: tasks.Task, key) -> Source:
  """Trains the source model with running statistics, or reads it."""
  inputs = jnp.asarray(task.train.inputs)
  if config.checkpoint:
    variables = models.load_vision_checkpoint(config.checkpoint, task.module)
    trained = classification.Trained(variables.pop("params"), variables)
  else:

    def loss(apply, key, batch):
      del key
      logits = apply(tasks.as_inputs(batch.inputs)).logits
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    start_key, key = jax.random.split(key)
    variables = dict(task.module.init(start_key, tasks.as_inputs(inputs[: config.batch_size])))
    trained = classification.train(
      key,
      task.module,
      classification.classification_loss(task.module, loss),
      optax.adamw(config.train_learning_rate),
      task.train,
      num_steps=config.train_steps,
      batch_size=config.batch_size,
      start=classification.Trained(variables.pop("params"), variables),
    )
  whole = len(inputs) // config.batch_size * config.batch_size
  batches = inputs[:whole].reshape(-1, config.batch_size, *inputs.shape[1:])
  forward = functools.partial(_forward(task, trained.model_state, train=True), trained.params)
  features = jax.lax.map(lambda batch: forward(batch).features, batches)
  prototypes = losses.class_prototypes(
    features.reshape(whole, -1), jnp.asarray(task.train.labels)[:whole], num_classes=10
  )
  stored = _forward(task, trained.model_state, train=False)
  logits = jax.lax.map(
    lambda row: stored(trained.params, row[None]).logits[0],
    jnp.asarray(task.test.inputs),
    batch_size=config.batch_size,
  )
  error = jnp.mean(jnp.argmax(logits, -1) != task.test.labels)
  return Source(trained.params, trained.model_state, prototypes, error)


def _forward(task, model_state, *, train: bool):
  """`(params, inputs) -> outputs`, by the statistics of the batch or the stored ones."""

  def forward(params, inputs):
    variables = {"params": params, **model_state}
    return task.module.apply(variables, tasks.as_inputs(inputs), train=train)

  return forward


def method_names(config) -> list[str]:
  """Every method, in the order of the table."""
  tents = [_tent(rate) for rate in config.tent_learning_rates]
  teachers = ["CoTTA", "mean teacher, CE", "mean teacher, SCE", "RMT", "RMT + source"]
  return ["source", "norm adaptation", *tents, *teachers]


def _tent(rate: float) -> str:
  return f"TENT lr={rate:g}"


def make_method(config, task: tasks.Task, name: str, key, source: Source) -> Method:
  """Builds a method by its name; the mean teachers warm up on source batches at the start."""
  forward = _forward(task, source.model_state, train=True)
  adam = optax.adam(config.learning_rate)

  def plain(adapter):
    return Method(adapter, lambda: adapter.init(source.params))

  if name == "source":
    return plain(algorithms.norm_adaptation(_forward(task, source.model_state, train=False)))
  if name == "norm adaptation":
    return plain(algorithms.norm_adaptation(forward))
  for rate in config.tent_learning_rates:
    if name == _tent(rate):
      return plain(algorithms.entropy_minimization(forward, optax.adam(rate)))

  init_key, order_key = jax.random.split(key)
  rows = classification.epoch_rows(
    order_key,
    len(task.train.labels),
    num_steps=config.warm_up_steps,
    batch_size=config.batch_size,
  )

  def warmed(state, alpha):
    return algorithms.mean_teacher_warm_up(
      forward,
      optax.adam(lambda step: config.learning_rate * (step + 1) / config.warm_up_steps),
      state,
      jnp.asarray(task.train.inputs)[rows],
      alpha=alpha,
      decay=config.decay,
    )

  def augment_fn(key, inputs):
    return task.augment(key, tasks.as_inputs(inputs))

  if name == "CoTTA":
    adapter = algorithms.continual_mean_teacher(
      forward,
      augment_fn,
      adam,
      decay=config.decay,
      num_augmentations=config.num_augmentations,
      confidence_threshold=config.confidence_threshold,
      restore_prob=config.restore_prob,
    )
    return Method(adapter, lambda: warmed(adapter.init(source.params), 0.0))

  alpha = 0.0 if name == "mean teacher, CE" else 0.5
  contrasts, replays = name.startswith("RMT"), name == "RMT + source"
  project = projector(config)
  adapter = algorithms.robust_mean_teacher(
    forward,
    augment_fn,
    adam,
    prototypes=source.prototypes,
    project_fn=project.apply,
    alpha=alpha,
    decay=config.decay,
    contrastive_weight=float(contrasts),
    source_weight=float(replays),
  )

  def start():
    projector_params = project.init(init_key, source.prototypes)
    return warmed(adapter.init(source.params, projector_params), alpha)

  return Method(adapter, start, replays)


def projector(config) -> nn.Module:
  """The two layers before the contrastive loss."""
  return nn.Sequential(
    [nn.Dense(config.projector_width), nn.relu, nn.Dense(config.projector_width)]
  )
