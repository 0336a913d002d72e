"""Decoupled mixup: two labels of a mixture need not take probability from each other.

Little data, every mixing policy with mixup's cross-entropy and with the decoupled loss; what the
networks make of mixtures of two test examples; and mixtures of labelled with pseudo-labelled
examples on top of FixMatch.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import Dataset, Split
from experiments.kit.sweep import grid
from experiments.kit.train import accuracy, predict, sgd_cosine, train
from experiments.mixing_adaptation.decoupled_mixup.policies import mixing_loss, network, policies
from experiments.mixing_adaptation.decoupled_mixup.semi_supervised import FIXMATCH, semi_supervised
from jaxlab import losses
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "decoupled_mixup"
NONE, PLAIN, DECOUPLED = "no mixing", "mixup's loss", "decoupled"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the policies, and the training."""

  datasets: tuple[str, ...] = ("mnist1d", "digits")  # Sets; others, such as cifar100, by tfds.
  num_train: tuple[int, ...] = (1000, 300)  # Training rows of each.
  num_test: tuple[int, ...] = (4000, 1497)  # Test rows of each.
  network: Literal["conv", "resnet18", "resnext50"] = "conv"  # conv: two or three small blocks.
  policies: tuple[str, ...] = ("mixup", "box", "manifold", "saliency")  # saliency: images only.
  alphas: tuple[float, ...] = (1.0, 1.0, 2.0, 1.0)  # Of each policy's Beta distribution.
  num_layers: int = 3  # Layers that manifold mixup draws from, the input among them.
  eta: float = 0.1  # Weight of the decoupled terms.
  other_etas: tuple[float, ...] = (0.01, 0.5, 1.0)  # More weights, with mixup only.
  num_steps: tuple[int, ...] = (1500, 750)  # Updates on each.
  batch_size: int = 100  # Rows per update.
  learning_rate: float = 0.1  # Of SGD with momentum .9, falling to 0 as a cosine.
  weight_decay: float = 1e-4  # On all parameters.
  eval_every: int = 50  # Updates between snapshots; the median of the last ten is reported.
  crop: int = 0  # Pixels of random shifts, with flips; 0 for none.
  num_pairs: int = 2000  # Mixed pairs of test examples.
  num_labeled: int = 100  # Labeled signals of the semi-supervised panel; 0 leaves it out.
  num_unlabeled: int = 4000  # Signals without labels there.
  semi_batch: int = 64  # Labeled rows per update there, and as many unlabeled ones.
  semi_steps: int = 1500  # Updates there.
  semi_learning_rate: float = 0.03  # Learning rate there.


PRESETS = {
  "smoke": Config(
    datasets=("digits",),
    num_train=(40,),
    num_test=(60,),
    policies=("mixup",),
    alphas=(1.0,),
    other_etas=(),
    num_steps=(4,),
    batch_size=20,
    eval_every=2,
    num_pairs=40,
    num_labeled=20,
    num_unlabeled=40,
    semi_batch=8,
    semi_steps=4,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar100",),
    num_train=(50_000,),
    num_test=(10_000,),
    network="resnet18",
    alphas=(1.0, 0.2, 2.0, 0.2),
    other_etas=(),
    num_steps=(400_000,),  # 800 epochs.
    eval_every=8_000,
    crop=4,
    num_pairs=10_000,
    num_labeled=0,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Trains with every policy and loss on every set, then the semi-supervised panel."""
  results = Results()
  sizes = zip(config.num_train, config.num_test, config.num_steps, strict=True)
  for name, (num_train, num_test, num_steps) in zip(config.datasets, sizes, strict=True):
    dataset = datasets.describe(name)
    splits = datasets.stack_seeds(
      lambda seed: splits_and_pairs(config, dataset.splits(num_train, num_test, seed=seed)),  # noqa: B023
      context.seed_numbers,
    )
    for policy in policies(config, dataset):
      evaluate = functools.partial(_evaluate, config, dataset, policy, num_steps)
      etas = _etas(config, policy)
      settings = [{"eta": eta} for eta in etas]
      stage = f"{name}/{policy or 'none'}"
      scores = context.cached(stage, grid, context, evaluate, splits, settings)
      for i, eta in enumerate(etas):
        measured = {quantity: values[:, i] for quantity, values in scores.items()}
        results.extras[f"{name}/{policy}/{eta:g}"] = measured.pop("confidence in both labels")
        method = NONE if policy is None else DECOUPLED if eta else PLAIN
        where = {"eta": eta} if eta and policy else {}
        results.add({method: measured}, dataset=name, policy=policy, **where)
  if config.num_labeled:
    results.add(semi_supervised(config, context), dataset="mnist1d, few labels")
  return results


def _etas(config: Config, policy: str | None) -> tuple[float, ...]:
  """Weights of the decoupled terms to train with; at 0 the loss is mixup's own."""
  if policy is None:
    return (0.0,)
  return (0.0, config.eta, *(config.other_etas if policy == "mixup" else ()))


def splits_and_pairs(config: Config, splits: tuple[Split, Split]) -> tuple[Split, Split, Split]:
  """Training rows, test rows, and equal mixtures of test rows of two classes with both labels."""
  _, test = splits
  rng = np.random.default_rng(0)
  first, second = rng.integers(len(test.labels), size=(2, 4 * config.num_pairs))
  kept = np.flatnonzero(test.labels[first] != test.labels[second])[: config.num_pairs]
  first, second = first[kept], second[kept]
  inputs = 0.5 * test.inputs[first] + 0.5 * test.inputs[second]
  return *splits, Split(inputs, np.stack([test.labels[first], test.labels[second]], axis=-1))


def _evaluate(config: Config, dataset: Dataset, policy, num_steps: int, key, splits, setting):
  """Trains one network: its accuracy, and what it makes of mixtures."""
  training_rows, test, pairs = splits
  module = network(config, dataset)
  objective = functools.partial(losses.decoupled_mixup_loss, eta=setting["eta"])
  trained = train(
    key,
    module,
    mixing_loss(config, dataset, policy, objective),
    sgd_cosine(config.learning_rate, num_steps, weight_decay=config.weight_decay),
    training_rows,
    num_steps=num_steps,
    batch_size=config.batch_size,
    evaluate=lambda trained: trained.variables,
    eval_every=config.eval_every,
  )
  # To evaluate the last snapshots only, after training, costs less than to evaluate all of them.
  last = jax.tree.map(lambda leaf: leaf[-10:], trained.scores)
  accuracies = jax.lax.map(lambda variables: accuracy(module, variables, test), last)
  logits = predict(module, trained.variables, pairs.inputs).logits
  both = jnp.take_along_axis(logits, pairs.labels, axis=-1)
  above = jnp.sum(logits > jnp.min(both, axis=-1, keepdims=True), axis=-1)
  probs = jnp.take_along_axis(jax.nn.softmax(logits), pairs.labels, axis=-1)
  confidence = 2 * jnp.min(probs, axis=-1)
  return {
    "accuracy": jnp.median(accuracies),
    "both labels on top": jnp.mean(above <= 1),
    "mean confidence in both labels": jnp.mean(confidence),
    "confidence in both labels": confidence,
  }


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def mean(quantity: str, method: str):
    where = {"eta": config.eta} if method == DECOUPLED else {}
    return results.select(quantity, method=method, average=("dataset", "policy"), **where)

  plain = mean("accuracy", PLAIN)
  room = precondition("mixup's networks err on 3% or more", plain, at_most=0.97)
  able = precondition("mixup's networks are right on 80% or more", plain, at_least=0.8)
  statements = [
    compare(
      "the decoupled loss raises accuracy over mixup's, a mean over policies and sets",
      mean("accuracy", DECOUPLED),
      plain,
      margin=0.002,
      headline=True,
      requires=(able, room),
      paper="CIFAR-100, ResNet-18: 79.12 to 80.44 with mixup, .3 to 1.3 points by policy",
    ),
    compare(
      "both labels of a mixture are the top two more often, a mean over policies and sets",
      mean("both labels on top", DECOUPLED),
      mean("both labels on top", PLAIN),
      margin=0.005,
      requires=(able,),
      paper="higher",
    ),
  ]
  if config.num_labeled:
    few = {"quantity": "accuracy", "dataset": "mnist1d, few labels"}
    fixmatch, mixup, ours = (
      results.select(method=method, **few)
      for method in (FIXMATCH, f"{FIXMATCH} + {PLAIN}", f"{FIXMATCH} + {DECOUPLED}")
    )
    works = precondition("FixMatch is right on 60% or more", fixmatch, at_least=0.6)
    text = "few labels: the decoupled loss raises accuracy over mixup's on top of FixMatch"
    statements.append(compare(text, ours, mixup, margin=0.002, requires=(works,)))
  return statements


def figure(results: Results):
  """Accuracy and the response to mixtures by policy, for every set."""
  figure, axes = plots.panels(2 * len(results.distinct("dataset", method=PLAIN)) + 1)
  panels = iter(axes)
  for name in results.distinct("dataset", method=PLAIN):
    for quantity in ("accuracy", "both labels on top"):
      ax = next(panels)
      for method, eta in ((PLAIN, None), (DECOUPLED, results.distinct("eta")[0])):
        plots.intervals(ax, results, quantity, by="policy", method=method, dataset=name, eta=eta)
      ax.axhline(results.select(quantity, method=NONE, dataset=name).mean(), color="gray", ls=":")
      ax.set_title(name)
  axes[0].legend(fontsize=8)
  eta, name = results.distinct("eta")[0], results.distinct("dataset", method=PLAIN)[0]
  policy = results.distinct("policy", dataset=name)[0]
  values = {m: results.extras[f"{name}/{policy}/{e:g}"] for m, e in ((PLAIN, 0), (DECOUPLED, eta))}
  plots.histograms(axes[-1], values, np.linspace(0, 1, 31))
  axes[-1].set(xlabel="2 min(p_a, p_b) of a mixture", title=f"{name}, {policy}")
  return figure


def abstract(config: Config, mesh):
  """One mixup step on the first set, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  objective = functools.partial(losses.decoupled_mixup_loss, eta=config.eta)
  return abstract_step(
    network(config, dataset),
    mixing_loss(config, dataset, config.policies[0], objective),
    sgd_cosine(config.learning_rate, config.num_steps[0], weight_decay=config.weight_decay),
    dataset.batch(config.batch_size),
    mesh,
  )


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
