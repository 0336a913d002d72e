"""The methods: whom each mixes, what is searched over, the training of one network."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.sweep import choose_for_all, grid
from experiments.kit.train import classification_loss, predict, train
from jaxlab import augment
from jaxlab.experiment import Context, Results

PLAIN, MIXUP, INPUTS, MAIN = "no mixing", "mixup", "near inputs", "C-Mixup"
ANY = "any partner, all else equal"


class Setting(NamedTuple):
  """What is searched over; a bandwidth of infinity ignores what it measures."""

  learning_rate: chex.Numeric = 1e-3
  weight_decay: chex.Numeric = 0.0
  mixes: chex.Numeric = 1.0  # 1, or 0: the ratio of all pairs is 1.
  alpha: chex.Numeric = 1.0
  bandwidth: chex.Numeric = np.inf  # Of targets.
  feature_bandwidth: chex.Numeric = np.inf  # Of inputs.


class Task(NamedTuple):
  """Splits with standardized targets `[n, 1]`; `mean` and `scale` undo that."""

  train: Split
  validation: Split
  test: Split
  mean: chex.Array
  scale: chex.Array


def search_space(config, learning_rate: float) -> dict[str, list[Setting]]:
  """Equally many settings of each method; without mixing, all go to the weight decay."""
  at = functools.partial(Setting, learning_rate=learning_rate)
  decays, near = config.weight_decays, list(itertools.product(config.bandwidths, config.alphas))
  space = {
    PLAIN: [at(weight_decay=decay, mixes=0.0) for decay in config.plain_weight_decays],
    MIXUP: [at(weight_decay=decay, alpha=a) for decay in decays for a in config.mixup_alphas],
    INPUTS: [
      at(weight_decay=decay, alpha=a, feature_bandwidth=width)
      for decay in decays
      for width, a in near
    ],
    MAIN: [
      at(weight_decay=decay, alpha=a, bandwidth=width) for decay in decays for width, a in near
    ],
  }
  sizes = {method: len(own) for method, own in space.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"searches must be of equal size, got {sizes}.")
  return space


def similarity_features(inputs: chex.Array, targets: chex.Array, setting: Setting) -> jax.Array:
  """Coordinates in which a bandwidth of 1 is what the setting says.

  Distances of d standardized features grow as the root of d, and their bandwidth with them.
  """
  inputs = inputs.reshape(inputs.shape[0], -1)
  reach = setting.feature_bandwidth * np.sqrt(inputs.shape[1])
  return jnp.concatenate([targets / setting.bandwidth, inputs / reach], axis=1)


def mixing_ratios(key: chex.PRNGKey, setting: Setting, num_steps: int) -> jax.Array:
  """Ratios of all steps at once: drawn in every step they would take as long as the step."""
  ratios = jax.random.dirichlet(key, jnp.full(2, setting.alpha), (num_steps,))[:, 0]
  return jnp.where(setting.mixes, ratios, 1.0)


def mixing_loss(module: nn.Module, pool: Split, draw):
  """The engine's loss: squared errors of mixed pairs of the pool.

  `draw(key, batch) -> (rows, partners, ratio)`, as `mix_regression_pairs` takes them.
  """

  def loss(apply, key, batch):
    rows, partners, ratio = draw(key, batch)
    mixed = augment.mix_regression_pairs(key, *pool, rows, partners, ratio=ratio)
    return jnp.square(apply(mixed.inputs).logits - mixed.targets)[:, 0]

  return classification_loss(module, loss)


def fit(key, module: nn.Module, setting: Setting, task: Task, draw, score, *columns, **sizes):
  """Trains one network; the setting may be traced.

  `draw` takes batches of (inputs, targets, row numbers, *columns), the sizes are those of the
  kit's `train`. Gives `score(predictions, targets)` on test rows, in the targets' units, and the
  validation error, both where the latter is least.
  """

  def evaluate(trained):
    outputs = [predict(module, trained.variables, part.inputs).logits for part in task[1:3]]
    pair = (task.mean + task.scale * array[:, 0] for array in (outputs[1], task.test.labels))
    error = jnp.mean(jnp.square(outputs[0] - task.validation.labels))
    return score(*pair) | {"validation error": error}

  trained = train(
    key,
    module,
    mixing_loss(module, task.train, draw),
    optax.adamw(setting.learning_rate, weight_decay=setting.weight_decay),
    (*task.train, jnp.arange(len(task.train.labels)), *columns),
    evaluate=evaluate,
    **sizes,
  )
  best = jnp.argmin(trained.scores["validation error"])
  scores = {name: values[best] for name, values in trained.scores.items()}
  return scores | {"bad_step": trained.bad_step}


def measure(
  context: Context,
  results: Results,
  dataset: str,
  evaluate,
  splits,
  space: dict[str, list[Setting]],
) -> None:
  """Adds every method's scores at its setting of the least mean validation error over seeds.

  One more method has C-Mixup's setting, but partners without regard to targets.

  Args:
    context: of the run; every method is a cached stage.
    results: where the scores go.
    dataset: name of the data.
    evaluate: `(key, splits, setting) -> {quantity: value}`, traceable.
    splits: data of all seeds, with a leading axis of seeds.
    space: method -> its settings.
  """
  best = {}
  for method in (*space, ANY):
    settings = space.get(method) or [best[MAIN]._replace(bandwidth=np.inf)]
    fields = [setting._asdict() for setting in settings]
    scores = grid(context, f"{dataset}/{method}", evaluate, splits, fields)
    index, measured = choose_for_all(scores, fields, select="validation error", better="lower")
    best[method] = settings[index]
    results.add({method: measured}, dataset=dataset)
