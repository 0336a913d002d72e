"""Adaptation without labels: the source model, batch statistics, Tent and SHOT."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.source_model import augmented, forward_fn
from jaxlab import algorithms, metrics


@functools.cache  # The scenarios of one network are one program.
def adapt(config, module: nn.Module):
  """Builds `(key, (variables, target)) -> method -> mean class accuracy []`, of SHOT `[rates]`."""

  def evaluate(key: chex.PRNGKey, problem) -> dict[str, jax.Array]:
    variables, (inputs, labels) = problem
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    by_stored, by_batch = (forward_fn(module, state, train=train) for train in (False, True))
    order_key, stream_key = jax.random.split(key)
    size = config.stream_batch_size
    order = jax.random.permutation(order_key, len(labels))[: len(labels) // size * size]
    batches = inputs[order].reshape(-1, size, *inputs.shape[1:])

    def score(logits, labels):
      known = module.num_classes
      return metrics.mean_class_accuracy(jnp.argmax(logits, -1), labels, num_classes=known)

    def online(adapter):
      start = adapter.init(params)
      _, infos = algorithms.adapt_stream(stream_key, adapter, start, batches)
      return score(infos.logits.reshape(len(order), -1), labels[order])

    def shot_score(rate):
      return score(shot(key, config, by_batch, params, inputs, rate), labels)

    tent = algorithms.entropy_minimization(by_batch, optax.adam(config.tent_learning_rate))
    return {
      "source": online(algorithms.norm_adaptation(by_stored)),
      "batch statistics": online(algorithms.norm_adaptation(by_batch)),
      "Tent": online(tent),
      "SHOT": jax.lax.map(shot_score, jnp.asarray(config.shot_learning_rates, jnp.float32)),
    }

  return evaluate


def shot(key, config, forward, params, inputs, learning_rate: chex.Numeric) -> jax.Array:
  """SHOT's predictions: the head stays, the features learn from pseudo-labels renewed every epoch.

  Pseudo-labels and the last predictions use the statistics of the whole target, which the running
  ones would come to. All but the last block learn at a tenth of the rate, as the authors' backbone
  does below its bottleneck.
  """
  last = f"_{len(config.widths) - 1}"
  optimizer = optax.chain(
    optax.add_decayed_weights(1e-3),
    optax.trace(0.9, nesterov=True),
    optax.masked(
      optax.scale(0.1), lambda params: {name: not name.endswith(last) for name in params}
    ),
    optax.scale_by_learning_rate(learning_rate),
  )
  adapter = algorithms.information_maximization_adaptation(
    forward, optimizer, trainable=lambda path: path[0] != "head"
  )
  size = config.shot_batch_size
  num_batches = len(inputs) // size

  def epoch(state, key):
    order_key, jitter_key, key = jax.random.split(key, 3)
    outputs = forward(state.params, inputs)
    pseudo = algorithms.centroid_pseudo_labels(outputs.features, jax.nn.softmax(outputs.logits))
    order = jax.random.permutation(order_key, len(inputs))[: num_batches * size]
    rows = augmented(jitter_key, inputs)[order], pseudo[order]
    batches, targets = (x.reshape(num_batches, size, *x.shape[1:]) for x in rows)
    state, _ = algorithms.adapt_stream(key, adapter, state, batches, targets)
    return state, None

  keys = jax.random.split(key, config.shot_epochs)
  state, _ = jax.lax.scan(epoch, adapter.init(params), keys)
  return forward(state.params, inputs).logits
