"""Fine-tuning on a few labeled target examples, with or without a linear probe before it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.source_model import augmented
from experiments.kit.train import predict
from experiments.mixing_adaptation.few_shot_sfda.domains import Domains
from jaxlab import algorithms, data, metrics, training


def tune(
  key: chex.PRNGKey, config, context, module: nn.Module, variables, domains: Domains
) -> dict[str, dict[str, jax.Array]]:
  """Mean class accuracy on all other rows of the target.

  Args:
    key: random key.
    config: the schedules.
    context: of the run.
    module: the network.
    variables: those of the source models, a leading axis of seeds.
    domains: of all seeds.

  Returns:
    tuning -> `best` and `last` step -> `[seeds, targets, draws, shots]`.
  """
  grid = context.seeds, len(config.targets), config.draws, len(config.shots)
  seed, target, draw, shots = (axis.ravel() for axis in np.indices(grid))
  known = module.num_classes
  splits = [
    data.few_shot_split(k, domains.labels[s, t], num_classes=known, num_shots=config.shots[n])
    for k, s, t, n in zip(jax.random.split(key, len(seed)), seed, target, shots)
  ]
  # Repeated rows make one program of all numbers of shots.
  train = np.stack([np.resize(split.train, known * max(config.shots)) for split in splits])
  validation = np.stack([split.validation for split in splits])
  rest = np.stack([split.rest for split in splits])
  variables, inputs, labels = jax.tree.map(jnp.asarray, (variables, domains.inputs, domains.labels))

  def evaluate(fine_tune, key, member):
    seed, target, train, validation, rest = member
    x, y = inputs[seed, target], labels[seed, target]
    own = jax.tree.map(lambda array: array[seed], variables)
    sets = Split(x[train], y[train]), Split(x[validation], y[validation])
    tuned = jax.lax.map(
      lambda rate: few_shot_tuning(key, fine_tune, config, module, own, *sets, rate),
      jnp.asarray(config.learning_rates, jnp.float32),
    )
    # One labeled example per class chooses the learning rate.
    best = jnp.argmin(tuned.best_validation_loss)
    accuracies = {}
    for step, params in (("best", tuned.params), ("last", tuned.last_params)):
      chosen = jax.tree.map(lambda array: array[best], params)
      predictions = jnp.argmax(predict(module, chosen, x).logits, -1)
      accuracies[step] = metrics.mean_class_accuracy(
        predictions, jnp.where(rest, y, -1), num_classes=known
      )
    return accuracies

  members, results = (seed, target, train, validation, rest), {}
  for name, fine_tune in TUNINGS.items():
    scores = training.over_seeds(
      key,
      functools.partial(evaluate, fine_tune),
      num_seeds=len(seed),
      arguments=members,
      mesh=context.mesh,
    )
    results[name] = {step: x.reshape(grid) for step, x in scores.items()}
  return results


def few_shot_tuning(
  key: chex.PRNGKey,
  fine_tune,
  config,
  module: nn.Module,
  variables: chex.ArrayTree,
  train: Split,
  validation: Split,
  learning_rate: chex.Numeric,
) -> algorithms.FineTuned:
  """Fine-tunes a source model on augmented copies of a few target examples.

  Args:
    key: of the copies and the order of examples.
    fine_tune: one of `TUNINGS`.
    config: the schedule.
    module: the network.
    variables: parameters and running statistics of the source.
    train: the few examples.
    validation: one example per class.
    learning_rate: Adam's.
  """

  def train_fn(variables, inputs):
    outputs, state = module.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return outputs, {**variables, **state}

  key, jitter_key = jax.random.split(key)
  copies = Split(*(jnp.repeat(array, config.num_copies, axis=0) for array in train))
  copies = copies._replace(inputs=augmented(jitter_key, copies.inputs))
  return fine_tune(
    config,
    (key, module.apply, variables),
    (optax.adam(learning_rate), copies, validation),
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    trainable=lambda path: path[0] == "params",
    train_fn=train_fn,
  )


def _whole(config, start, rest, **options):
  return algorithms.fine_tune(*start, *rest, **options)


def _probed(config, start, rest, **options):
  return algorithms.linear_probe_fine_tune(
    *start,
    optax.adam(config.head_learning_rate),
    *rest,
    num_head_steps=config.num_head_steps,
    is_head=lambda path: path[:2] == ("params", "head"),
    **options,
  )


TUNINGS = {"FT": _whole, "LP-FT": _probed}
