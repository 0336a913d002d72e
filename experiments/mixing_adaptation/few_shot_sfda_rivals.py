"""Adaptation without labels: batch statistics, Tent and SHOT."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification
from experiments.members import over_members
from experiments.mixing_adaptation.few_shot_sfda_domains import augmented, network, num_known
from jaxlab import algorithms, metrics


def adapt_unlabelled(config, context, domains, scenario, key, variables) -> dict:
  """Mean class accuracy of every method without labels, `[seeds, targets]` each."""
  shape = context.seeds, len(config.targets)
  variables, inputs, labels = jax.tree.map(jnp.asarray, (variables, domains.inputs, domains.labels))

  def task(member):
    key, seed, target = member[:3]
    params = jax.tree.map(lambda x: x[seed], variables)
    return key, params, inputs[seed, target], labels[seed, target]

  seed, target = (axis.ravel() for axis in np.indices(shape))
  keys = jax.random.split(jax.random.fold_in(key, 1), len(seed))
  online = over_members(
    lambda member: _online(config, scenario, *task(member)), (keys, seed, target), context.mesh
  )
  found = {method: values.reshape(shape) for method, values in online.items()}
  rates = config.shot_learning_rates
  seed, target, rate = (axis.ravel() for axis in np.indices((*shape, len(rates))))
  keys = keys[np.ravel_multi_index((seed, target), shape)]
  members = keys, seed, target, np.asarray(rates, np.float32)[rate]
  shot = over_members(
    lambda member: _shot(config, scenario, *task(member), member[3]), members, context.mesh
  ).reshape(*shape, len(rates))
  names = ["SHOT", *(f"SHOT, learning rate {rate:g}" for rate in rates[1:])]
  return found | {name: shot[..., i] for i, name in enumerate(names)}


def _online(config, scenario, key, variables, inputs, labels) -> dict:
  """The source model, batch statistics, and Tent, over one shuffled stream."""
  module, known = network(config, scenario), num_known(config, scenario)
  order_key, key = jax.random.split(key)
  size = config.stream_batch_size
  order = jax.random.permutation(order_key, len(labels))[: len(labels) // size * size]
  batches = inputs[order].reshape(-1, size, *inputs.shape[1:])
  forward = _by_batch_statistics(module, variables)
  adapters = {
    "batch statistics": algorithms.norm_adaptation(forward),
    "Tent": algorithms.entropy_minimization(forward, optax.adam(config.tent_learning_rate)),
  }
  logits = {"source": classification.predict(module, variables, inputs).logits[order]}
  for method, adapter in adapters.items():
    state = adapter.init(variables["params"])
    _, infos = algorithms.adapt_stream(key, adapter, state, batches)
    logits[method] = infos.logits.reshape(len(order), -1)
  return {
    method: metrics.mean_class_accuracy(jnp.argmax(z, -1), labels[order], num_classes=known)
    for method, z in logits.items()
  }


def _by_batch_statistics(module, variables):
  """Normalises by the batch it sees; the running statistics stay as they are."""

  def forward(params, inputs):
    return module.apply({**variables, "params": params}, inputs, train=True)

  return forward


def _shot(config, scenario, key, variables, inputs, labels, learning_rate) -> jax.Array:
  """SHOT: the head stays, the features learn from pseudo-labels that are renewed every epoch.

  Pseudo-labels and the last predictions use the statistics of the whole target, which the running
  ones would come to. All but the last block learn at a tenth of the rate, as the authors' backbone
  does below its bottleneck.
  """
  module, known = network(config, scenario), num_known(config, scenario)
  forward = _by_batch_statistics(module, variables)
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
    forward, optimizer, trainable=lambda path: path[0] != "head"
  )
  size = config.shot_batch_size
  num_batches = len(labels) // size

  def epoch(state, key):
    order_key, jitter_key, key = jax.random.split(key, 3)
    outputs = forward(state.params, inputs)
    pseudo = algorithms.centroid_pseudo_labels(outputs.features, jax.nn.softmax(outputs.logits))
    order = jax.random.permutation(order_key, len(labels))[: num_batches * size]
    rows = augmented(jitter_key, inputs)[order], pseudo[order]
    batches, targets = (x.reshape(num_batches, size, *x.shape[1:]) for x in rows)
    state, _ = algorithms.adapt_stream(key, adapter, state, batches, targets)
    return state, None

  state = adapter.init(variables["params"])
  state, _ = jax.lax.scan(epoch, state, jax.random.split(key, config.shot_epochs))
  predictions = jnp.argmax(forward(state.params, inputs).logits, -1)
  return metrics.mean_class_accuracy(predictions, labels, num_classes=known)
