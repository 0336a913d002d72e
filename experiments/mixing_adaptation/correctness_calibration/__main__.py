"""Optimizing calibration by gaining aware of prediction correctness.

A calibrator gives every sample a temperature, from how its prediction changes when the input is
transformed. Trained by cross-entropy it sharpens narrow misses; trained on whether the prediction
is right it does not. The method also gives right and wrong rows the same total weight, which lowers
confidence by itself: other losses with these weights are baselines. Networks are calibrated on
clean data and evaluated under corruptions.
"""

import dataclasses
import itertools
import sys
from functools import partial
from typing import Literal

import jax
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import CIFAR10_CORRUPTIONS, Split, raw_images
from experiments.kit.sweep import run_seeds
from experiments.kit.train import adamw_cosine, classification_loss
from experiments.mixing_adaptation.correctness_calibration import calibrators
from jaxlab import augment, models
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "correctness_calibration"
OURS, BASELINES = "correctness", ("temperature", "CE", "balanced CE", "correctness, unbalanced")
SEEDS = {"laptop": 24}


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the networks and the calibrators."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # cifar10 brings cifar10_corrupted (tfds).
  num_train: int = 4000  # Rows that networks are trained on.
  num_calibration: int = 3000  # Rows that calibrators are fitted to.
  num_test: int = 3000  # Test rows, clean and under every corruption.
  corruptions: tuple[str, ...] = augment.SIGNAL_CORRUPTIONS  # Kinds.
  severities: tuple[int, ...] = (1, 3, 5)  # Of each kind.
  networks: tuple[str, ...] = ("CNN", "MLP")  # Base models.
  conv_widths: tuple[int, ...] = (32, 64, 64)  # Channels of the CNN's blocks.
  dense_widths: tuple[int, ...] = (256, 256)  # Widths of the MLP's blocks.
  learning_rate: float = 2e-3  # Peak of the networks' schedule (AdamW, cosine).
  batch_size: int = 100  # Rows per update of the networks.
  num_steps: int = 1500  # Updates of the networks.
  top_k: int = 4  # Classes that the cues follow.
  calibrator_rate: float = 1e-3  # Learning rate of the calibrators.
  calibrator_batch: int = 1000  # Rows per update of the calibrators.
  calibrator_steps: int = 2000  # Updates of the calibrators.
  num_bins: int = 25  # Of the calibration error.


PRESETS = {
  "smoke": Config(
    num_train=120,
    num_calibration=60,
    num_test=60,
    corruptions=("blur", "drift"),
    severities=(4,),
    networks=("MLP",),
    dense_widths=(16,),
    batch_size=40,
    num_steps=20,
    calibrator_batch=30,
    calibrator_steps=20,
  ),
  "laptop": Config(),
  "paper": Config(
    dataset="cifar10",
    num_train=45_000,
    num_calibration=5_000,
    num_test=10_000,
    corruptions=CIFAR10_CORRUPTIONS,
    severities=(1, 2, 3, 4, 5),
    networks=("CNN",),
    conv_widths=(64, 128, 256, 512),
    batch_size=128,
    num_steps=70_000,
  ),
}


def load(config: Config, seed: int) -> tuple[Split, Split, Split]:
  """Rows to train on, to calibrate on and to test on; images stay in [0, 1] as corrupted ones."""
  dataset = datasets.describe(config.dataset)
  if not dataset.is_image:
    return dataset.splits(config.num_train, config.num_calibration, config.num_test, seed=seed)
  pool = raw_images(config.dataset, "train")
  parts = slice(config.num_train), slice(-config.num_calibration, None)
  train_rows, calibration = (Split(*(array[rows] for array in pool)) for rows in parts)
  return train_rows, calibration, raw_images(config.dataset, "test", limit=config.num_test)


def corrupted(config: Config, test: Split, key) -> list[Split]:
  """The test rows under every kind of corruption at every severity."""
  kinds, severities = config.corruptions, config.severities
  if datasets.describe(config.dataset).is_image:
    names = [f"{kind}_{severity}" for kind in kinds for severity in severities]
    return [raw_images(f"{config.dataset}_corrupted/{name}", "test") for name in names]
  stream = augment.corruption_stream(
    key, *test, kinds=kinds, severities=severities, batch_size=len(test.labels)
  )
  return list(map(Split, stream.inputs, stream.labels))


def network(config: Config, name: str):
  """A base model."""
  dataset = datasets.describe(config.dataset)
  if name == "MLP":
    return models.MLP(dataset.num_classes, config.dense_widths)
  if not dataset.is_image:
    return models.ConvNet(dataset.num_classes, config.conv_widths)
  strides = (1,) + (2,) * (len(config.conv_widths) - 1)
  return models.ConvNet(
    dataset.num_classes, config.conv_widths, kernel_size=(3, 3), strides=strides
  )


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config)
  dataset = datasets.describe(config.dataset)
  dataset.check_splits(config.num_train, config.num_calibration, config.num_test)
  kinds = augment.SIGNAL_CORRUPTIONS if config.dataset == "mnist1d" else CIFAR10_CORRUPTIONS
  sizes.check_known(kinds, corruptions=config.corruptions)
  sizes.check_known(("CNN", "MLP"), networks=config.networks)
  sizes.check_at_most(5, severities=max(config.severities))
  sizes.check_at_most(dataset.num_classes, top_k=config.top_k)
  sizes.check_at_most(config.num_train, batch_size=config.batch_size)
  sizes.check_at_most(config.num_calibration, calibrator_batch=config.calibrator_batch)


def run(config: Config, context: Context) -> Results:
  """Fits on all seeds of each network, then evaluates every calibrator on every set."""
  results = Results()
  *fitting, test = datasets.stack_seeds(partial(load, config), context.seed_numbers)
  for name in config.networks:
    fit = partial(calibrators.fit, config, network(config, name))
    fitted = run_seeds(context, f"{name}/fit", fit, arguments=fitting)
    scores = context.cached(f"{name}/evaluate", evaluate_all, config, context, name, fitted, test)
    for i, method in enumerate(calibrators.METHODS):
      row = {quantity: values[:, :, i] for quantity, values in scores.items()}
      misses, confidence = (row.pop(q).sum(1) for q in ("misses", "confidence of misses"))
      confidence = np.where(misses > 0, confidence, np.nan) / np.maximum(misses, 1)
      narrow = {"narrow misses": misses, "confidence of narrow misses": confidence}
      results.add({method: narrow}, network=name)
      of_set = dict(enumerate(itertools.product(config.corruptions, config.severities), start=1))
      for severity in (0, *config.severities):  # Clean rows, then means over the kinds.
        chosen = [i for i, (_, s) in of_set.items() if s == severity] or [0]
        means = {quantity: values[:, chosen].mean(1) for quantity, values in row.items()}
        results.add({method: means}, network=name, severity=severity)
      for i, (kind, severity) in of_set.items():
        ece = {"ECE of a corruption": row["ECE"][:, i]}
        results.add({method: ece}, network=name, corruption=kind, severity=severity)
  return results


def evaluate_all(config: Config, context: Context, name: str, fitted, test: Split) -> dict:
  """Scores `[seeds, sets, methods]`, the clean set first."""
  program = jax.jit(partial(calibrators.evaluate, config, network(config, name)))

  def of_seed(seed):
    fitted_here, clean = jax.tree.map(lambda leaf: leaf[seed], (fitted, test))
    sets = [clean, *corrupted(config, clean, jax.random.fold_in(context.seed_key(seed), 1))]
    return datasets.stack_seeds(lambda i: program(fitted_here, sets[i]), range(len(sets)))

  return datasets.stack_seeds(of_seed, range(context.seeds))


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements: calibration under shift, what it rests on, and what it costs."""

  def mean(quantity, method, severities=config.severities):
    """The mean over networks and severities (0: clean rows), `[seeds]`."""
    select = partial(results.select, quantity, method=method, average=("network",))
    return np.mean([select(severity=severity) for severity in severities], axis=0)

  def confidence(method):
    return results.select("confidence of narrow misses", method=method, average=("network",))

  ours, best = mean("ECE", OURS), np.min([mean("ECE", method) for method in BASELINES], axis=0)
  requires = (
    precondition("networks are right on 60% or more", mean("accuracy", "none", [0]), at_least=0.6),
    precondition("a temperature leaves .05 or more", mean("ECE", "temperature"), at_least=0.05),
  )
  lower = partial(compare, better="lower", requires=requires)
  return [
    lower(
      "under corruptions ECE is below that of a temperature, of CE, of balanced CE and of the "
      "unbalanced loss, the best per seed",
      ours,
      best,
      margin=0.005,
      headline=True,
      paper="best or second best ECE",
    ),
    lower(
      "under corruptions ECE is below that of balanced Brier",
      ours,
      mean("ECE", "balanced Brier"),
      margin=0.005,
    ),
    lower(
      "under corruptions ECE is below that of the same loss with constant cues",
      ours,
      mean("ECE", "correctness, constant cues"),
      margin=0.005,
    ),
    lower(
      "on clean rows ECE is at most .01 above that of a temperature",
      mean("ECE", OURS, [0]),
      mean("ECE", "temperature", [0]),
      margin=-0.01,
      paper="competitive",
    ),
    compare(
      "under corruptions confidence tells right from wrong better than a temperature's and CE's, "
      "AUROC, the better per seed",
      mean("AUROC", OURS),
      np.maximum(mean("AUROC", "temperature"), mean("AUROC", "CE")),
      margin=0.003,
      requires=requires,
      paper="best AUROC",
    ),
    lower(
      "narrow misses (true class at .3 to .5) are less confident than with balanced CE",
      confidence(OURS),
      confidence("balanced CE"),
      margin=0.02,
    ),
  ]


def figure(results: Results):
  """Calibration error by severity of the corruptions, of the claims' methods."""
  networks = results.distinct("network")
  drawing, axes = plots.panels(len(networks), width=4.6)
  shown = (*BASELINES, "balanced Brier", OURS)
  for ax, name in zip(axes, networks):
    for method in shown:
      plots.curves(ax, results, "ECE", x="severity", method=method, network=name)
    ax.set(title=name, xlabel="severity of the corruptions (0: clean rows)", ylabel="ECE")
  axes[0].legend(fontsize=8, title="calibrator")
  return drawing


def abstract(config: Config, mesh):
  """One update of a base model, for a dry run."""
  module = network(config, config.networks[0])
  batch = datasets.describe(config.dataset).batch(config.batch_size)
  adamw = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(module, classification_loss(module), adamw, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
