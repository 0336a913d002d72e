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
from experiments.kit.sweep import grid
from experiments.kit.train import classification_loss, predict
from experiments.mixing_adaptation.overlap_calibration import problems
from experiments.mixing_adaptation.overlap_calibration.fitting import LEARNING_RATE, fit
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
  num_train: tuple[int, ...] = (4000, 1000, 0)  # Training rows of each; gaussians: 100 of each.
  num_held_out: tuple[int, ...] = (1000, 300, 1000)  # Rows for temperature and early stopping.
  num_test: tuple[int, ...] = (4000, 497, 4000)  # Test rows; cifar10: all of its test split.
  noise_rates: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)  # Share of flipped labels, real sets.
  class_counts: tuple[int, ...] = (2, 5, 10, 30, 100)  # Numbers of Gaussians.
  mixed: tuple[int, ...] = (2, 4)  # Points that mixup mixes.
  network: Literal["mlp", "conv"] = "mlp"  # Dense blocks, or 3 x 3 convolutions that halve images.
  widths: tuple[int, ...] = (256, 256)  # Widths of the blocks.
  batch_size: int = 250  # Rows per update.
  max_steps: int = 4000  # Most updates.
  fitted: float = 0.995  # Training accuracy of ERM that ends its training, and that of the others.
  eval_every: int = 25  # Updates between looks at that accuracy, and at the held-out loss.


PRESETS = {
  "smoke": Config(
    datasets=("digits", "gaussians"),
    num_train=(100, 0),
    num_held_out=(40, 40),
    num_test=(60, 60),
    noise_rates=(0.0, 0.25),
    class_counts=(3,),
    mixed=(2,),
    widths=(8,),
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


def evaluate(config: Config, num_classes: int, draw, key, splits, setting) -> dict:
  """Trains by all methods on one overlap: scores `[methods, 2]`, raw and scaled."""
  draw_key, train_key = jax.random.split(key)
  problem, module = draw(draw_key, splits, **setting), network(config, num_classes)
  erm = fit(config, module, None, problem, train_key)
  mixups = [
    fit(config, module, mixup_loss(m), problem, train_key, rounds=erm.rounds).last
    for m in config.mixed
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), erm.last, erm.best, *mixups)
  return {
    **jax.lax.map(functools.partial(score, module, problem), stacked),
    "Bayes": problem.bayes_nll,
    "training steps": erm.rounds * config.eval_every,
    "training accuracy": erm.accuracy,
  }


def score(module, problem: problems.Problem, variables) -> dict[str, jax.Array]:
  """Test scores of the raw and of the scaled logits, `[2]` each."""
  held_out, logits = (
    predict(module, variables, part.inputs).logits for part in (problem.held_out, problem.test)
  )
  labels, clean, of_held_out = problem.test.labels, problem.clean_labels, problem.held_out.labels

  def at(temperature):
    def nll(logits, labels):
      scaled = uncertainty.apply_temperature(logits, temperature=temperature)
      return jnp.mean(metrics.negative_log_likelihood(scaled, labels))

    probs = jax.nn.softmax(uncertainty.apply_temperature(logits, temperature=temperature))
    scores = {
      "NLL": nll(logits, labels),
      "ECE": metrics.expected_calibration_error(probs, labels),
      "ACE": metrics.average_calibration_error(probs, labels),
      "MCE": metrics.maximum_calibration_error(probs, labels),
      "error": jnp.mean(jnp.argmax(logits, -1) != labels),
      "held-out NLL": nll(held_out, of_held_out),
    }
    if clean is not None:
      scores["NLL, clean labels"] = nll(logits, clean)
      scores["ECE, clean labels"] = metrics.expected_calibration_error(probs, clean)
    return scores

  fitted = uncertainty.fit_temperature(held_out, of_held_out)
  return jax.lax.map(at, jnp.stack([jnp.ones_like(fitted), fitted]))


def run(config: Config, context: Context) -> Results:
  """Measures every overlap, and what the closed form makes of ERM's error."""
  results, seeds = Results(), np.arange(context.seeds)
  mixups = [(MIXUP, {"num_mixed": m}) for m in config.mixed]
  methods = [(ERM, {}), (EARLY, {}), *mixups, (TUNED, {})]
  for where, num_classes, settings, splits, draw in problems.families(config, context.seed_numbers):
    stage = f"{where['dataset']}/{num_classes} classes"
    measure = functools.partial(evaluate, config, num_classes, draw)
    measured = context.cached(stage, grid, context, measure, splits, settings)
    for level, setting in enumerate(settings):
      scores = {name: values[:, level] for name, values in measured.items()}
      add = functools.partial(results.add, **where, **setting)
      closed = problems.uniform_miss_nll(scores["error"][:, 0, 0], num_classes)
      add({CLOSED: {"NLL": closed}, BAYES: {"NLL": scores.pop("Bayes")}})
      add({ERM: {name: scores.pop(name) for name in ("training steps", "training accuracy")}})
      best = 2 + scores.pop("held-out NLL")[:, 2:, 1].argmin(1)
      for i, (method, option) in enumerate(methods):
        chosen = best if method == TUNED else np.full_like(best, i)
        for j, scaled in enumerate((False, True)):
          row = {name: values[seeds, chosen, j] for name, values in scores.items()}
          add({method: row}, **option, scaled=scaled)
  return results


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
  nll, erm, ece = each("NLL", TUNED).mean(0), each("NLL", ERM), each("ECE", TUNED).mean(0)
  early, paper = each("NLL", EARLY).mean(0), "lower at every noise, CIFAR and SVHN"
  off = np.abs(erm / each("NLL", CLOSED) - 1).max(0)
  text = "with a temperature each, mixup's NLL is below ERM's, a mean over overlaps"
  closed = "ERM's NLL is the closed form of its error within 15%, at the worst overlap"
  statements = [
    lower(text, nll, erm.mean(0), margin=0.02, headline=True, paper=paper),
    lower("mixup's ECE is below ERM's", ece, each("ECE", ERM).mean(0), margin=0.005, paper=paper),
    lower("mixup's NLL is below that of ERM stopped early", nll, early, margin=0.02),
    lower(closed, off, 0.15),
  ]
  # Gaussians overlap by their law: nothing about noise is required of them.
  for name, what, needed in (
    ("noise", "the rate of noise", requires),
    ("num_classes", "the number of classes", requires[:2]),
  ):
    values = results.distinct(name, method=BAYES)
    if len(values) > 1:
      low, high = min(values), max(values)
      text = f"ERM's NLL rises further above Bayes with {what}, from {low:g} to {high:g}"
      most, least = excess(**{name: high}), excess(**{name: low})
      statements.append(compare(text, most, least, margin=0.1, requires=needed))
  return statements


def figure(results: Results):
  """Likelihood over overlap for every set."""
  names = results.distinct("dataset")
  drawing, axes = plots.panels(len(names), width=4.0)
  for ax, name in zip(axes, names):
    x = "num_classes" if name == "gaussians" else "noise"
    for method in (ERM, EARLY, TUNED, CLOSED, BAYES):
      where = {} if method in (CLOSED, BAYES) else {"scaled": True}
      plots.curves(ax, results, "NLL", x=x, method=method, dataset=name, **where)
    ax.set(title=name, ylabel="NLL with a temperature (nats)")
    ax.set_xscale("log" if name == "gaussians" else "linear")
  axes[0].legend(fontsize=7)
  return drawing


def abstract(config: Config, mesh):
  """One update of mixup, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  module = network(config, dataset.num_classes)
  loss = classification_loss(module, mixup_loss(config.mixed[0]))
  batch = dataset.batch(config.batch_size)
  return abstract_step(module, loss, optax.adam(LEARNING_RATE), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
