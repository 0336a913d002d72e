"""The methods: where each mixes pairs and whom, the training of one network, the search."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.kit.datasets import Split
from experiments.kit.sweep import choose, grid
from experiments.kit.train import classification_loss, predict, train
from jaxlab import augment
from jaxlab.experiment import Context

PLAIN, MIXUP, MANIFOLD = "no mixing", "mixup", "manifold mixup"
INPUTS, MAIN = "near inputs", "C-Mixup"
# Where a method mixes pairs. Methods of one layer are one program: without mixing the ratio is 1.
LAYERS = {PLAIN: 0, MIXUP: 0, MANIFOLD: 1, INPUTS: 0, MAIN: 0}


class Setting(NamedTuple):
  """What is searched over; a bandwidth of infinity ignores what it measures."""

  learning_rate: chex.Numeric = 1e-3
  weight_decay: chex.Numeric = 0.0
  dropout: chex.Numeric = 0.0  # Of methods that mix inputs.
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


def similarity_features(inputs: chex.Array, targets: chex.Array, setting: Setting) -> jax.Array:
  """Coordinates in which a bandwidth of 1 is what the setting says.

  Distances of d standardized features grow as the root of d, and their bandwidth with them.
  """
  inputs = inputs.reshape(inputs.shape[0], -1)
  reach = setting.feature_bandwidth * np.sqrt(inputs.shape[1])
  return jnp.concatenate([targets / setting.bandwidth, inputs / reach], axis=1)


def dropout(key: chex.PRNGKey, hidden: chex.Array, rate: chex.Numeric) -> jax.Array:
  """Dropout at a rate that may be traced, in steps of 1/256: a byte of noise per unit is cheap."""
  words = jax.random.bits(key, (*hidden.shape[:-1], -(-hidden.shape[-1] // 4)))
  noise = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*hidden.shape[:-1], -1)
  cut = jnp.round(256 * rate)
  return jnp.where(noise[..., : hidden.shape[-1]] >= cut, hidden * 256 / (256 - cut), 0.0)


def mixing_ratios(key: chex.PRNGKey, setting: Setting, num_steps: int) -> jax.Array:
  """Ratios of all steps at once: drawn in every step they would take as long as the step."""
  ratios = jax.random.dirichlet(key, jnp.full(2, setting.alpha), (num_steps,))[:, 0]
  return jnp.where(setting.mixes, ratios, 1.0)


def mixing_loss(module: nn.Module, layer: int, setting: Setting, pool: Split, draw):
  """The engine's loss: squared errors of pairs of the pool that are mixed at a layer.

  `draw(key, batch) -> (rows, partners, ratio)`, as `mix_regression_pairs` takes them.
  """

  def loss(apply, key, batch):
    draw_key, drop_key = jax.random.split(key)
    rows, partners, ratio = draw(draw_key, batch)
    mixed = augment.mix_regression_pairs(key, *pool, rows, partners, ratio=ratio)

    def thinned(at, hidden):
      return dropout(jax.random.fold_in(drop_key, at), hidden, setting.dropout) if at else hidden

    def at_layer(at, hidden):
      if at != layer:
        return hidden
      # Halves: gradients of rows taken by number would be added up one by one.
      first, second = jnp.split(hidden, 2)
      return mixed.ratio * first + (1 - mixed.ratio) * second

    if layer == 0:
      outputs = apply(mixed.inputs, mix=thinned)
    else:
      outputs = apply(pool.inputs[jnp.concatenate([rows, partners])], mix=at_layer)
    return jnp.square(outputs.logits - mixed.targets)[:, 0]

  return classification_loss(module, loss)


def fit(key, module: nn.Module, layer: int, setting: Setting, task: Task, draw, *columns, **sizes):
  """Trains one network; the setting may be traced.

  `draw` takes batches of (inputs, targets, row numbers, *columns), the sizes are those of the
  kit's `train`. Gives the least validation error, and its test predictions and targets `[n]`.
  """

  def evaluate(trained):
    outputs = [predict(module, trained.variables, part.inputs).logits for part in task[1:3]]
    return jnp.mean(jnp.square(outputs[0] - task.validation.labels)), outputs[1]

  errors, outputs = train(
    key,
    module,
    mixing_loss(module, layer, setting, task.train, draw),
    optax.adamw(setting.learning_rate, weight_decay=setting.weight_decay),
    (*task.train, jnp.arange(len(task.train.labels)), *columns),
    evaluate=evaluate,
    **sizes,
  ).scores
  last = jnp.argmin(errors)
  pair = (task.mean + task.scale * array[:, 0] for array in (outputs[last], task.test.labels))
  return errors[last], *pair


def search(context: Context, stage: str, evaluate: dict, splits, settings: dict) -> dict[str, dict]:
  """Scores of every method and setting: method -> quantity -> `[seeds, settings]`.

  `evaluate[layer](key, splits, setting) -> {quantity: value}` is traceable.
  """
  scores = {}
  for method, own in settings.items():
    arguments = context, evaluate[LAYERS[method]], splits, [setting._asdict() for setting in own]
    scores[method] = context.cached(f"{stage}/{method}", grid, *arguments)
  return scores


def best(scores: dict[str, np.ndarray], settings: list[Setting]) -> dict[str, np.ndarray]:
  """The scores `[seeds]` of the setting with the least validation error, per seed."""
  settings = [setting._asdict() for setting in settings]
  return choose(scores, settings, select="validation error", better="lower")
