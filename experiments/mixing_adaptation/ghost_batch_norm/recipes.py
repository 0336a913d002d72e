"""How large batches are trained: by which rate, statistics, noise and number of updates."""

import functools
from typing import NamedTuple

import jax
import optax

from experiments.kit.datasets import Dataset
from experiments.kit.train import classification_loss
from jaxlab import algorithms, augment, models

SMALL, LARGE, TUNED = "small batch", "large batch", "large, tuned rate"
ROOT, GHOST, REGIME = "large, sqrt rate", "large, sqrt rate, ghost", "large, sqrt, ghost, regime"
NOISE, UPDATES = "large, gradient noise", "large, regime"
EQUAL_UPDATES = (SMALL, UPDATES, REGIME)

MOMENTUM = 0.9


class Recipe(NamedTuple):
  """How one network is trained."""

  batch_size: int
  rule: str = "none"
  ghost_batch: int | None = None
  adapt: bool = False
  noise: bool = False


def recipes(config) -> dict[str, Recipe]:
  """Every run of the comparison; the first two have a learning rate of their own."""
  large, ghost = config.large_batch, config.ghost_batch
  return {
    SMALL: Recipe(config.small_batch),
    TUNED: Recipe(large),
    LARGE: Recipe(large),
    ROOT: Recipe(large, "sqrt"),
    GHOST: Recipe(large, "sqrt", ghost),
    REGIME: Recipe(large, "sqrt", ghost, adapt=True),
    UPDATES: Recipe(large, adapt=True),
    NOISE: Recipe(large, noise=True),
  }


def network(config, dataset: Dataset, recipe: Recipe):
  """The paper's F1, an MLP with batch norm, for signals; ResNet-44 for images."""
  norm = functools.partial(models.GhostBatchNorm, recipe.ghost_batch)
  if not dataset.is_image:
    return models.MLP(dataset.num_classes, (config.width,) * config.num_layers, norm=norm)
  return models.ResNet(dataset.num_classes, (7, 7, 7), width=16, stem="cifar", norm=norm)


def recipe_loss(config, dataset: Dataset, recipe: Recipe, module):
  """Cross-entropy, gradients made noisy where the recipe says so; images cropped and flipped."""

  def loss(apply, key, batch):
    view_key, noise_key = jax.random.split(key)
    inputs = batch.inputs
    if dataset.is_image:
      crop_key, flip_key = jax.random.split(view_key)
      inputs = augment.random_flip(flip_key, augment.random_crop(crop_key, inputs, padding=4))
    logits = apply(inputs).logits
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    if recipe.noise:
      values *= algorithms.gradient_noise_weights(
        noise_key, batch_size=len(values), base_batch_size=config.small_batch
      )
    return values

  return classification_loss(module, loss)


def schedule(config, recipe: Recipe) -> tuple[list[int], int]:
  """Steps at which the rate falls, and the number of steps."""
  regime = algorithms.Regime(config.boundaries, config.num_epochs)
  if recipe.adapt:
    regime = algorithms.adapt_regime(
      *regime, batch_size=config.large_batch, base_batch_size=config.small_batch
    )
  per_epoch = config.num_train // recipe.batch_size
  return [epoch * per_epoch for epoch in regime.boundaries], regime.num_epochs * per_epoch


def optimizer(config, recipe: Recipe, learning_rate) -> optax.GradientTransformation:
  """SGD with momentum, its rate scaled by the recipe's rule and divided by 10 at each boundary."""
  rate = algorithms.scaled_learning_rate(
    learning_rate,
    batch_size=recipe.batch_size,
    base_batch_size=config.small_batch,
    rule=recipe.rule,
  )
  falls = dict.fromkeys(schedule(config, recipe)[0], 0.1)
  clips = recipe.batch_size > config.small_batch
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm) if clips else optax.identity(),
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(optax.piecewise_constant_schedule(rate, falls), momentum=MOMENTUM),
  )
