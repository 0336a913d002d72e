"""Networks that read a sequence of labeled examples, and how they are trained and measured."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.bayes.gpicl import tasks
from experiments.kit.prior_fitting import fit_prior
from jaxlab import algorithms, metrics, models, samplers

TRANSFORMER, LSTM, OUTER = "transformer", "LSTM", "outer-product LSTM"
UNLIMITED, BIASED = "unlimited tasks", "unlimited tasks, biased start"
NAMED = "unlimited tasks, labels keep their names"

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Row(NamedTuple):
  """A network of the table, and its tasks.

  Attributes:
    architecture: what it is.
    num_tasks: how many there are; 0 for new ones in every sequence.
    bias: probability at the start that the labels of a task keep their names.
    until: updates after which it has fallen to 0, along a line.
  """

  architecture: str = TRANSFORMER
  num_tasks: int = 0
  bias: float = 0.0
  until: float = math.inf

  def setting(self, learning_rate: float) -> dict[str, float]:
    """What `measure` takes of it."""
    return {"learning_rate": learning_rate, "bias": self.bias, "until": self.until}


def rows_of(config) -> dict[str, Row]:
  """All rows that are trained."""
  return {
    **{f"{num} tasks": Row(num_tasks=num) for num in config.num_tasks},
    UNLIMITED: Row(),
    BIASED: Row(bias=config.bias, until=config.bias_share * config.num_steps),
    NAMED: Row(bias=1.0),
    LSTM: Row(LSTM),
    OUTER: Row(OUTER),
  }


def network(config, architecture: str) -> nn.Module:
  """The network, whose outputs are logits."""
  if architecture == LSTM:
    return models.InContextLSTM(config.num_classes, config.lstm_dim)
  if architecture == OUTER:
    return models.InContextOuterProductLSTM(config.num_classes, config.outer_dim)
  sizes = config.embed_dim, config.num_layers, config.num_heads
  length = config.sequence_length
  return models.InContextTransformer(config.num_classes, *sizes, max_length=length)


def size_of(config, architecture: str) -> dict[str, int]:
  """How many numbers of the past a prediction can read, and how many parameters there are."""
  kind, width, layers = {
    TRANSFORMER: ("transformer", config.embed_dim, config.num_layers),
    LSTM: ("lstm", config.lstm_dim, 1),
    OUTER: ("outer_product", config.outer_dim, 1),
  }[architecture]
  length, features = config.sequence_length, config.output_dim + config.num_classes
  sizes = {"num_layers": layers, "embed_dim": width, "sequence_length": length}
  init = functools.partial(network(config, architecture).init, jax.random.key(0))
  shapes = jax.eval_shape(init, jnp.zeros((1, length, features)))
  return {
    "state": metrics.accessible_state_size(kind, **sizes),
    "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
  }


def tokens_of(config, inputs: jax.Array, labels: jax.Array) -> jax.Array:
  """Each input beside the label of the example before it."""
  previous = samplers.previous_label_one_hot(labels, num_classes=config.num_classes)
  return jnp.concatenate([inputs, previous], axis=-1)


def optimizer(config, learning_rate) -> optax.GradientTransformation:
  """Adam with clipped gradients, its rate constant after a warm-up."""
  schedule = optax.warmup_constant_schedule(0.0, learning_rate, config.num_warmup)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def share_named(setting, step):
  """Probability that the labels of a task keep their names, after so many updates."""
  return setting["bias"] * jnp.maximum(0.0, 1 - step / setting["until"])


def measure(config, architecture: str, num_tasks: int, key, task, *, setting) -> dict:
  """Trains a network with a `Row.setting`, and measures it.

  Returns the scores of `tasks.score` along conditions, the losses on new tasks, that of the
  training, and how long the plateau was.
  """
  keys, module = tasks.keys_of(key), network(config, architecture)
  draw = functools.partial(tasks.sequences, config)

  def classify(params, inputs, labels, num_context=None):
    del num_context
    return module.apply({"params": params}, tokens_of(config, inputs, labels))

  def prior(key, *, step):
    kind = {"num_tasks": num_tasks, "task_key": keys.tasks}
    share = share_named(setting, step)
    return draw(key, task.train, config.batch_size, identity_prob=share, **kind)

  watched = draw(keys.watch, task.held_out, config.num_watched)

  def watch(params):
    return jnp.mean(cross_entropy(classify(params, *watched), watched.labels))

  update = optimizer(config, setting["learning_rate"])
  fitting = algorithms.prior_fitting(
    classify, update, prior, cross_entropy, max_context=1, scheduled=True
  )
  params = module.init(keys.init, tokens_of(config, *watched)[:1])["params"]
  options = {"num_steps": config.num_steps, "eval_every": config.eval_every}
  fit = fit_prior(keys.fit, fitting, params, evaluate=watch, **options)

  def of_condition(batch):
    return tasks.score(config, classify(fit.params, *batch), batch.labels)

  tenth = max(1, config.num_steps // 10)
  first = metrics.plateau_length(fit.scores, num_classes=config.num_classes, decay=0.0)
  plateau = jnp.minimum((first + 1) * config.eval_every, config.num_steps)
  left = (first < len(fit.scores)) & (plateau <= 0.6 * config.num_steps)
  return {
    **jax.lax.map(of_condition, tasks.test_sequences(config, keys, task, num_tasks)),
    "evaluation loss": fit.scores,
    "training loss": jnp.mean(fit.losses[-tenth:]),
    "training loss at half": jnp.mean(fit.losses[: config.num_steps // 2][-tenth:]),
    "plateau": plateau,
    "leaves the plateau in time": left.astype(jnp.float32),
    "bad_step": fit.bad_step,
  }
