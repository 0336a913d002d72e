"""Large batches lose accuracy by doing too few and too quiet updates, not by being large.

A small batch against a large one that is brought back step by step: learning rate by the square
root of the ratio of sizes, batch normalisation over ghost batches, and as many updates as the small
batch did. Beside accuracy, how far the weights drift from where they started, and by which law.
"""

import dataclasses
import functools
import sys
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Dataset
from experiments.kit.sweep import grid
from experiments.kit.train import Trained, accuracy, classification_loss, train
from jaxlab import algorithms, augment, metrics, models
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "ghost_batch_norm"

SMALL, LARGE = "small batch", "large batch"
ROOT, GHOST, REGIME = "large, sqrt rate", "large, sqrt rate, ghost", "large, sqrt, ghost, regime"
LINEAR, NOISE = "large, linear rate", "large, gradient noise"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the network and the two batch sizes."""

  dataset: str = "mnist1d"  # mnist1d (an MLP), or a tfds name (ResNet-44, flips and crops).
  num_train: int = 8192  # Training examples of mnist1d.
  num_test: int = 8000  # Test examples of mnist1d.
  width: int = 256  # Width of the MLP.
  num_layers: int = 5  # Its hidden layers.
  small_batch: int = 64  # Examples of a small batch, for which rate and schedule are tuned.
  large_batch: int = 1024  # Examples of a large batch.
  ghost_batch: int = 64  # Examples that share statistics.
  learning_rate: float = 0.05  # Of small batches; momentum 0.9.
  weight_decay: float = 1e-4  # Added to the gradient.
  max_grad_norm: float = 5.0  # Gradients of large batches are clipped to it.
  boundaries: tuple[int, ...] = (8, 15)  # Epochs after which the rate is divided by 10.
  num_epochs: int = 20  # Length of training, except for the adapted regime.


PRESETS = {
  "smoke": Config(
    num_train=64,
    num_test=32,
    width=8,
    num_layers=1,
    small_batch=8,
    large_batch=32,
    ghost_batch=8,
    boundaries=(8,),
    num_epochs=9,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_train=50_000,
    num_test=10_000,
    small_batch=128,
    large_batch=4096,
    ghost_batch=128,
    learning_rate=0.1,
    boundaries=(81, 122, 164),
    num_epochs=200,
  ),
}


class Recipe(NamedTuple):
  """How one network is trained."""

  batch_size: int
  rule: str = "none"
  ghost_batch: int | None = None
  adapt: bool = False
  noise: bool = False


def recipes(config: Config) -> dict[str, Recipe]:
  """Every run of the comparison."""
  large, ghost = config.large_batch, config.ghost_batch
  return {
    SMALL: Recipe(config.small_batch),
    LARGE: Recipe(large),
    ROOT: Recipe(large, "sqrt"),
    GHOST: Recipe(large, "sqrt", ghost),
    REGIME: Recipe(large, "sqrt", ghost, adapt=True),
    LINEAR: Recipe(large, "linear"),
    NOISE: Recipe(large, noise=True),
  }


def run(config: Config, context: Context) -> Results:
  """Trains every seed by every recipe, and fits the drift of the weights in the first phase."""
  results = Results()
  dataset = datasets.describe(config.dataset)
  splits = datasets.stack_seeds(
    lambda seed: dataset.splits(config.num_train, config.num_test, seed=seed), context.seed_numbers
  )
  for method, recipe in recipes(config).items():
    evaluate = functools.partial(train_network, config, dataset, recipe)
    scores = context.cached(f"runs/{method}", grid, context, evaluate, splits, [{}])
    for split in ("test", "training"):
      results.add({method: {"accuracy": scores[split][:, 0]}}, split=split)
    distance = scores["distance"][:, 0]
    steps = logged_steps(distance.shape[1])
    first = steps[steps <= schedule(config, recipe)[0][0]]
    laws = drift(first, distance[:, first - 1])
    results.add({method: {"distance from the start": distance[:, -1], **laws}})
    for step in steps.tolist():
      phase = 1 if step <= first[-1] else 2
      results.add({method: {"distance by step": distance[:, step - 1]}}, step=step, phase=phase)
  return results


def drift(steps: np.ndarray, distance: np.ndarray) -> dict[str, np.ndarray]:
  """Both laws of drift, fitted to the distances `[seeds, steps]` of every seed."""

  @functools.partial(jax.jit, static_argnums=0)
  def fit(law, steps, distance):
    return jax.vmap(law, (None, 0))(steps, distance)

  log_law, power_law = (
    fit(law, steps, distance) for law in (metrics.fit_log_diffusion, metrics.fit_power_diffusion)
  )
  # Momentum 0.9 remembers ten steps; until then the weights fly straight on.
  late = steps > 10
  late_law = fit(metrics.fit_log_diffusion, steps[late], distance[:, late])
  return {
    "slope of the log law": log_law.slope,
    "R2 of the log law": log_law.r_squared,
    "R2 of the log law past step 10": late_law.r_squared,
    "exponent of the power law": power_law.exponent,
    "R2 of the power law": power_law.r_squared,
  }


def logged_steps(num_steps: int) -> np.ndarray:
  """Powers of the root of 2, rounded."""
  powers = np.sqrt(2.0) ** np.arange(int(2 * np.log2(num_steps)) + 1)
  return np.unique(np.round(powers).astype(int))


def network(config: Config, dataset: Dataset, recipe: Recipe):
  """The paper's F1, an MLP with batch norm, for signals; ResNet-44 for images."""
  norm = functools.partial(models.GhostBatchNorm, recipe.ghost_batch)
  if not dataset.is_image:
    return models.MLP(dataset.num_classes, (config.width,) * config.num_layers, norm=norm)
  return models.ResNet(dataset.num_classes, (7, 7, 7), width=16, stem="cifar", norm=norm)


def recipe_loss(config: Config, dataset: Dataset, recipe: Recipe, module):
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


def schedule(config: Config, recipe: Recipe) -> tuple[list[int], int]:
  """Steps at which the rate falls, and the number of steps."""
  regime = algorithms.Regime(config.boundaries, config.num_epochs)
  if recipe.adapt:
    regime = algorithms.adapt_regime(
      *regime, batch_size=config.large_batch, base_batch_size=config.small_batch
    )
  per_epoch = config.num_train // recipe.batch_size
  return [epoch * per_epoch for epoch in regime.boundaries], regime.num_epochs * per_epoch


def optimizer(config: Config, recipe: Recipe) -> optax.GradientTransformation:
  """SGD with momentum, its rate scaled by the recipe's rule and divided by 10 at each boundary."""
  rate = algorithms.scaled_learning_rate(
    config.learning_rate,
    batch_size=recipe.batch_size,
    base_batch_size=config.small_batch,
    rule=recipe.rule,
  )
  falls = dict.fromkeys(schedule(config, recipe)[0], 0.1)
  clips = recipe.batch_size > config.small_batch
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm) if clips else optax.identity(),
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(optax.piecewise_constant_schedule(rate, falls), momentum=0.9),
  )


def train_network(config: Config, dataset: Dataset, recipe: Recipe, key, splits, setting):
  """Accuracies of one network, and its distance from the start after every step, `[steps]`."""
  del setting  # A recipe is a program of its own.
  rows, test = splits
  module = network(config, dataset, recipe)
  init_key, train_key = jax.random.split(key)
  variables = dict(module.init(init_key, rows.inputs[:2]))
  start = Trained(variables.pop("params"), variables)
  trained = train(
    train_key,
    module,
    recipe_loss(config, dataset, recipe, module),
    optimizer(config, recipe),
    rows,
    num_steps=schedule(config, recipe)[1],
    batch_size=recipe.batch_size,
    start=start,
    evaluate=lambda now: metrics.parameter_distance(now.params, start.params),
    eval_every=1,
  )
  return {
    "test": accuracy(module, trained.variables, test),
    "training": accuracy(module, trained.variables, rows),
    "distance": trained.scores,
  }


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements on accuracy, then on drift."""
  methods = recipes(config)
  test = {m: results.select("accuracy", method=m, split="test") for m in methods}
  slope = {m: results.select("slope of the log law", method=m) for m in methods}
  fit = {m: results.select("R2 of the log law past step 10", method=m) for m in methods}
  gap = precondition("the large one loses 2 points", test[SMALL] - test[LARGE], at_least=0.02)
  able = precondition("the small batch is right on 60% or more", test[SMALL], at_least=0.6)

  def accuracy_of(text, method, baseline, paper, margin=0.005, **options):
    options |= {"margin": margin, "paper": paper, "requires": (able, gap)}
    return compare(text, test[method], test[baseline], **options)

  closed = (
    "sqrt rate, ghost batches and as many updates: at most half a point below the small batch"
  )
  return [
    accuracy_of(closed, REGIME, SMALL, "93.07 against 92.83", margin=-0.005, headline=True),
    accuracy_of("the sqrt rate recovers part of the gap", ROOT, LARGE, "89.30 against 86.10"),
    accuracy_of("ghost batches recover a further part", GHOST, ROOT, "90.50 against 89.30"),
    compare(
      "the distance from the start grows as log t past step 10 (R2, the worst of four recipes)",
      np.min([fit[m] for m in (SMALL, LARGE, GHOST, REGIME)], axis=0),
      0.95,
    ),
    compare(
      "with sqrt rate and ghost batches the slope in log t is the small batch's within 25%",
      np.abs(slope[GHOST] / slope[SMALL] - 1),
      0.25,
      better="lower",
    ),
    compare(
      "the plain large batch drifts more slowly: its slope is less than .8 of the small batch's",
      slope[LARGE] / slope[SMALL],
      0.8,
      better="lower",
    ),
  ]


def figure(results: Results):
  """Test and training accuracy of every recipe, and the drift of the weights."""
  drawing, (left, right) = plots.panels(2, width=6.0, height=4.2)
  plots.intervals(left, results, "accuracy", by="method", color="split")
  left.legend(fontsize=8)
  plots.curves(right, results, "distance by step", x="step")
  for method in results.distinct("method", quantity="distance by step"):
    end = results.matching(quantity="distance by step", method=method, phase=1)[-1]
    right.plot(end.field("step"), end.values.mean(), "k|", markersize=10)
  right.set(xscale="log", title="drift of the weights (bar: end of the first phase)")
  right.legend(fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """A step with the large batch and ghost statistics, for a dry run."""
  dataset, recipe = datasets.describe(config.dataset), recipes(config)[GHOST]
  module, batch = network(config, dataset, recipe), dataset.batch(recipe.batch_size)
  loss = recipe_loss(config, dataset, recipe, module)
  return abstract_step(module, loss, optimizer(config, recipe), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
