"""Large batches lose accuracy by doing too few and too quiet updates, not by being large.

A small batch against a large one that is brought back step by step: learning rate by the square
root of the ratio of sizes, batch normalization over ghost batches, and as many updates as the small
batch did. Beside them what could do as well: a learning rate tuned for the large batch, and as many
updates without the rest. Then how far the weights drift from where they started, and by which law.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Dataset
from experiments.kit.sweep import grid, sweep
from experiments.kit.train import Trained, accuracy, train
from experiments.mixing_adaptation.ghost_batch_norm.recipes import (
  EQUAL_UPDATES,
  GHOST,
  LARGE,
  REGIME,
  ROOT,
  SMALL,
  TUNED,
  UPDATES,
  Recipe,
  network,
  optimizer,
  recipe_loss,
  recipes,
  schedule,
)
from jaxlab import metrics
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "ghost_batch_norm"
SEEDS = {"laptop": 6}

# Momentum remembers ten steps; after three times as many the weights no longer fly straight on.
TRANSIENT = 30


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the network and the two batch sizes."""

  dataset: str = "mnist1d"  # mnist1d (an MLP), or a tfds name (ResNet-44, flips and crops).
  num_train: int = 4096  # Training examples.
  num_validation: int = 1000  # Examples that choose the learning rates.
  num_test: int = 6000  # Test examples.
  width: int = 128  # Width of the MLP.
  num_layers: int = 5  # Its hidden layers.
  small_batch: int = 32  # Examples of a small batch.
  large_batch: int = 512  # Examples of a large batch.
  ghost_batch: int = 32  # Examples that share statistics.
  learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # Choices of each batch size.
  weight_decay: float = 1e-4  # Added to the gradient.
  max_grad_norm: float = 5.0  # Gradients of large batches are clipped to it.
  boundaries: tuple[int, ...] = (8, 11)  # Epochs after which the rate is divided by 10.
  num_epochs: int = 14  # Length of training, except for the adapted regime.


PRESETS = {
  "smoke": Config(
    num_train=256,
    num_validation=32,
    num_test=32,
    width=8,
    num_layers=1,
    small_batch=8,
    large_batch=32,
    ghost_batch=8,
    learning_rates=(0.1,),
    boundaries=(2,),
    num_epochs=3,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_train=45_000,
    num_validation=5_000,
    num_test=10_000,
    small_batch=128,
    large_batch=4096,
    ghost_batch=128,
    learning_rates=(0.05, 0.1, 0.2, 0.4),
    boundaries=(81, 122, 164),
    num_epochs=200,
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  rows = config.num_train, config.num_validation, config.num_test
  datasets.describe(config.dataset).check_splits(*rows)
  batches = {name: getattr(config, name) for name in ("small_batch", "large_batch", "ghost_batch")}
  sizes.check_at_most(config.num_train, **batches)
  sizes.check_divides(config.ghost_batch, large_batch=config.large_batch)
  sizes.check_at_most(config.num_epochs, boundaries=max(config.boundaries))


def run(config: Config, context: Context) -> Results:
  """Tunes both batch sizes, trains every recipe at the small batch's rate, and fits the drift."""
  results = Results()
  dataset, methods = datasets.describe(config.dataset), recipes(config)

  @functools.cache
  def draw(seed):
    sizes = config.num_train, config.num_validation, config.num_test
    return dataset.splits(*sizes, seed=seed)

  def evaluate(key, splits, method, setting):
    return train_network(config, dataset, methods[method], key, splits, setting)

  settings = [{"learning_rate": rate} for rate in config.learning_rates]
  scores = sweep(
    context,
    "search",
    evaluate,
    draw,
    methods={SMALL: settings, TUNED: settings},
    select="validation",
  )
  rates = scores[SMALL].get("chosen/learning_rate", config.learning_rates[0])
  splits = datasets.stack_seeds(draw, context.seed_numbers)
  for method in methods:
    if method not in scores:
      one = functools.partial(evaluate, method=method)
      setting = [{"learning_rate": rates}]
      trained = grid(context, f"runs/{method}", one, splits, setting)
      scores[method] = {name: values[:, 0] for name, values in trained.items()}
  for method, score in scores.items():
    distance = score.pop("distance")
    for split in ("test", "training"):
      results.add({method: {"accuracy": score.pop(split)}}, split=split)
    results.add({method: {**score, "distance from the start": distance[:, -1]}})
    steps = logged_steps(distance.shape[1])
    first = steps[steps <= schedule(config, methods[method])[0][0]]
    if method in EQUAL_UPDATES:
      results.add({method: drift(first, distance[:, first - 1])})
    for step in steps.tolist():
      phase = 1 if step <= first[-1] else 2
      results.add({method: {"distance by step": distance[:, step - 1]}}, step=step, phase=phase)
  return results


def drift(steps: np.ndarray, distance: np.ndarray) -> dict[str, np.ndarray]:
  """Both laws of drift, fitted to the distances `[seeds, steps]` of every seed past `TRANSIENT`."""

  @functools.partial(jax.jit, static_argnums=0)
  def fit(law, steps, distance):
    return jax.vmap(law, (None, 0))(steps, distance)

  late = steps > TRANSIENT
  log_law, power_law = (
    fit(law, steps[late], distance[:, late])
    for law in (metrics.fit_log_diffusion, metrics.fit_power_diffusion)
  )
  return {
    "slope of the log law": log_law.slope,
    "R2 of the log law": log_law.r_squared,
    "exponent of the power law": power_law.exponent,
    "R2 of the power law": power_law.r_squared,
  }


def logged_steps(num_steps: int) -> np.ndarray:
  """Powers of the root of 2, rounded."""
  powers = np.sqrt(2.0) ** np.arange(int(2 * np.log2(num_steps)) + 1)
  return np.unique(np.round(powers).astype(int))


def train_network(config: Config, dataset: Dataset, recipe: Recipe, key, splits, setting):
  """Accuracies of one network, and its distance from the start after every step, `[steps]`."""
  rows, validation, test = splits
  module = network(config, dataset, recipe)
  init_key, train_key = jax.random.split(key)
  variables = dict(module.init(init_key, rows.inputs[:2]))
  start = Trained(variables.pop("params"), variables)
  trained = train(
    train_key,
    module,
    recipe_loss(config, dataset, recipe, module),
    optimizer(config, recipe, setting["learning_rate"]),
    rows,
    num_steps=schedule(config, recipe)[1],
    batch_size=recipe.batch_size,
    start=start,
    evaluate=lambda now: metrics.parameter_distance(now.params, start.params),
    eval_every=1,
  )
  parts = {"training": rows, "validation": validation, "test": test}
  scores = {name: accuracy(module, trained.variables, part) for name, part in parts.items()}
  return scores | {"distance": trained.scores, "bad_step": trained.bad_step}


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements on accuracy, then on drift."""
  methods = recipes(config)
  test = {m: results.select("accuracy", method=m, split="test") for m in methods}
  slope, fit = (
    {m: results.select(f"{what} of the log law", method=m) for m in EQUAL_UPDATES}
    for what in ("slope", "R2")
  )
  able = precondition("the small batch is right on 60% or more", test[SMALL], at_least=0.6)
  best = np.maximum(test[LARGE], test[TUNED])
  gap = precondition(
    "the large one loses 2 points, at its own best rate too", test[SMALL] - best, at_least=0.02
  )
  slower = precondition(
    "with as many updates and no other change the slope is less than .8 of the small batch's",
    slope[UPDATES] / slope[SMALL],
    at_most=0.8,
  )

  headline = (
    "sqrt rate, ghost batches and as many updates: at most half a point below the small batch"
  )
  pairs = (
    (headline, REGIME, SMALL, -0.005, "93.07 against 92.83"),
    ("the sqrt rate recovers part of the gap", ROOT, LARGE, 0.005, "89.30 against 86.10"),
    ("ghost batches recover a further part", GHOST, ROOT, 0.003, "90.50 against 89.30"),
    ("sqrt rate and ghost batches beat as many updates alone", REGIME, UPDATES, 0.005, None),
  )
  options = {"requires": (able, gap)}
  return [
    *(
      compare(text, test[a], test[b], margin=m, paper=p, headline=text is headline, **options)
      for text, a, b, m, p in pairs
    ),
    compare(
      "the distance from the start grows as log t past the transient of momentum "
      "(R2 of .95 or more with equal updates, the worst of three recipes)",
      np.min([fit[m] for m in EQUAL_UPDATES], axis=0),
      0.95,
    ),
    compare(
      "sqrt rate and ghost batches bring the slope in log t within 25% of the small batch's",
      np.abs(slope[REGIME] / slope[SMALL] - 1),
      0.25,
      better="lower",
      requires=(slower,),
    ),
  ]


def figure(results: Results):
  """Test accuracy of every recipe, and the drift of the weights in the first phase."""
  drawing, (left, right) = plots.panels(2, width=6.0, height=4.2)
  plots.intervals(left, results, "accuracy", by="method", color="split", split="test")
  left.axhline(results.select("accuracy", method=SMALL, split="test").mean(), color="gray", ls=":")
  left.set(ylabel="test accuracy", title="dotted: the small batch")
  for method in EQUAL_UPDATES:
    plots.curves(right, results, "distance by step", x="step", method=method, phase=1)
  right.axvspan(1, TRANSIENT, color="gray", alpha=0.15, label="transient of momentum")
  right.set(xscale="log", title="drift before the rate first falls, equal updates")
  right.set(ylabel="distance from the start")
  right.legend(fontsize=8)
  return drawing


def abstract(config: Config, mesh):
  """A step with the large batch and ghost statistics, for a dry run."""
  dataset, recipe = datasets.describe(config.dataset), recipes(config)[GHOST]
  module, batch = network(config, dataset, recipe), dataset.batch(recipe.batch_size)
  loss = recipe_loss(config, dataset, recipe, module)
  return abstract_step(
    module, loss, optimizer(config, recipe, config.learning_rates[0]), batch, mesh
  )


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
