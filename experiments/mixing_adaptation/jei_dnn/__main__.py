"""Early exits: gates trained jointly with the classifiers they open, against confidence thresholds.

The backbone is trained first and frozen, so that its features are computed once and the exits are
trained on them. One weight of the cost gives one point of the curve of accuracy against cost.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import choose, run_seeds
from experiments.kit.train import adamw_cosine, classification_loss, predict, train
from experiments.mixing_adaptation.jei_dnn import evaluation
from experiments.mixing_adaptation.jei_dnn.evaluation import (
  AREA,
  BIAS,
  BY_SHARE,
  ORACLE,
  SIZE,
  THRESHOLDS,
)
from experiments.mixing_adaptation.jei_dnn.exits import MAIN, UNWEIGHTED, train_exits
from experiments.mixing_adaptation.jei_dnn.network import network
from jaxlab import models
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "jei_dnn"
SIGNAL_NOISE = 0.5  # Correlated noise of MNIST-1D; its default, 0.25, leaves few errors.


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  dataset: str = "mnist1d"  # MNIST-1D, or a tfds set of images.
  sizes: tuple[int, int, int, int] = (6000, 4000, 1000, 3000)  # Backbone, exits, validation, test.
  num_blocks: int = 6  # Blocks, with an exit after each.
  width: int = 32  # Channels of a block.
  batch_size: int = 100  # Rows per update.
  backbone_steps: int = 600  # Updates of the backbone.
  backbone_learning_rate: float = 3e-3  # Its peak; cosine to 0.
  warmup_steps: int = 400  # Updates of all classifiers before the gates.
  joint_steps: int = 800  # Updates of gates and classifiers in turns.
  period: int = 50  # Updates of a turn.
  # Of the classifiers; cosine to 0, anew in the joint phase.
  learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
  gate_learning_rates: tuple[float, ...] = (1.0,)  # Of the gates; both chosen on validation rows.
  max_pos_weight: float = 1.0  # Largest weight of an open gate's target.
  weight_decay: float = 0.0  # Of classifiers and gates.
  # A point of the curve each.
  cost_weights: tuple[float, ...] = (
    *(0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0),
    *(3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 14.0),
  )


PRESETS = {
  "smoke": Config(
    sizes=(200, 100, 80, 100),
    num_blocks=3,
    width=4,
    batch_size=20,
    backbone_steps=4,
    warmup_steps=4,
    joint_steps=8,
    period=2,
    learning_rates=(0.1,),
    cost_weights=(0.1, 1.0),
  ),
  "laptop": Config(),
  # Depth, width and heads of T2T-ViT-7; the paper starts from weights trained on ImageNet.
  "paper": Config(
    dataset="cifar10",
    sizes=(35_000, 10_000, 5000, 10_000),
    num_blocks=7,
    width=256,
    batch_size=64,
    backbone_steps=42_000,
    backbone_learning_rate=5e-4,
    warmup_steps=3500,
    joint_steps=10_800,
    period=200,
    learning_rates=(0.01,),
    gate_learning_rates=(0.01,),
    max_pos_weight=5.0,
    weight_decay=5e-4,
    cost_weights=(0.01, 0.05, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0),
  ),
}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  datasets.describe(config.dataset).check_splits(*config.sizes)
  sizes.check_at_most(min(config.sizes[:2]), batch_size=config.batch_size)
  sizes.check_divides(2 * config.period, joint_steps=config.joint_steps)


def run(config: Config, context: Context) -> Results:
  """Backbones of all seeds; then, seed by seed, exits and gates on their features."""
  dataset = datasets.describe(config.dataset)
  net = network(config, dataset)
  generator = {} if dataset.is_image else {"corr_noise_scale": SIGNAL_NOISE}
  splits = datasets.stack_seeds(
    lambda seed: dataset.splits(*config.sizes, seed=seed, **generator), context.seed_numbers
  )
  train_one = functools.partial(train_backbone, config=config, net=net)
  backbones = run_seeds(context, "backbone", train_one, arguments=splits)
  outputs = jax.jit(functools.partial(train_exits, config=config, net=net))
  settings, costs = list(search_space(config)), models.stage_costs(net, dataset.shape)
  evaluate = functools.partial(evaluation.evaluate_seed, outputs, costs, settings)
  seeds = []
  for seed in range(context.seeds):
    own, labels = jax.tree.map(
      lambda leaf, seed=seed: leaf[seed], (backbones, [split.labels for split in splits])
    )
    seeds.append(context.cached(f"exits/seed{seed}", evaluate, context.seed_key(seed), own, labels))
  results, exits = Results(), range(len(costs))
  for method, row in jax.tree.map(lambda *values: np.array(values), *seeds).items():
    for name, values in choose(row, settings, select=f"validation/{AREA}").items():
      if values.ndim == 1:
        results.add({method: {name: values}})
        continue
      along, places = ("cost", evaluation.COSTS) if name == "accuracy" else ("exit", exits)
      for place, at in zip(places, values.T):
        # Not every exit has enough samples in every seed.
        if along == "cost" or np.isfinite(at).all():
          results.add({method: {name: at}}, **{along: place})
  return results


def search_space(config: Config):
  """Every combination of what is chosen on validation rows."""
  names = "learning_rate", "gate_learning_rate"
  for values in itertools.product(*(getattr(config, f"{name}s") for name in names)):
    yield dict(zip(names, values))


def train_backbone(key, splits, *, config: Config, net):
  """Trains the network by its last exit; gives the exits' parameters and all features."""
  steps, size = config.backbone_steps, config.batch_size
  loss = classification_loss(net, final_loss)
  optimizer = adamw_cosine(config.backbone_learning_rate, steps, weight_decay=1e-3)
  trained = train(key, net, loss, optimizer, splits[0], num_steps=steps, batch_size=size)

  def features(inputs):
    return jnp.stack(predict(net, trained.variables, jnp.asarray(inputs), method="features"), 1)

  exits = {n: p for n, p in trained.params.items() if n.startswith(("heads", "gates"))}
  drawn = [features(split.inputs) for split in splits]
  return {"exits": exits, "features": drawn, "bad_step": trained.bad_step}


def final_loss(apply, key, batch):
  """Cross-entropy of the last exit."""
  del key
  logits = apply(batch.inputs).logits[-1]
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def of(method, quantity=AREA):
    return results.select(quantity, method=method)

  gain, off = of(ORACLE) - of(THRESHOLDS), of(MAIN, "coverage error")
  able = precondition(
    "one threshold reaches an accuracy of 60% or more", of(THRESHOLDS), at_least=0.6
  )
  room = precondition("exits chosen with the labels gain 3 points or more", gain, at_least=0.03)
  lowest, *_, highest = (
    results.select("accuracy", method=THRESHOLDS, cost=cost) for cost in evaluation.COSTS
  )
  text = "one threshold is right 10 points more often at a cost of .95 than of .2"
  rises = precondition(text, highest - lowest, at_least=0.1)
  biased = precondition("one threshold is off by .02 or more", of(THRESHOLDS, BIAS), at_least=0.02)
  covers = precondition("sets cover the truth at the level, to 2 points", off, at_most=0.02)

  def against(text, margin, requires, quantity=AREA, baseline=THRESHOLDS, **more):
    more |= {"better": "higher" if quantity == AREA else "lower", "margin": margin}
    return compare(text, of(MAIN, quantity), of(baseline, quantity), requires=requires, **more)

  paper = "above MSDNet's thresholds, L2W-DEN and BoostedNet at most costs"
  return [
    against(
      "accuracy over all costs exceeds that of one threshold on confidence after equal training",
      0.005,
      (able, room, rises),
      headline=True,
      paper=paper,
    ),
    against(
      "it exceeds that of thresholds that let shares q^l leave, MSDNet's rule",
      0.005,
      (able, room, rises),
      baseline=BY_SHARE,
      paper=paper,
    ),
    against(
      "weighting the classifiers adds to gates alone",
      0.002,
      (able, room, rises),
      baseline=UNWEIGHTED,
    ),
    against("confidence is nearer to accuracy at exits 0 and 1", 0.005, (biased,), BIAS),
    against(
      "prediction sets by exit hold .05 labels less than with one threshold at the same cost",
      0.05,
      (covers,),
      SIZE,
      paper="lower inefficiency at the same cost",
    ),
  ]


def figure(results: Results):
  """Accuracy for cost, alone and against one threshold; confidence against accuracy by exit."""
  drawing, axes = plots.panels(3)
  shown, gain = (MAIN, UNWEIGHTED, THRESHOLDS, BY_SHARE), f"accuracy above {THRESHOLDS}"
  drawn = Results(record for record in results if record.method in (*shown, ORACLE))
  for cost, method in itertools.product(evaluation.COSTS, shown):
    at, to = (results.select("accuracy", method=m, cost=cost) for m in (method, THRESHOLDS))
    drawn.add({method: {gain: at - to}}, cost=cost)
  quantities = ("accuracy", gain, "confidence minus accuracy")
  for ax, quantity, x in zip(axes, quantities, ("cost", "cost", "exit")):
    plots.curves(ax, drawn, quantity, x=x)
  axes[0].legend(fontsize=6)
  return drawing


def abstract(config: Config, mesh):
  """The step of the backbone's training, for a dry run."""
  dataset = datasets.describe(config.dataset)
  net = network(config, dataset)
  return abstract_step(
    net,
    classification_loss(net, final_loss),
    optax.adamw(config.backbone_learning_rate, weight_decay=1e-3),
    dataset.batch(config.batch_size),
    mesh,
  )


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
