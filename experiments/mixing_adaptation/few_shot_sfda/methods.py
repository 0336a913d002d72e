"""Adaptation without labels, and fine-tuning on a few labeled target examples."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import augmented, forward_fn
from experiments.kit.train import nan_unless, predict
from jaxlab import algorithms, data, metrics


def accuracy(module: nn.Module, logits, labels) -> jax.Array:
  """Mean accuracy over the classes that the source knows; NaN for logits that are no numbers."""
  predictions = jnp.argmax(logits, -1)
  mean = metrics.mean_class_accuracy(predictions, labels, num_classes=module.num_classes)
  return nan_unless(jnp.all(jnp.isfinite(jnp.max(logits, -1))), mean)


# ---------------------------------------------------------------------------------- without labels


@functools.cache  # The scenarios of one network are one program.
def adapt(config, module: nn.Module):
  """Builds `(key, (variables, target, shots)) -> method -> mean class accuracy`, `[]` or `[draws]`.

  SHOT takes the learning rate that the labeled validation rows of a draw of the most shots prefer,
  as fine-tuning does, and is tested on the rows that fine-tuning is tested on.
  """

  def evaluate(key: chex.PRNGKey, problem) -> dict[str, jax.Array]:
    variables, (inputs, labels), shots = problem
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    by_stored, by_batch = (forward_fn(module, state, train=train) for train in (False, True))
    order_key, stream_key = jax.random.split(key)
    size = config.stream_batch_size
    order = jax.random.permutation(order_key, len(labels))[: len(labels) // size * size]
    batches = inputs[order].reshape(-1, size, *inputs.shape[1:])

    def online(adapter):
      start = adapter.init(params)
      _, infos = algorithms.adapt_stream(stream_key, adapter, start, batches)
      return accuracy(module, infos.logits.reshape(len(order), -1), labels[order])

    def shot_logits(rate):
      return shot(key, config, by_batch, params, inputs, rate)

    tried = jax.lax.map(shot_logits, jnp.asarray(config.shot_learning_rates, jnp.float32))

    def chosen(draw):
      *_, validation, rest = jax.tree.map(lambda x: x[-1], draw)
      likelihood = jax.nn.log_softmax(tried[:, validation])
      of_labels = likelihood[:, jnp.arange(len(validation)), labels[validation]]
      best = jnp.nanargmax(jnp.mean(of_labels, 1))
      return accuracy(module, tried[best], jnp.where(rest, labels, -1))

    return {
      "source": online(algorithms.norm_adaptation(by_stored)),
      "batch statistics": online(algorithms.norm_adaptation(by_batch)),
      "Tent": online(algorithms.entropy_minimization(by_batch, optax.adam(1e-3))),
      "SHOT": jax.lax.map(chosen, shots),
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
  size = 64
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


# -------------------------------------------------------------------------------------- few labels


def draw_shots(key: chex.PRNGKey, config, labels, num_classes: int):
  """Draws of the few for labels `[problems, n]`: arrays `[problems, draws, shots, ...]`.

  They are keys, rows to train and to validate on, and which rows are left to test.
  """
  shape = len(labels), config.draws, len(config.shots)
  keys = jax.random.split(key, shape)
  drawn = []
  for problem, draw, n in np.ndindex(shape):
    split = data.few_shot_split(
      keys[problem, draw, n], labels[problem], num_classes=num_classes, num_shots=config.shots[n]
    )
    # Repeated rows make one program of all numbers of shots.
    train = np.resize(split.train, num_classes * max(config.shots))
    drawn.append((train, split.validation, split.rest))
  return keys, *(np.reshape(np.stack(x), (*shape, -1)) for x in zip(*drawn))


@functools.cache  # The scenarios of one network are one program, and so are the tunings.
def tune(config, module: nn.Module):
  """Builds `(key, (variables, target, shots, probe_rate)) -> {"best", "last"}`: `[draws, shots]`.

  Head, then network learn from augmented copies of the few examples. Mean class accuracies, at the
  best and the last step, on all other rows.
  """

  def train_fn(variables, inputs):
    outputs, state = module.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return outputs, {**variables, **state}

  def evaluate(key, problem) -> dict[str, jax.Array]:
    del key
    variables, (inputs, labels), shots, probe_rate = problem

    def one(shots):
      few_key, train, validation, rest = shots
      key, jitter_key = jax.random.split(few_key)
      rows = jnp.repeat(train, config.num_copies, axis=0)
      copies = Split(augmented(jitter_key, inputs[rows]), labels[rows])

      def fit(learning_rate):
        # A probe at a rate of 0 is none.
        return algorithms.linear_probe_fine_tune(
          *(key, module.apply, variables),
          *(optax.adam(probe_rate), optax.adam(learning_rate)),
          *(copies, Split(inputs[validation], labels[validation])),
          num_head_steps=config.num_head_steps,
          num_steps=config.num_steps,
          batch_size=config.batch_size,
          is_head=lambda path: path[:2] == ("params", "head"),
          trainable=lambda path: path[0] == "params",
          train_fn=train_fn,
        )

      tuned = jax.lax.map(fit, jnp.asarray(config.learning_rates, jnp.float32))
      # One labeled example per class chooses the learning rate.
      best = jnp.nanargmin(tuned.best_validation_loss)

      def tested(params):
        logits = predict(module, jax.tree.map(lambda x: x[best], params), inputs).logits
        return accuracy(module, logits, jnp.where(rest, labels, -1))

      return {"best": tested(tuned.params), "last": tested(tuned.last_params)}

    return jax.lax.map(lambda draw: jax.lax.map(one, draw), shots)

  return evaluate
