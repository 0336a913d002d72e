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
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from jaxlab import algorithms, metrics, models, training

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
    num_layers=2,
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


def run(config: Config, context: common.Context) -> common.Results:
  """Trains every seed by every recipe, and fits the drift of the weights in the first phase."""
  rows, extras = {}, {}
  for method, recipe in recipes(config).items():
    measured = context.cached(f"runs/{method}", _train, config, context, recipe)
    steps = _logged_steps(measured["distance"].shape[1])
    first = steps[steps <= _schedule(config, recipe)[0][0]]
    distance = measured["distance"]
    fit_log = jax.vmap(metrics.fit_log_diffusion, (None, 0))
    log_law = fit_log(first, distance[:, first - 1])
    power_law = jax.vmap(metrics.fit_power_diffusion, (None, 0))(first, distance[:, first - 1])
    # Momentum 0.9 remembers ten steps; until then the weights fly straight on.
    later = first[first > 10]
    rows[method] = {
      "accuracy/test": measured["test accuracy"],
      "accuracy/train": measured["training accuracy"],
      "drift/distance": distance[:, -1],
      "drift/slope": log_law.slope,
      "drift/R2 of the log law": log_law.r_squared,
      "drift/R2 of the log law past step 10": fit_log(later, distance[:, later - 1]).r_squared,
      "drift/exponent": power_law.exponent,
      "drift/R2 of the power law": power_law.r_squared,
    }
    extras[f"{method}/steps"] = steps
    extras[f"{method}/distance"] = distance[:, steps - 1].mean(0)
    extras[f"{method}/first phase"] = np.array([first[-1]])
  return common.Results(rows, extras)


def _logged_steps(num_steps: int) -> np.ndarray:
  """Powers of the root of 2, rounded."""
  powers = np.sqrt(2.0) ** np.arange(int(2 * np.log2(num_steps)) + 1)
  return np.unique(np.round(powers).astype(int))


def _splits(config: Config) -> tuple[classification.Split, ...]:
  if config.dataset == "mnist1d":
    return classification.mnist1d_splits(config.num_train, config.num_test)
  return classification.image_splits(config.dataset)


def _network(config: Config, recipe: Recipe):
  norm = functools.partial(models.GhostBatchNorm, recipe.ghost_batch)
  if config.dataset == "mnist1d":
    return models.MLP(10, (config.width,) * config.num_layers, norm=norm)
  return models.ResNet(10, (7, 7, 7), width=16, stem="cifar", norm=norm)


def _loss(config: Config, recipe: Recipe, network):
  def loss(apply, key, batch):
    crop_key, noise_key = jax.random.split(key)
    inputs = batch.inputs if config.dataset == "mnist1d" else _augmented(crop_key, batch.inputs)
    logits = apply(inputs).logits
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    if recipe.noise:
      values *= algorithms.gradient_noise_weights(
        noise_key, batch_size=len(values), base_batch_size=config.small_batch
      )
    return values

  return classification.classification_loss(network, loss)


def _augmented(key, images, pad: int = 4):
  """Crops of the padded images, half of them mirrored."""
  crop_key, flip_key = jax.random.split(key)
  corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  crops = jax.vmap(
    lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
  )(padded, corners)
  mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(mirrored, crops[:, :, ::-1], crops)


def _schedule(config: Config, recipe: Recipe) -> tuple[list[int], int]:
  """Steps at which the rate falls, and the number of steps."""
  regime = algorithms.Regime(config.boundaries, config.num_epochs)
  if recipe.adapt:
    regime = algorithms.adapt_regime(
      *regime, batch_size=config.large_batch, base_batch_size=config.small_batch
    )
  per_epoch = config.num_train // recipe.batch_size
  return [epoch * per_epoch for epoch in regime.boundaries], regime.num_epochs * per_epoch


def _optimizer(config: Config, recipe: Recipe) -> optax.GradientTransformation:
  rate = algorithms.scaled_learning_rate(
    config.learning_rate,
    batch_size=recipe.batch_size,
    base_batch_size=config.small_batch,
    rule=recipe.rule,
  )
  boundaries, _ = _schedule(config, recipe)
  clips = recipe.batch_size > config.small_batch
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm) if clips else optax.identity(),
    optax.add_decayed_weights(config.weight_decay),
    optax.sgd(
      optax.piecewise_constant_schedule(rate, dict.fromkeys(boundaries, 0.1)), momentum=0.9
    ),
  )


def _start(network, key, inputs) -> classification.Trained:
  variables = dict(network.init(key, inputs))
  return classification.Trained(variables.pop("params"), variables)


def _train(config: Config, context: common.Context, recipe: Recipe) -> dict[str, np.ndarray]:
  """Accuracies `[seeds]` and distances from the start after every step, `[seeds, steps]`."""
  train, test = _splits(config)
  network = _network(config, recipe)
  _, num_steps = _schedule(config, recipe)

  def one_seed(key):
    init_key, train_key = jax.random.split(key)
    start = _start(network, init_key, jnp.asarray(train.inputs[:2]))
    trained = classification.train(
      train_key,
      network,
      _loss(config, recipe, network),
      _optimizer(config, recipe),
      train,
      num_steps=num_steps,
      batch_size=recipe.batch_size,
      start=start,
      evaluate=lambda now: metrics.parameter_distance(now.params, start.params),
      eval_every=1,
    )
    return {
      "test accuracy": classification.accuracy(network, trained.variables, test),
      "training accuracy": classification.accuracy(network, trained.variables, train),
      "distance": trained.scores,
    }

  return training.over_seeds(context.key, one_seed, num_seeds=context.seeds, mesh=context.mesh)


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements on accuracy and on drift."""
  rows, compare = results.quantities, common.compare
  test = {method: row["accuracy/test"] for method, row in rows.items()}
  slope = {method: row["drift/slope"] for method, row in rows.items()}
  gap = common.quantity(test[REGIME] - test[SMALL])
  found = [
    compare(
      "the small batch beats the plain large one", test[SMALL], test[LARGE], paper="92.83 v 86.10"
    ),
    compare(
      "the square-root rate recovers part of the gap",
      test[ROOT],
      test[LARGE],
      paper="89.30 v 86.10",
    ),
    compare("ghost batches recover a further part", test[GHOST], test[ROOT], paper="90.50 v 89.30"),
    # At most one standard error below: the mean difference plus its error is not negative.
    compare(
      "as many updates close the gap (within 1 s.e. or above)",
      test[REGIME],
      test[SMALL],
      margin=-2 * gap.standard_error,
      paper="93.07 v 92.83",
    ),
  ]
  for method in (SMALL, LARGE, GHOST, REGIME):
    found.append(
      compare(
        f"{method}: distance grows as the log of the step (R2 at least 0.95)",
        rows[method]["drift/R2 of the log law"],
        0.95,
        paper="log t fits",
      )
    )
  return [
    *found,
    compare(
      "square-root rate and ghost batches drift at the small batch's rate (slope within 25%)",
      np.abs(slope[GHOST] / slope[SMALL] - 1),
      0.25,
      better="lower",
      paper="equal slopes",
    ),
    compare(
      "the plain large batch drifts more slowly than the small one",
      slope[LARGE],
      slope[SMALL],
      better="lower",
      paper="smaller slope",
    ),
  ]


def figure(results: common.Results):
  """Test and training accuracy of every recipe, and the drift of the weights."""
  import matplotlib.pyplot as plt

  rows, extras = results.quantities, results.extras
  fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
  colors = {method: f"C{i}" for i, method in enumerate(rows)}
  for i, (method, row) in enumerate(rows.items()):
    for name, marker in (("test", "o"), ("train", "x")):
      mean, error = common.quantity(row[f"accuracy/{name}"])
      label = name if i == 0 else None
      left.errorbar(100 * mean, i, xerr=100 * error, fmt=marker, color=colors[method], label=label)
    steps, distance = extras[f"{method}/steps"], extras[f"{method}/distance"]
    right.plot(steps, distance, ".-", color=colors[method], label=method)
    end = extras[f"{method}/first phase"][0]
    right.plot(end, np.interp(end, steps, distance), "k|", markersize=10)
  left.set(xlabel="accuracy (%)", yticks=range(len(rows)), yticklabels=list(rows))
  left.invert_yaxis()
  left.legend()
  right.set(xscale="log", xlabel="step", ylabel="distance from the start")
  right.set_title("Drift of the weights (bar: end of the first phase)", fontsize=10)
  right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
  return fig


def abstract(config: Config, mesh):
  """A step with the large batch and ghost statistics, for a dry run."""
  recipe = recipes(config)[GHOST]
  network, optimizer = _network(config, recipe), _optimizer(config, recipe)
  update = training.build_update(_loss(config, recipe, network), optimizer, mesh=mesh)
  shape = (40, 1) if config.dataset == "mnist1d" else (32, 32, 3)

  def init(key):
    start = _start(network, key, jnp.zeros((2, *shape)))
    return training.init_state(key, start.params, optimizer, model_state=start.model_state)

  state = jax.eval_shape(init, jax.random.key(0))
  batch = classification.Split(
    jax.ShapeDtypeStruct((recipe.batch_size, *shape), jnp.float32),
    jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
  )
  return update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
