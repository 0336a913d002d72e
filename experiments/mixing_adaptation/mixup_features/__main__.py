"""Mixup learns the feature that few examples carry, and may be stopped once it has.

First the model in which that is proved: patches with a common or a rare feature of the class, a
two-layer network with square activation, full-batch descent on all pairs. The shared gradient needs
both features in one patch of a mixture: with the patches of all examples aligned, as the theory
assumes, they meet in every pair; with the patches of each example permuted, in a quarter of them.
Then networks whose labels are mixed in another ratio than their inputs, or whose mixup ends early.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import choose, grid
from experiments.kit.train import sgd_cosine
from experiments.mixing_adaptation.mixup_features import networks, patches
from experiments.mixing_adaptation.mixup_features.networks import FIXED, SEPARATE
from experiments.mixing_adaptation.mixup_features.patches import (
  ALIGNED,
  LABELS,
  MIXUP,
  PERMUTED,
  PLAIN,
  STOPPED,
  WEIGHTED,
)
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "mixup_features"


@dataclasses.dataclass(frozen=True)
class Config:
  """The patch data, the descent on them, and the networks' training."""

  num_examples: int = 100  # Training examples made of patches.
  dim: int = 500  # Dimension of a patch.
  num_filters: int = 10  # Filters a class.
  num_test: int = 1000  # Test examples of either kind.
  descent_steps: int = 2500  # Full-batch steps.
  step_size: float = 0.1  # Their size.
  ratio: float = 0.6  # Share of the first input of a pair.
  stop: int = 2000  # Step after which mixup ends.
  log_every: int = 100  # Steps between measurements.
  dataset: str = "mnist1d"  # Of the networks: mnist1d, or a tfds name.
  splits: tuple[int, ...] = (1000, 1000, 2000)  # Their training, validation, test examples.
  network_steps: int = 1000  # SGD steps of the networks.
  batch_size: int = 50  # Examples an SGD step.
  learning_rate: float = 0.1  # Peak; momentum 0.9, cosine to 0.
  weight_decays: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # Added to the gradient; searched.
  alpha: float = 1.0  # Inputs mix by Beta(alpha, alpha), folded to at least 1/2.
  label_ratio: float = 0.8  # The fixed share of the first label.
  stop_share: float = 0.5  # Share of training after which mixup ends.
  num_evaluations: int = 10  # Evaluations; the median of the last half counts.


PRESETS = {
  "smoke": Config(
    num_examples=20, dim=20, num_filters=2, num_test=20, descent_steps=20, stop=10,
    log_every=10, splits=(60, 60, 60), network_steps=4, batch_size=20,
    weight_decays=(1e-4,), num_evaluations=2,
  ),
  "laptop": Config(),
  "paper": Config(
    dim=2000, num_examples=400, dataset="cifar10", splits=(45_000, 5_000, 10_000),
    network_steps=78_000, batch_size=128,
  ),
}  # fmt: skip
SEEDS = {"laptop": 6}


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, shares=("ratio", "label_ratio", "stop_share"))
  datasets.describe(config.dataset).check_splits(*config.splits)
  sizes.check_at_most(config.splits[0], batch_size=config.batch_size)
  sizes.check_divides(config.log_every, descent_steps=config.descent_steps)
  sizes.check_divides(config.num_evaluations, network_steps=config.network_steps)


def run(config: Config, context: Context) -> Results:
  """Descent on patches, then the networks."""
  results = Results()
  methods, wheres, settings = zip(*patches.descents(config))
  evaluate = functools.partial(patches.descend, config)
  curves = grid(context, "patches", evaluate, (), settings)
  for i, (method, where) in enumerate(zip(methods, wheres)):
    ends = {name: values[:, i, -1] for name, values in curves.items()}
    start = curves["rare alignment"][:, i, 0]
    ends["growth of the rare alignment"] = ends["rare alignment"] / start
    results.add({method: ends}, **where)
    for row in range(curves["rare error"].shape[2]):
      course = {f"{n} by step": curves[n][:, i, row] for n in ("rare alignment", "rare error")}
      results.add({method: course}, **where, step=row * config.log_every)
  dataset = datasets.describe(config.dataset)
  splits = datasets.stack_seeds(
    lambda seed: dataset.splits(*config.splits, seed=seed), context.seed_numbers
  )
  evaluate = functools.partial(networks.train_network, config, dataset)
  for method, settings in networks.search_space(config).items():
    scores = grid(context, f"networks/{method}", evaluate, splits, settings)
    measured = choose(scores, settings, select="validation accuracy")
    course = measured.pop("accuracy by step")
    results.add({method: measured}, dataset=dataset.name)
    for row, values in enumerate(course.T, 1):
      step = row * (config.network_steps // config.num_evaluations)
      results.add({method: {"accuracy by step": values}}, dataset=dataset.name, step=step)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements on patches, then on networks."""

  def of(quantity, method, arrangement=ALIGNED):
    return results.select(quantity, method=method, arrangement=arrangement)

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
  mixup = of("rare error", MIXUP)
  learned = (*requires(ALIGNED), precondition("mixup errs on 10% or less", mixup, at_most=0.1))
  others = [of("rare error", method) for method in (PLAIN, LABELS, WEIGHTED)]
  accuracy = functools.partial(results.select, "accuracy", dataset=config.dataset)
  plain = accuracy(method=PLAIN)
  able = [
    precondition("plain networks are right on 80% or more", plain, at_least=0.8),
    precondition("and on 97% or less", plain, at_most=0.97),
  ]
  worst = np.minimum(accuracy(method=FIXED), accuracy(method=SEPARATE))
  return [
    below(
      "aligned patches: mixup's test error on the rare feature is 30 points below the best without",
      mixup,
      np.min(others, axis=0),
      margin=0.3,
      headline=True,
      requires=requires(ALIGNED),
      paper="near 0 against 1/2 in the limit",
    ),
    below(
      f"aligned: mixup until step {config.stop} is within 2 points of mixup to the end",
      of("rare error", STOPPED),
      mixup,
      margin=-0.02,
      requires=learned,
    ),
    below(
      "permuted patches: mixup lowers the test error on the rare feature by 30 points",
      of("rare error", MIXUP, PERMUTED),
      of("rare error", PLAIN, PERMUTED),
      margin=0.3,
      requires=requires(PERMUTED),
    ),
    compare(
      "networks: mixup raises accuracy",
      accuracy(method=MIXUP),
      plain,
      requires=able,
      paper="higher, CIFAR-10 and CIFAR-100",
    ),
    compare(
      "networks: the worse of two other label ratios is at most a point below equal ratios",
      worst,
      accuracy(method=MIXUP),
      margin=-0.01,
      requires=able,
      paper="similar",
    ),
    compare(
      f"networks: mixup for {config.stop_share:g} of training is no worse than mixup to the end",
      accuracy(method=STOPPED),
      accuracy(method=MIXUP),
      requires=able,
      paper="as good or better",
    ),
  ]


def figure(results: Results):
  """Alignments and errors along the descents, accuracy along the networks' training."""
  drawing, axes = plots.panels(4, width=4.0)
  shown = [
    ("rare alignment by step", "alignment with the rare feature", ALIGNED),
    ("rare error by step", "test error on the rare feature", ALIGNED),
    ("rare error by step", "test error on the rare feature", PERMUTED),
    ("accuracy by step", "test accuracy", None),
  ]
  for ax, (quantity, label, arrangement) in zip(axes, shown):
    where = {"arrangement": arrangement} if arrangement else {}
    plots.curves(ax, results, quantity, x="step", **where)
    ax.set(title=f"{arrangement} patches" if arrangement else "networks", ylabel=label)
    ax.legend(fontsize=7)
  axes[0].set_yscale("log")
  return drawing


def abstract(config: Config, mesh):
  """The networks' training step with mixup, for a dry run."""
  dataset = datasets.describe(config.dataset)
  module = networks.network(dataset)
  batch = dataset.batch(config.batch_size), jax.ShapeDtypeStruct((config.batch_size,), jnp.bool_)
  sgd = sgd_cosine(config.learning_rate, config.network_steps)
  return abstract_step(module, networks.mixing_loss(config, module, 0), sgd, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
