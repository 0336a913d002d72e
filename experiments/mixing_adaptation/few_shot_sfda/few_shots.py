"""Fine-tuning on a few labeled target examples, with or without a linear probe before it."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import augmented
from experiments.kit.train import predict
from jaxlab import algorithms, data, metrics


class Shots(NamedTuple):
  """Draws of a few examples: keys, rows to train and to validate on, and which are left to test."""

  keys: chex.PRNGKey
  train: chex.Array
  validation: chex.Array
  rest: chex.Array


def draw_shots(key: chex.PRNGKey, config, labels, num_classes: int) -> Shots:
  """Draws for labels `[problems, n]`: arrays `[problems, draws, shots, ...]`."""
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
  return Shots(keys, *(np.reshape(np.stack(x), (*shape, -1)) for x in zip(*drawn)))


@functools.cache  # The scenarios of one network are one program, and so are the tunings.
def tune(config, module: nn.Module):
  """Builds `(key, (variables, target, shots, probe_rate)) -> {"best", "last"}`: `[draws, shots]`.

  Mean class accuracies, at the best and the last step, on all rows but those of the few examples.
  """

  def evaluate(key, problem) -> dict[str, jax.Array]:
    del key
    variables, (inputs, labels), shots, probe_rate = problem

    def one(shots):
      few = (Split(inputs[rows], labels[rows]) for rows in (shots.train, shots.validation))
      start = shots.keys, config, module, variables
      fit = functools.partial(probe_and_tune, *start, *few, probe_rate)
      tuned = jax.lax.map(fit, jnp.asarray(config.learning_rates, jnp.float32))
      # One labeled example per class chooses the learning rate.
      best = jnp.argmin(tuned.best_validation_loss)
      tested = jnp.where(shots.rest, labels, -1)

      def accuracy(params):
        chosen = jax.tree.map(lambda array: array[best], params)
        predictions = jnp.argmax(predict(module, chosen, inputs).logits, -1)
        return metrics.mean_class_accuracy(predictions, tested, num_classes=module.num_classes)

      return {"best": accuracy(tuned.params), "last": accuracy(tuned.last_params)}

    return jax.lax.map(lambda draw: jax.lax.map(one, draw), shots)

  return evaluate


def probe_and_tune(
  key, config, module, variables, train: Split, validation: Split, probe_rate, learning_rate
) -> algorithms.FineTuned:
  """Tunes head, then network on augmented copies of examples; a probe at a rate of 0 is none."""

  def train_fn(variables, inputs):
    outputs, state = module.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return outputs, {**variables, **state}

  key, jitter_key = jax.random.split(key)
  copies = Split(*(jnp.repeat(array, config.num_copies, axis=0) for array in train))
  copies = copies._replace(inputs=augmented(jitter_key, copies.inputs))
  return algorithms.linear_probe_fine_tune(
    *(key, module.apply, variables),
    *(optax.adam(probe_rate), optax.adam(learning_rate)),
    *(copies, validation),
    num_head_steps=config.num_head_steps,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    is_head=lambda path: path[:2] == ("params", "head"),
    trainable=lambda path: path[0] == "params",
    train_fn=train_fn,
  )
