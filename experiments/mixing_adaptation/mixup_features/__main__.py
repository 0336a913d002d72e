"""Mixup learns the feature that few examples carry, and may be stopped once it has.

First the model in which that is proved: patches with a common or a rare feature of the class, a
two-layer network with square activation, full-batch descent on all pairs. The shared gradient needs
both features in one patch of a mixture: with the patches of all examples aligned, as the theory
assumes, they meet in every pair; with the patches of each example permuted, in a quarter of them.
Then networks whose labels are mixed in another ratio than their inputs, or whose mixup ends early.
"""

import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Dataset
from experiments.kit.sweep import grid
from experiments.kit.train import accuracy, classification_loss, sgd_cosine, train
from experiments.mixing_adaptation.mixup_features import patches
from experiments.mixing_adaptation.mixup_features.patches import (
  ALIGNED,
  MIXUP,
  OTHER_RATIO,
  PERMUTED,
  PLAIN,
  STOPPED,
)
from jaxlab import augment, losses, models
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "mixup_features"


@dataclasses.dataclass(frozen=True)
class Config:
  """The patch data, the descent on them, and the networks' training."""

  num_examples: int = 100  # Training examples made of patches.
  dim: int = 500  # Dimension of a patch.
  num_filters: int = 10  # Filters a class.
  num_test: int = 2000  # Test examples of either kind.
  descent_steps: int = 1500  # Full-batch steps.
  step_size: float = 0.1  # Their size.
  ratio: float = 0.6  # Share of the first input of a pair.
  label_ratios: tuple[float, ...] = (0.9, 0.55)  # Shares of the first label that differ from it.
  stops: tuple[int, ...] = (400, 700, 1000)  # Steps after which mixup ends.
  log_every: int = 10  # Steps between measurements.
  dataset: str = "mnist1d"  # Of the networks: mnist1d, or a tfds name.
  num_train: int = 1000  # Their training examples.
  num_network_test: int = 4000  # Their test examples.
  network_steps: int = 2000  # SGD steps of the networks.
  batch_size: int = 100  # Examples an SGD step.
  learning_rate: float = 0.1  # Peak; momentum 0.9, cosine to 0.
  weight_decay: float = 1e-4  # Added to the gradient.
  alpha: float = 1.0  # Inputs mix by Beta(alpha, alpha), folded to at least 1/2.
  label_ratio: float = 0.8  # The fixed share of the first label.
  stop_shares: tuple[float, ...] = (0.25, 0.5, 0.75)  # Shares of training after which mixup ends.
  num_evaluations: int = 20  # Test evaluations; the median of the last half counts.


PRESETS = {
  "smoke": Config(
    num_examples=20,
    dim=20,
    num_filters=2,
    num_test=20,
    descent_steps=20,
    stops=(10,),
    num_train=60,
    num_network_test=240,
    network_steps=4,
    batch_size=20,
    stop_shares=(0.5,),
    num_evaluations=2,
  ),
  "laptop": Config(),
  "paper": Config(
    dim=2000,
    num_examples=400,
    dataset="cifar10",
    num_train=50_000,
    num_network_test=10_000,
    network_steps=78_000,
    batch_size=128,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Descent on patches, then the networks."""
  results, num_rows = Results(), config.descent_steps // config.log_every
  methods, wheres, settings = zip(*patches.descents(config))
  evaluate = functools.partial(patches.descend, config)
  curves = context.cached("patches", grid, context, evaluate, (), settings)
  for i, (method, where) in enumerate(zip(methods, wheres)):
    measured = {name: values[:, i] for name, values in curves.items()}
    if method == MIXUP:  # The first of its arrangement.
      # Half of what mixup brings the rare feature to: where methods are compared alike.
      reference = measured["rare alignment"][:, -1] / 2
    results.add({method: patches.summary(measured, reference)}, **where)
    for row in range(0, num_rows + 1, -(-num_rows // 30)):  # Thirty points draw a curve.
      course = {f"{n} by step": measured[n][:, row] for n in ("rare alignment", "rare error")}
      results.add({method: course}, **where, step=row * config.log_every)
  dataset = datasets.describe(config.dataset)
  splits = datasets.stack_seeds(
    lambda seed: dataset.splits(config.num_train, config.num_network_test, seed=seed),
    context.seed_numbers,
  )
  evaluate = functools.partial(train_network, config, dataset)
  methods, wheres, settings = zip(*mixings(config))
  scores = context.cached("networks", grid, context, evaluate, splits, settings)["accuracy"]
  for i, (method, where) in enumerate(zip(methods, wheres)):
    where = {"dataset": dataset.name, **where}
    last = scores[:, i, -(config.num_evaluations // 2) :]
    results.add({method: {"accuracy": np.median(last, axis=1)}}, **where)
    for row, values in enumerate(scores[:, i].T, 1):
      step = row * (config.network_steps // config.num_evaluations)
      results.add({method: {"accuracy by step": values}}, **where, step=step)
  return results


# --------------------------------------------------------------------------------------- networks


def mixings(config: Config) -> list[tuple[str, dict, dict]]:
  """(method, what its records say beside it, the numbers `train_network` takes) of every training.

  `share` of the steps mix; labels do so as inputs (kind 0), in a fixed ratio, or in one of theirs.
  """

  def mixing(method, share=1.0, kind=0, **where):
    return method, where, {"share": share, "kind": kind}

  return [
    mixing(PLAIN, share=0.0),
    mixing(MIXUP),
    mixing(OTHER_RATIO, kind=1, label_ratio=config.label_ratio),
    mixing("mixup, label ratio drawn separately", kind=2),
    *(mixing(STOPPED, share=share, share_of_steps=share) for share in config.stop_shares),
  ]


def network(dataset: Dataset):
  """The classifier."""
  if dataset.is_image:
    return models.resnet18(dataset.num_classes, stem="cifar")
  return models.ConvNet(dataset.num_classes)


def mixing_loss(config: Config, module, kind):
  """Cross-entropy of mixtures; beside its rows a batch says whether they are mixed at all."""

  def loss(apply, key, batch):
    (inputs, labels), mixes = batch
    key, label_key = jax.random.split(key)
    draw_mix = functools.partial(
      augment.draw_mix, batch_size=len(labels), alpha=config.alpha, majority=True
    )
    ratio, partners = draw_mix(key)
    fixed = jnp.full_like(ratio, config.label_ratio)
    label_ratio = jnp.stack([ratio, fixed, draw_mix(label_key).ratio])[kind]
    ratio, label_ratio = (jnp.where(mixes, share, 1.0) for share in (ratio, label_ratio))
    logits = apply(augment.interpolate_pairs(inputs, partners, ratio)).logits
    return losses.mixup_cross_entropy(logits, labels, labels[partners], label_ratio)

  return classification_loss(module, loss)


def train_network(config: Config, dataset: Dataset, key, splits, setting):
  """Test accuracy along the training of one network."""
  module = network(dataset)
  trained = train(
    key,
    module,
    mixing_loss(config, module, setting["kind"]),
    sgd_cosine(config.learning_rate, config.network_steps, weight_decay=config.weight_decay),
    splits[0],
    num_steps=config.network_steps,
    batch_size=config.batch_size,
    schedule=jnp.arange(config.network_steps) < setting["share"] * config.network_steps,
    evaluate=lambda trained: accuracy(module, trained.variables, splits[1]),
    eval_every=config.network_steps // config.num_evaluations,
  )
  return {"accuracy": trained.scores}


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements on patches, then on networks."""

  def of(quantity, method, arrangement=ALIGNED, **where):
    return results.select(quantity, method=method, arrangement=arrangement, **where)

  def requires(arrangement):
    fitted, common, rare = (
      of(f"{kind} error", PLAIN, arrangement) for kind in ("training", "common", "rare")
    )
    return (
      precondition("plain training fits every example", fitted, at_most=0.0),
      precondition("it errs on at most 1% of the common features", common, at_most=0.01),
      precondition("it errs on 40% or more of the rare ones", rare, at_least=0.4),
    )

  below = functools.partial(compare, better="lower")
  mixup, stop = of("rare error", MIXUP), max(config.stops)
  learned = (*requires(ALIGNED), precondition("mixup errs on 10% or less", mixup, at_most=0.1))
  others = [of("rare error", OTHER_RATIO, label_ratio=ratio) for ratio in config.label_ratios]
  accuracy_of = functools.partial(results.select, "accuracy", dataset=config.dataset)
  plain = accuracy_of(method=PLAIN)
  able = [precondition("plain networks are right on 80% or more", plain, at_least=0.8)]
  share = sorted(config.stop_shares)[len(config.stop_shares) // 2]
  return [
    below(
      "aligned patches: mixup lowers the test error on the rare feature",
      mixup,
      of("rare error", PLAIN),
      margin=0.3,
      headline=True,
      requires=requires(ALIGNED),
      paper="near 0 against 1/2 in the limit",
    ),
    below(
      f"aligned: mixup until step {stop} is within 5 points of mixup to the end, rare feature",
      of("rare error", STOPPED, stop=stop),
      mixup,
      margin=-0.05,
      requires=learned,
    ),
    below(
      "aligned: the worst other label ratio is within 5 points of equal ratios, rare feature",
      np.max(others, axis=0),
      mixup,
      margin=-0.05,
      requires=learned,
    ),
    below(
      "permuted patches: mixup lowers the test error on the rare feature",
      of("rare error", MIXUP, PERMUTED),
      of("rare error", PLAIN, PERMUTED),
      margin=0.3,
      requires=requires(PERMUTED),
    ),
    compare(
      "networks: mixup raises accuracy",
      accuracy_of(method=MIXUP),
      plain,
      margin=0.005,
      requires=able,
      paper="higher, CIFAR-10 and CIFAR-100",
    ),
    compare(
      f"networks: mixup for {share:g} of training is at most half a point below mixup to the end",
      accuracy_of(method=STOPPED, share_of_steps=share),
      accuracy_of(method=MIXUP),
      margin=-0.005,
      requires=able,
      paper="as good or better",
    ),
  ]


def figure(results: Results):
  """Alignments and errors along the descents, accuracy along the networks' training."""
  drawing, axes = plots.panels(5, width=4.0)
  shown = itertools.product((ALIGNED, PERMUTED), ("rare alignment by step", "rare error by step"))
  shown = [*((quantity, {"arrangement": a}) for a, quantity in shown), ("accuracy by step", {})]
  for ax, (quantity, where) in zip(axes, shown):
    for method in results.distinct("method", quantity=quantity, **where):
      # Of several ratios or stops, the last.
      last = results.matching(quantity=quantity, method=method, **where)[-1].setting
      fixed = {name: value for name, value in last.items() if name != "step"}
      plots.curves(ax, results, quantity, x="step", method=method, **fixed)
    ax.set_title(f"{where['arrangement']} patches" if where else "networks")
  for ax in (axes[0], axes[2]):
    ax.set_yscale("log")
  for ax in (axes[0], axes[4]):
    ax.legend(fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """The networks' training step with mixup, for a dry run."""
  dataset = datasets.describe(config.dataset)
  module = network(dataset)
  batch = dataset.batch(config.batch_size), jax.ShapeDtypeStruct((config.batch_size,), jnp.bool_)
  sgd = sgd_cosine(config.learning_rate, config.network_steps, weight_decay=config.weight_decay)
  return abstract_step(module, mixing_loss(config, module, 0), sgd, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
