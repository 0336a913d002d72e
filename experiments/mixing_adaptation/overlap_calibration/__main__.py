"""On the limitations of temperature scaling for distributions with overlaps.

Networks that interpolate their training labels are confident and wrong on part of the overlap of
two classes, and one temperature cannot mend that; mixup spreads its prediction over the classes
that overlap. Overlap is made by flipping labels into a partner class (train, held-out and test
alike), and by Gaussians whose posterior is known.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import choose, grid
from experiments.kit.train import classification_loss, predict
from experiments.mixing_adaptation.overlap_calibration.fitting import fit
from experiments.mixing_adaptation.overlap_calibration.problems import (
  Family,
  Problem,
  families,
  uniform_miss_nll,
)
from jaxlab import augment, losses, metrics, models, uncertainty
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "overlap_calibration"
ERM, EARLY, MIXUP = "ERM", "ERM, early stopping", "mixup"
# Mixup with the number of mixed points that has the least scaled NLL on the held-out rows.
TUNED = "mixup, tuned"
CLOSED, BAYES = "closed form", "Bayes"


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
  """Cross-entropy of mixtures, for `classification_loss`."""

  def loss(apply, key, batch):
    mixed = augment.multi_mixup(key, batch.inputs, batch.labels, num_mixed=num_mixed)
    return losses.multi_mixup_cross_entropy(apply(mixed.inputs).logits, mixed.labels, mixed.weights)

  return loss


def evaluate(config: Config, family: Family, key, splits, setting) -> dict[str, jax.Array]:
  """Trains by all methods on one overlap: scores `[methods, 2]`, raw and scaled."""
  draw_key, train_key = jax.random.split(key)
  problem = family.draw(draw_key, splits, **setting)
  module = network(config, family.num_classes)
  erm = fit(config, module, None, problem, train_key)
  mixups = [
    fit(config, module, mixup_loss(m), problem, train_key, rounds=erm.rounds).last
    for m in config.mixed
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), erm.last, erm.best, *mixups)
  return {
    **jax.lax.map(functools.partial(score, config, module, problem), stacked),
    "Bayes": problem.bayes_nll,
    "training steps": erm.rounds * config.eval_every,
    "training accuracy": erm.accuracy,
  }


def score(config: Config, module, problem: Problem, variables) -> dict[str, jax.Array]:
  """Test scores and reliability of the raw and of the scaled logits, `[2, ...]`."""
  held_out, logits = (
    predict(module, variables, part.inputs).logits for part in (problem.held_out, problem.test)
  )
  fitted = uncertainty.fit_temperature(held_out, problem.held_out.labels)

  def at(temperature):
    of_held_out, scaled = (
      uncertainty.apply_temperature(x, temperature=temperature) for x in (held_out, logits)
    )
    held_out_nll = metrics.negative_log_likelihood(of_held_out, problem.held_out.labels)
    probs, bins = jax.nn.softmax(scaled), {"num_bins": config.num_bins}
    labels, clean = problem.test.labels, problem.clean_labels
    return {
      "NLL": jnp.mean(metrics.negative_log_likelihood(scaled, labels)),
      "ECE": metrics.expected_calibration_error(probs, labels, **bins),
      "ACE": metrics.average_calibration_error(probs, labels, **bins),
      "MCE": metrics.maximum_calibration_error(probs, labels, **bins),
      "error": jnp.mean(jnp.argmax(scaled, -1) != labels),
      "NLL, clean labels": jnp.mean(metrics.negative_log_likelihood(scaled, clean)),
      "ECE, clean labels": metrics.expected_calibration_error(probs, clean, **bins),
      "held-out NLL": jnp.mean(held_out_nll),
      "diagram": jnp.stack(metrics.reliability_diagram(probs, labels, **bins)),
    }

  return jax.lax.map(at, jnp.stack([jnp.ones_like(fitted), fitted]))


def run(config: Config, context: Context) -> Results:
  """Measures every overlap, and what the closed form makes of ERM's error."""
  results = Results()
  for family in families(config, context.seeds):
    stage = f"{family.where['dataset']}/{family.num_classes} classes"
    measure = functools.partial(evaluate, config, family)
    scores = context.cached(stage, grid, context, measure, family.splits, family.settings)
    for level, setting in enumerate(family.settings):
      at_level = {name: values[:, level] for name, values in scores.items()}
      _add(config, results, family.num_classes, at_level, family.where | setting)
  return results


def _add(config: Config, results: Results, num_classes: int, scores, where) -> None:
  """Adds the records of one overlap."""
  training = {name: scores.pop(name) for name in ("training steps", "training accuracy")}
  results.add({ERM: training, BAYES: {"NLL": scores.pop("Bayes")}}, **where)
  results.add({CLOSED: {"NLL": uniform_miss_nll(scores["error"][:, 0, 0], num_classes)}}, **where)
  mixups = {name: values[:, 2:] for name, values in scores.items()}
  mixups["of choice"] = mixups["held-out NLL"][..., 1]
  options = [{"num_mixed": m} for m in config.mixed]
  tuned = choose(mixups, options, select="of choice", better="lower")
  left_out = {"held-out NLL", "diagram"}
  if "noise" not in where:
    left_out |= {"NLL, clean labels", "ECE, clean labels"}
  methods = [(ERM, {}), (EARLY, {}), *((MIXUP, option) for option in options), (TUNED, {})]
  for i, (method, option) in enumerate(methods):
    row = tuned if method == TUNED else {name: values[:, i] for name, values in scores.items()}
    for j, scaled in enumerate((False, True)):
      measured = {name: row[name][:, j] for name in scores if name not in left_out}
      results.add({method: measured}, **where, **option, scaled=scaled)
    if where.get("noise") != 0:
      results.extras.setdefault(method, row["diagram"][0, 1])


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements: the excess loss of the scaled ERM, and what mixup makes of it."""

  def each(quantity, method, **where):
    """`[overlaps, seeds]` of scaled networks or of a law, where classes overlap unless `where`."""
    records = results.matching(quantity=quantity, method=method, **where)
    records = [r for r in records if r.field("scaled") is not False]
    return np.stack([r.values for r in records if "noise" in where or r.field("noise") != 0])

  def excess(**where):
    return (each("NLL", ERM, **where) - each("NLL", BAYES, **where)).mean(0)

  fitted = each("training accuracy", ERM).mean(0)
  requires = [
    precondition("ERM fits 98% or more of the training labels", fitted, at_least=0.98),
    precondition("scaled ERM is .1 nats or more above Bayes", excess(), at_least=0.1),
  ]
  if results.matching(noise=0.0):
    clean = each("error", ERM, noise=0.0).max(0)
    text = "without noise ERM errs on 5% or less of every set, so that only noise overlaps"
    requires.append(precondition(text, clean, at_most=0.05))
  lower = functools.partial(compare, better="lower", requires=requires)
  paper = "lower at every noise, CIFAR and SVHN"
  ours, erm = each("NLL", TUNED), each("NLL", ERM)
  statements = [
    lower(
      "with a temperature each, mixup's NLL is below ERM's, a mean over overlaps",
      ours.mean(0),
      erm.mean(0),
      margin=0.02,
      headline=True,
      paper=paper,
    ),
    lower(
      "mixup's ECE is below ERM's",
      each("ECE", TUNED).mean(0),
      each("ECE", ERM).mean(0),
      margin=0.005,
      paper=paper,
    ),
    lower(
      "mixup's NLL is below that of ERM stopped early",
      ours.mean(0),
      each("NLL", EARLY).mean(0),
      margin=0.02,
    ),
    lower(
      "ERM's NLL is the closed form of its error within 15%, at the worst overlap",
      np.abs(erm / each("NLL", CLOSED) - 1).max(0),
      0.15,
    ),
  ]
  # Gaussians overlap by their law: nothing about noise is required of them.
  for name, text, needed in (
    ("noise", "the rate of noise", requires),
    ("num_classes", "the number of classes", requires[:2]),
  ):
    values = sorted(results.distinct(name, method=BAYES))
    if len(values) > 1:
      text = (
        f"ERM's NLL rises further above Bayes with {text}, from {values[0]:g} to {values[-1]:g}"
      )
      least, most = (excess(**{name: value}) for value in (values[0], values[-1]))
      statements.append(compare(text, most, least, margin=0.1, requires=needed))
  return statements


def figure(results: Results):
  """Likelihood over overlap for every set, and reliability at the first overlap."""
  names = results.distinct("dataset")
  drawing, axes = plots.panels(len(names) + 2, width=4.0)
  for ax, name in zip(axes, names):
    x = "num_classes" if name == "gaussians" else "noise"
    for method in (ERM, EARLY, TUNED):
      plots.curves(ax, results, "NLL", x=x, method=method, dataset=name, scaled=True)
    for method in (CLOSED, BAYES):
      plots.curves(ax, results, "NLL", x=x, method=method, dataset=name)
    ax.set(title=name, ylabel="NLL with a temperature (nats)")
    ax.set_xscale("log" if name == "gaussians" else "linear")
  axes[0].legend(fontsize=7)
  for ax, method in zip(axes[len(names) :], (ERM, TUNED)):
    confidence, accuracy, count = results.extras[method]
    metrics.plot_reliability(metrics.Reliability(confidence, accuracy, count.astype(int)), ax=ax)
    ax.set_title(f"{method}, with a temperature")
  return drawing


def abstract(config: Config, mesh):
  """One update of mixup, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  module = network(config, dataset.num_classes)
  loss = classification_loss(module, mixup_loss(config.mixed[0]))
  batch = dataset.batch(config.batch_size)
  return abstract_step(module, loss, optax.adam(config.learning_rate), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
