"""Adaptation without labels: the source model, batch statistics, Tent and SHOT."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.source_model import augmented, forward_fn
from experiments.mixing_adaptation.few_shot_sfda.domains import Domains
from jaxlab import algorithms, metrics, training


class Problem(NamedTuple):
  """A source model, and the target that it adapts to; labels are for scores alone."""

  config: Any
  module: nn.Module
  variables: Any
  inputs: jax.Array
  labels: jax.Array

  @property
  def forward(self):
    """The network, by the statistics of each batch."""
    return forward_fn(self.module, {"batch_stats": self.variables["batch_stats"]})

  def score(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean class accuracy over the classes that the source knows."""
    known = self.module.num_classes
    return metrics.mean_class_accuracy(jnp.argmax(logits, -1), labels, num_classes=known)


def adapt(
  key: chex.PRNGKey, config, context, module: nn.Module, variables, domains: Domains
) -> dict[str, jax.Array]:
  """Mean class accuracy of every method without labels.

  Args:
    key: random key.
    config: the schedules.
    context: of the run.
    module: the network.
    variables: those of the source models, a leading axis of seeds.
    domains: of all seeds.

  Returns:
    method -> `[seeds, targets]`, for SHOT `[seeds, targets, rates]`.
  """
  shape = context.seeds, len(config.targets)
  variables, inputs, labels = jax.tree.map(jnp.asarray, (variables, domains.inputs, domains.labels))

  def evaluate(key, member):
    seed, target = member
    own = jax.tree.map(lambda x: x[seed], variables)
    problem = Problem(config, module, own, inputs[seed, target], labels[seed, target])
    return {method: fn(key, problem) for method, fn in METHODS.items()}

  members = tuple(axis.ravel() for axis in np.indices(shape))
  scores = training.over_seeds(
    key, evaluate, num_seeds=len(members[0]), arguments=members, mesh=context.mesh
  )
  return {method: x.reshape(*shape, *x.shape[1:]) for method, x in scores.items()}


def online(key: chex.PRNGKey, problem: Problem, *, make_adapter) -> jax.Array:
  """Accuracy of an adapter over one shuffled stream of the target."""
  config, inputs, labels = problem.config, problem.inputs, problem.labels
  order_key, key = jax.random.split(key)
  size = config.stream_batch_size
  order = jax.random.permutation(order_key, len(labels))[: len(labels) // size * size]
  batches = inputs[order].reshape(-1, size, *inputs.shape[1:])
  adapter = make_adapter(problem)
  _, infos = algorithms.adapt_stream(
    key, adapter, adapter.init(problem.variables["params"]), batches
  )
  return problem.score(infos.logits.reshape(len(order), -1), labels[order])


def _source(problem: Problem) -> algorithms.OnlineAdapter:
  state = {"batch_stats": problem.variables["batch_stats"]}
  return algorithms.norm_adaptation(forward_fn(problem.module, state, train=False))


def _batch_statistics(problem: Problem) -> algorithms.OnlineAdapter:
  return algorithms.norm_adaptation(problem.forward)


def _tent(problem: Problem) -> algorithms.OnlineAdapter:
  optimizer = optax.adam(problem.config.tent_learning_rate)
  return algorithms.entropy_minimization(problem.forward, optimizer)


def shot(key: chex.PRNGKey, problem: Problem) -> jax.Array:
  """Accuracy of SHOT at each learning rate, `[rates]`."""
  rates = jnp.asarray(problem.config.shot_learning_rates, jnp.float32)
  return jax.lax.map(functools.partial(_shot, key, problem), rates)


def _shot(key, problem: Problem, learning_rate) -> jax.Array:
  """SHOT: the head stays, the features learn from pseudo-labels that are renewed every epoch.

  Pseudo-labels and the last predictions use the statistics of the whole target, which the running
  ones would come to. All but the last block learn at a tenth of the rate, as the authors' backbone
  does below its bottleneck.
  """
  config, inputs, labels = problem.config, problem.inputs, problem.labels
  last = f"_{len(config.widths) - 1}"
  optimizer = optax.chain(
    optax.add_decayed_weights(1e-3),
    optax.trace(0.9, nesterov=True),
    optax.masked(
      optax.scale(0.1),
      lambda params: {name: not name.endswith(last) for name in params},
    ),
    optax.scale_by_learning_rate(learning_rate),
  )
  adapter = algorithms.information_maximization_adaptation(
    problem.forward, optimizer, trainable=lambda path: path[0] != "head"
  )
  size = config.shot_batch_size
  num_batches = len(labels) // size

  def epoch(state, key):
    order_key, jitter_key, key = jax.random.split(key, 3)
    outputs = problem.forward(state.params, inputs)
    pseudo = algorithms.centroid_pseudo_labels(outputs.features, jax.nn.softmax(outputs.logits))
    order = jax.random.permutation(order_key, len(labels))[: num_batches * size]
    rows = augmented(jitter_key, inputs)[order], pseudo[order]
    batches, targets = (x.reshape(num_batches, size, *x.shape[1:]) for x in rows)
    state, _ = algorithms.adapt_stream(key, adapter, state, batches, targets)
    return state, None

  state = adapter.init(problem.variables["params"])
  state, _ = jax.lax.scan(epoch, state, jax.random.split(key, config.shot_epochs))
  return problem.score(problem.forward(state.params, inputs).logits, labels)


METHODS = {
  "source": functools.partial(online, make_adapter=_source),
  "batch statistics": functools.partial(online, make_adapter=_batch_statistics),
  "Tent": functools.partial(online, make_adapter=_tent),
  "SHOT": shot,
}
