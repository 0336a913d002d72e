"""Optimizing calibration by gaining aware of prediction correctness.

A calibrator gives every sample a temperature, from how its prediction changes when the input is
transformed. Trained by cross-entropy it sharpens narrow misses; trained on whether the prediction
is right it does not. Networks are calibrated on clean data and evaluated under corruptions.
"""

import dataclasses
import itertools
import sys
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import CIFAR10_CORRUPTIONS, Split, raw_images
from experiments.kit.train import adamw_cosine, classification_loss, predict, train
from jaxlab import augment, losses, metrics, models, training, uncertainty
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "correctness_calibration"
# Calibrators that give every row a temperature: their loss, and whether they see the cues.
CALIBRATORS = {
  "adaptive CE": (metrics.negative_log_likelihood, True),
  "adaptive Brier": (losses.brier_loss, True),
  "correctness": (losses.correctness_aware_loss, True),
  "correctness, unbalanced": (partial(losses.correctness_aware_loss, balanced=False), True),
  "correctness, constant cues": (losses.correctness_aware_loss, False),
}
METHODS = ("none", "temperature", *CALIBRATORS)
OURS, BASELINES = "correctness", ("temperature", "adaptive CE")


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, the networks and the calibrators."""

  dataset: Literal["mnist1d", "cifar10"] = "mnist1d"  # cifar10 brings cifar10_corrupted (tfds).
  num_train: int = 4000  # Rows that networks are trained on.
  num_calibration: int = 3000  # Rows that calibrators are fitted to.
  num_test: int = 3000  # Test rows, clean and under every corruption.
  corruptions: tuple[str, ...] = augment.SIGNAL_CORRUPTIONS  # Kinds.
  severities: tuple[int, ...] = (2, 4)  # Of each kind.
  networks: tuple[str, ...] = ("CNN", "MLP")  # Base models.
  conv_widths: tuple[int, ...] = (32, 64, 64)  # Channels of the CNN's blocks.
  dense_widths: tuple[int, ...] = (256, 256)  # Widths of the MLP's blocks.
  learning_rate: float = 2e-3  # Peak of the networks' schedule (AdamW, cosine).
  batch_size: int = 100  # Rows per update of the networks.
  num_steps: int = 2000  # Updates of the networks.
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


def transforms(inputs: jax.Array) -> list[jax.Array]:
  """Three versions of each input: signals delayed, blurred, damped; images turned, gray, dimmed."""
  if inputs.ndim == 4:
    gray = jnp.broadcast_to(inputs.mean(-1, keepdims=True), inputs.shape)
    return [jnp.rot90(inputs, axes=(1, 2)), gray, 0.7 * inputs]
  delayed = inputs[:, jnp.maximum(jnp.arange(inputs.shape[1]) - 2, 0)]
  return [delayed, augment.blur_signals(inputs, 1.0), 0.7 * inputs]


def network(config: Config, name: str):
  """A base model."""
  _, shape, num_classes = datasets.describe(config.dataset)
  if name == "MLP":
    return models.MLP(num_classes, config.dense_widths)
  if len(shape) == 2:
    return models.ConvNet(num_classes, config.conv_widths)
  strides = (1,) + (2,) * (len(config.conv_widths) - 1)
  return models.ConvNet(num_classes, config.conv_widths, kernel_size=(3, 3), strides=strides)


def observe(config: Config, module, variables, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What a calibrator sees: logits of the inputs `[n, k]`, cues of their versions `[n, c]`."""
  logits, *others = (
    predict(module, variables, version).logits for version in (inputs, *transforms(inputs))
  )
  return logits, uncertainty.transform_cues(logits, jnp.stack(others), top_k=config.top_k)


def fit(config: Config, name: str, key, splits: tuple[Split, Split]) -> dict[str, Any]:
  """Trains a network and fits every calibrator to it."""
  rows, calibration = splits
  train_key, fit_key = jax.random.split(key)
  module = network(config, name)
  trained = train(
    train_key,
    module,
    classification_loss(module),
    adamw_cosine(config.learning_rate, config.num_steps),
    rows,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
  )
  logits, cues = observe(config, module, trained.variables, calibration.inputs)
  adaptive = {
    method: uncertainty.fit_adaptive_temperature(
      fit_key,
      logits,
      jnp.where(informed, cues, 1.0),
      calibration.labels,
      loss_fn=loss_fn,
      num_steps=config.calibrator_steps,
      batch_size=config.calibrator_batch,
      learning_rate=config.calibrator_rate,
    )._asdict()
    for method, (loss_fn, informed) in CALIBRATORS.items()
  }
  temperature = uncertainty.fit_temperature(logits, calibration.labels)
  return {"variables": trained.variables, "temperature": temperature, "adaptive": adaptive}


def evaluate(config: Config, module, fitted: dict[str, Any], split: Split) -> dict[str, jax.Array]:
  """Scores of all `METHODS` on one set, in their order."""
  logits, cues = observe(config, module, fitted["variables"], split.inputs)
  labels = split.labels
  temperatures = [jnp.ones(len(labels)), jnp.full(len(labels), fitted["temperature"])]
  for method, (_, informed) in CALIBRATORS.items():
    params = uncertainty.AdaptiveTemperature(**fitted["adaptive"][method])
    temperatures.append(uncertainty.adaptive_temperature(params, jnp.where(informed, cues, 1.0)))
  true_prob = jnp.exp(-metrics.negative_log_likelihood(logits, labels))
  correct = jnp.argmax(logits, -1) == labels
  narrow = ~correct & (true_prob >= 0.3) & (true_prob <= 0.5)

  def score(temperature):
    calibrated = uncertainty.apply_temperature(logits, temperature=temperature)
    probs = jax.nn.softmax(calibrated)
    confidence = jnp.max(probs, -1)
    return {
      "ECE": metrics.confidence_calibration_error(confidence, correct, num_bins=config.num_bins),
      "KS": metrics.kolmogorov_smirnov_error(confidence, correct),
      "Brier": jnp.mean(jnp.square(confidence - correct)),
      "AUROC": metrics.auroc(confidence, correct),
      "SCE": metrics.static_calibration_error(probs, labels),
      "NLL": jnp.mean(metrics.negative_log_likelihood(calibrated, labels)),
      "mean temperature": jnp.mean(temperature),
      "accuracy": jnp.mean(correct),
      "misses": jnp.sum(narrow),
      "confidence of misses": jnp.sum(jnp.where(narrow, confidence, 0.0)),
    }

  return jax.lax.map(score, jnp.stack(temperatures))


def run(config: Config, context: Context) -> Results:
  """Fits on all seeds of each network, then evaluates every calibrator on every set."""
  results = Results()
  *fitting, test = datasets.stack_seeds(partial(load, config), context.seed_numbers)
  for name in config.networks:
    fitted = context.cached(
      f"{name}/fit",
      training.over_seeds,
      context.key,
      partial(fit, config, name),
      num_seeds=context.seeds,
      arguments=fitting,
      mesh=context.mesh,
    )
    scores = context.cached(f"{name}/evaluate", evaluate_all, config, context, name, fitted, test)
    for i, method in enumerate(METHODS):
      row = {quantity: values[:, :, i] for quantity, values in scores.items()}
      misses, confidence = (row.pop(q).sum(1) for q in ("misses", "confidence of misses"))
      confidence = np.where(misses > 0, confidence, np.nan) / np.maximum(misses, 1)
      narrow = {"narrow misses": misses, "confidence of narrow misses": confidence}
      results.add({method: narrow}, network=name)
      for part, chosen in {"clean": slice(1), "corrupted": slice(1, None)}.items():
        means = {quantity: values[:, chosen].mean(1) for quantity, values in row.items()}
        results.add({method: means}, network=name, data=part)
      sets = itertools.product(config.corruptions, config.severities)
      for (kind, severity), values in zip(sets, row["ECE"][:, 1:].T, strict=True):
        ece = {"ECE of a corruption": values}
        results.add({method: ece}, network=name, corruption=kind, severity=severity)
  return results


def evaluate_all(config: Config, context: Context, name: str, fitted, test: Split) -> dict:
  """Scores `[seeds, sets, methods]`, the clean set first."""
  program = jax.jit(partial(evaluate, config, network(config, name)))

  def of_seed(seed):
    fitted_here, clean = jax.tree.map(lambda leaf: leaf[seed], (fitted, test))
    sets = [clean, *corrupted(config, clean, jax.random.fold_in(context.seed_key(seed), 1))]
    return datasets.stack_seeds(lambda i: program(fitted_here, sets[i]), range(len(sets)))

  return datasets.stack_seeds(of_seed, context.seed_numbers)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statement; everything else is a row."""
  mean = partial(results.select, average=("network",))
  able = mean("accuracy", method="none", data="clean")
  baseline = np.min([mean("ECE", method=m, data="corrupted") for m in BASELINES], axis=0)
  statement = compare(
    "under corruptions ECE is below that of temperature and of adaptive CE, the better per seed",
    mean("ECE", method=OURS, data="corrupted"),
    baseline,
    better="lower",
    margin=0.01,
    headline=True,
    requires=(
      precondition("the networks are right on 60% or more of clean rows", able, at_least=0.6),
      precondition("the better of both has an ECE of .05 or more", baseline, at_least=0.05),
    ),
    paper="best or second best ECE",
  )
  return [statement]


def figure(results: Results):
  """Calibration error on clean and corrupted rows, and by corruption at the highest severity."""
  networks = results.distinct("network")
  severity = max(results.distinct("severity"), default=None)
  drawing, axes = plots.panels(2 * len(networks), width=5.0)
  for i, name in enumerate(networks):
    plots.intervals(axes[2 * i], results, "ECE", by="data", network=name)
    where = {"network": name, "severity": severity}
    plots.intervals(axes[2 * i + 1], results, "ECE of a corruption", by="corruption", **where)
    for ax, title in zip(axes[2 * i :], (name, f"{name}, severity {severity}")):
      ax.set_title(title)
  axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
  return drawing


def abstract(config: Config, mesh):
  """One update of a base model, for a dry run."""
  module = network(config, config.networks[0])
  batch = datasets.describe(config.dataset).batch(config.batch_size)
  adamw = adamw_cosine(config.learning_rate, config.num_steps)
  return abstract_step(module, classification_loss(module), adamw, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
