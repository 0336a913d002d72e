"""On the limitations of temperature scaling for distributions with overlaps.

Networks that interpolate their training labels are sure and wrong on part of the overlap of two
classes, and one temperature cannot mend that; mixup spreads its prediction over the classes that
overlap. Overlap is made by flipping labels into a partner class (train, held-out and test alike),
and by Gaussians whose posterior is known.
"""

import dataclasses
import functools
import itertools
import math
import operator
import re
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import entr

from experiments import classification, common
from experiments.classification import Split
from experiments.mixing_adaptation.overlap_problems import Problem, Setting, settings
from experiments.mixing_adaptation.overlap_training import fit
from jaxlab import augment, losses, metrics, models, training, uncertainty

PAPER = "overlap_calibration"
SCALED = " + temperature"
METRICS = ("NLL", "ECE", "ACE", "MCE", "error")
# Mixup with the number of mixed points that has the least scaled NLL on the held-out rows.
TUNED = "mixup"


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, how far they overlap, and the training."""

  datasets: tuple[str, ...] = ("mnist1d", "digits", "gaussians")  # Sets; cifar10 by tfds.
  num_train: tuple[int, ...] = (4000, 1000, 0)  # Training rows of each; gaussians: see below.
  num_held_out: tuple[int, ...] = (1000, 300, 1000)  # Rows for temperature and early stopping.
  num_test: tuple[int, ...] = (4000, 497, 4000)  # Test rows; cifar10: all of its test split.
  noise_rates: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)  # Share of flipped labels, real sets.
  class_counts: tuple[int, ...] = (2, 5, 10, 30, 100)  # Numbers of Gaussians.
  rows_per_class: int = 100  # Training rows of each Gaussian.
  extra_dims: int = 5  # Dimensions of the Gaussians beyond the number of classes.
  separation: float = 2.0  # Distance of their means from the origin.
  mixed: tuple[int, ...] = (2, 4)  # Points that mixup mixes.
  network: Literal["mlp", "conv"] = "mlp"  # Dense blocks, or 3 x 3 convolutions that halve images.
  widths: tuple[int, ...] = (256, 256)  # Widths of the blocks.
  learning_rate: float = 1e-3  # Of Adam.
  batch_size: int = 250  # Rows an update.
  max_steps: int = 4000  # Most updates.
  fitted: float = 0.995  # Training accuracy of ERM that ends its training, and that of the others.
  eval_every: int = 25  # Updates between looks at that accuracy, and at the held-out loss.
  num_bins: int = 15  # Of the calibration errors.


PRESETS = {
  "smoke": Config(
    datasets=("digits", "gaussians"),
    num_train=(100, 0),
    num_held_out=(40, 40),
    num_test=(60, 60),
    noise_rates=(0.0, 0.25),
    class_counts=(3,),
    rows_per_class=20,
    mixed=(2,),
    widths=(8,),
    batch_size=50,
    max_steps=4,
    eval_every=2,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar10", "cifar100", "svhn_cropped"),
    num_train=(45_000, 45_000, 65_931),
    num_held_out=(5_000, 5_000, 7_326),
    num_test=(10_000, 10_000, 26_032),
    network="conv",
    widths=(64, 128, 256, 512),
    batch_size=500,
    max_steps=18_000,
    fitted=2.0,  # Never: 200 epochs.
    eval_every=90,
  ),
}


def network(config: Config, num_classes: int):
  """The classifier."""
  if config.network == "mlp":
    return models.MLP(num_classes, config.widths)
  strides = (1,) + (2,) * (len(config.widths) - 1)
  return models.ConvNet(num_classes, config.widths, kernel_size=(3, 3), strides=strides)


def mixup_loss(num_mixed: int):
  """Cross-entropy of mixtures, for `classification.classification_loss`."""

  def loss(apply, key, batch):
    mixed = augment.multi_mixup(key, batch.inputs, batch.labels, num_mixed=num_mixed)
    return losses.multi_mixup_cross_entropy(apply(mixed.inputs).logits, mixed.labels, mixed.weights)

  return loss


def measure(config: Config, setting: Setting, key) -> dict[str, Any]:
  """One seed: at every level trains all methods and scores them."""
  module = network(config, setting.num_classes)

  def at_level(level):
    draw_key, train_key = jax.random.split(key)
    problem = setting.draw(level, draw_key)
    erm = fit(config, module, None, problem, train_key)
    fits = [erm.last, erm.best]
    for m in config.mixed:
      loss_fn = mixup_loss(m)
      fits.append(fit(config, module, loss_fn, problem, train_key, rounds=erm.rounds).last)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)
    return {
      "scores": jax.lax.map(functools.partial(_scores, config, module, problem), stacked),
      "bayes": problem.bayes_nll,
      "steps": erm.rounds * config.eval_every,
      "accuracy": erm.accuracy,
    }

  return jax.lax.map(at_level, jnp.asarray(setting.levels, jnp.float32))


def methods(config: Config) -> list[str]:
  """The trainings, in the order of the scores; each is also scored with a temperature."""
  return ["ERM", "ERM early stopping", *(f"mixup of {m}" for m in config.mixed)]


def _scores(config, module, problem: Problem, variables) -> dict[str, jax.Array]:
  """Test scores and reliability of the raw and of the scaled logits."""
  held_out, logits = (
    classification.predict(module, variables, part.inputs).logits
    for part in (problem.held_out, problem.test)
  )
  temperature = uncertainty.fit_temperature(held_out, problem.held_out.labels)
  labels = problem.test.labels
  clean = labels if problem.clean_labels is None else problem.clean_labels

  def score(temperature):
    scaled = uncertainty.apply_temperature(logits, temperature=temperature)
    held_out_nll = metrics.negative_log_likelihood(
      uncertainty.apply_temperature(held_out, temperature=temperature), problem.held_out.labels
    )
    probs, bins = jax.nn.softmax(scaled), dict(num_bins=config.num_bins)
    return {
      "NLL": jnp.mean(metrics.negative_log_likelihood(scaled, labels)),
      "ECE": metrics.expected_calibration_error(probs, labels, **bins),
      "ACE": metrics.average_calibration_error(probs, labels, **bins),
      "MCE": metrics.maximum_calibration_error(probs, labels, **bins),
      "error": jnp.mean(jnp.argmax(scaled, -1) != labels),
      "clean NLL": jnp.mean(metrics.negative_log_likelihood(scaled, clean)),
      "clean ECE": metrics.expected_calibration_error(probs, clean, **bins),
      "held-out NLL": jnp.mean(held_out_nll),
      "diagram": jnp.stack(metrics.reliability_diagram(probs, labels, **bins)),
    }

  return jax.lax.map(score, jnp.stack([jnp.ones_like(temperature), temperature]))


def run(config: Config, context: common.Context) -> common.Results:
  """Measures every setting, and what the closed form makes of ERM's error."""
  rows: dict[str, dict[str, Any]] = {}
  extras: dict[str, Any] = {}

  def add(method, name, values):
    rows.setdefault(method, {})[name] = values

  for setting in settings(config):
    one_seed = functools.partial(measure, config, setting)
    stage = setting.dataset if len(setting.labels) > 1 else f"{setting.dataset}/{setting.labels[0]}"
    found = context.cached(
      stage, training.over_seeds, context.key, one_seed, num_seeds=context.seeds
    )
    for level, label in enumerate(setting.labels):
      title = f"{setting.dataset}, {label}"
      part = jax.tree.map(operator.itemgetter((slice(None), level)), found["scores"])
      part = _with_tuned_mixup(config, part)
      for i, j in itertools.product(range(len(methods(config)) + 1), range(2)):
        method = [*methods(config), TUNED][i] + ("", SCALED)[j]
        for metric in METRICS:
          add(method, f"{title}/{metric}", part[metric][:, i, j])
        if setting.dataset != "gaussians":
          for metric in ("NLL", "ECE"):
            add(method, f"{title}, clean test labels/{metric}", part[f"clean {metric}"][:, i, j])
        extras[f"{title}/{method}"] = part["diagram"][0, i, j]
      closed = uniform_miss_nll(rows["ERM"][f"{title}/error"], setting.num_classes)
      add("closed form", f"{title}/NLL", closed)
      add("Bayes", f"{title}/NLL", found["bayes"][:, level])
      for name in ("steps", "accuracy"):
        add("ERM", f"{setting.dataset}, training/{label}: {name}", found[name][:, level])
  return common.Results(rows, extras)


def _with_tuned_mixup(config: Config, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Appends to `[seeds, methods, 2, ...]` the mixup that the held-out rows of each seed prefer."""
  first = len(methods(config)) - len(config.mixed)
  best = first + np.argmin(scores["held-out NLL"][:, first:, 1], axis=1)
  seeds = np.arange(len(best))
  return {
    name: np.concatenate([values, values[seeds, best][:, None]], axis=1)
    for name, values in scores.items()
  }


def uniform_miss_nll(error: np.ndarray, num_classes: int) -> np.ndarray:
  """Loss of a prediction that knows its error and nothing of where it errs.

  Up to an error of 1/2 this is `metrics.interpolator_temperature_scaled_nll(2 * error, k)`.
  """
  error = np.asarray(error, np.float64)
  return entr(error) + entr(1 - error) + error * math.log(num_classes - 1)


def _by_dataset(results: common.Results) -> dict[str, list[str]]:
  """Set -> its settings' titles, in order."""
  titles = [name.removesuffix("/NLL") for name in results.quantities["Bayes"]]
  return {
    dataset: list(group)
    for dataset, group in itertools.groupby(titles, lambda title: title.partition(",")[0])
  }


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements: the scaled ERM's gap, and mixup's lead over it."""
  found = []
  for dataset, titles in _by_dataset(results).items():
    erm, bayes, closed = (
      np.stack([results[method, f"{title}/NLL"] for title in titles])
      for method in ("ERM" + SCALED, "Bayes", "closed form")
    )
    grows = "the number of classes" if dataset == "gaussians" else "the noise"
    if len(titles) > 1:
      found.append(
        common.compare(
          f"{dataset}: scaled ERM's NLL above Bayes rises with {grows} (smallest rise, nats)",
          np.min(np.diff(erm - bayes, axis=0), axis=0),
          0.0,
        )
      )
    overlaps = [not title.endswith("noise 0") for title in titles]
    deviation = np.max(np.abs(erm / closed - 1)[overlaps], axis=0)
    found.append(
      common.compare(
        f"{dataset}: with overlap scaled ERM's NLL is the closed form of its error within 15%",
        deviation,
        0.15,
        better="lower",
      )
    )
    found += _mixup_claims(results, dataset, titles)
  return found


def _mixup_claims(results, dataset: str, titles: list[str]) -> list[common.Claim]:
  """Scaled mixup against scaled ERM where classes overlap, and where they do not."""

  def compared(text, metric, groups, rival="ERM", paper=None):
    ours, theirs = (
      np.mean([results[name + SCALED, f"{group}/{metric}"] for group in groups], axis=0)
      for name in (TUNED, rival)
    )
    text = f"{text}: {metric} of scaled mixup below that of scaled {rival}"
    return common.compare(text, ours, theirs, better="lower", paper=paper)

  overlapping = [title for title in titles if not title.endswith("noise 0")]
  if dataset == "gaussians":
    found = [compared(title, "NLL", [title]) for title in overlapping]
    found.append(compared(f"{dataset}, mean", "ECE", overlapping))
  else:
    paper = "lower at every noise, CIFAR and SVHN"
    found = [
      compared(title, metric, [title], paper=paper)
      for title, metric in itertools.product(overlapping, ("NLL", "ECE"))
    ]
    # The authors' code flips no test labels.
    clean = [f"{title}, clean test labels" for title in overlapping]
    text = f"{dataset}, clean test labels, mean over noise"
    found += [compared(text, metric, clean, paper=paper) for metric in ("NLL", "ECE")]
  found.append(compared(f"{dataset}, mean", "NLL", overlapping, "ERM early stopping"))
  for title in set(titles) - set(overlapping):
    nll = [results[name + SCALED, f"{title}/NLL"] for name in (TUNED, "ERM")]
    text = f"{title}: scaled mixup and scaled ERM are within 0.1 nats"
    found.append(common.compare(text, np.abs(nll[0] - nll[1]), 0.1, better="lower"))
  return found


def figure(results: common.Results):
  """Likelihood over overlap for every set, and reliability at a middle one."""
  import matplotlib.pyplot as plt

  by_dataset = _by_dataset(results)
  shown = next(iter(by_dataset.values()))
  shown = shown[len(shown) // 2]
  diagrams = ["ERM", "ERM" + SCALED, TUNED + SCALED]
  columns = max(len(by_dataset), len(diagrams))
  fig, axes = plt.subplots(
    2, columns, figsize=(4.4 * columns, 7.2), squeeze=False, layout="constrained"
  )
  for ax, (dataset, titles) in zip(axes[0], by_dataset.items()):
    levels = [float(re.search(r"[\d.]+$|\d+(?= classes)", title).group()) for title in titles]
    for method, style in _STYLES.items():
      if method in results.quantities:
        line = [common.quantity(results[method, f"{title}/NLL"]) for title in titles]
        means, errors = np.transpose(line)
        ax.errorbar(levels, means, np.nan_to_num(errors), label=method, **style)
    by_class = dataset == "gaussians"
    ax.set(
      title=dataset,
      xlabel="classes" if by_class else "noise",
      ylabel="NLL (nats)",
      xscale="log" if by_class else "linear",
    )
  axes[0, 0].legend(fontsize=7)
  for ax, method in zip(axes[1], diagrams):
    confidence, accuracy, count = results.extras[f"{shown}/{method}"]
    metrics.plot_reliability(metrics.Reliability(confidence, accuracy, count.astype(int)), ax=ax)
    ax.set_title(f"{method} ({shown})", fontsize=10)
  for ax in [*axes[0, len(by_dataset) :], *axes[1, len(diagrams) :]]:
    ax.set_axis_off()
  return fig


_STYLES = {
  "ERM" + SCALED: dict(fmt=".-", color="tab:red"),
  "ERM early stopping" + SCALED: dict(fmt=".-", color="tab:orange"),
  "mixup of 2" + SCALED: dict(fmt=".-", color="tab:blue"),
  "mixup of 4" + SCALED: dict(fmt=".-", color="tab:cyan"),
  "closed form": dict(fmt=":", color="tab:red"),
  "Bayes": dict(fmt="--", color="black"),
}


def abstract(config: Config, mesh):
  """One update of mixup, for a dry run."""
  images = config.network == "conv"
  inputs = (32, 32, 3) if images else (40, 1)
  module, optimizer = network(config, 10), optax.adam(config.learning_rate)
  loss_fn = classification.classification_loss(module, mixup_loss(config.mixed[0]))

  def init(key):
    variables = dict(module.init(key, jnp.zeros((1, *inputs))))
    return training.init_state(key, variables.pop("params"), optimizer, model_state=variables)

  batch = Split(
    jax.ShapeDtypeStruct((config.batch_size, *inputs), jnp.float32),
    jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
  )
  update = training.build_update(loss_fn, optimizer, mesh=mesh)
  return update, jax.eval_shape(init, jax.random.key(0)), batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
