"""On the limitations of temperature scaling for distributions with overlaps.

Networks that interpolate their training labels are confident and wrong on part of the overlap of
two classes, and one temperature cannot mend that; mixup spreads its prediction over the classes
that overlap. Classes overlap by labels that turn into those of a partner class, in training,
held-out and test rows alike; without that noise the networks hardly err.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import entr

from experiments import catalogue
from experiments.kit import datasets, plots
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import grid
from experiments.kit.train import accuracy, agrees, classification_loss, predict, train
from experiments.mixing_adaptation.overlap_calibration import problems
from experiments.mixing_adaptation.overlap_calibration.problems import validate as validate
from jaxlab import augment, losses, metrics, uncertainty
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "overlap_calibration"
SEEDS = {"laptop": 12}
ERM, SMOOTHING, MIXUP = "ERM", "label smoothing", "mixup"
CLOSED, BAYES = "closed form", "Bayes"
LEARNING_RATE = 1e-3  # Of Adam.
_FLOOR_DRAWS = 10  # Draws of the labels that calibrated predictions might have met.


@dataclasses.dataclass(frozen=True)
class Config:
  """The data, how far classes overlap, and the training."""

  datasets: tuple[str, ...] = ("mnist1d",)  # Sets; cifar10 and others by tfds.
  num_train: int = 2000  # Training rows.
  num_held_out: int = 1000  # Rows for temperature and early stopping.
  num_test: int = 10_000  # Test rows.
  signal_noise: float = 0.1  # Correlated noise of mnist1d; the generator's default is .25.
  noise_rates: tuple[float, ...] = (0.0, 0.25, 0.5)  # Share of flipped labels.
  smoothing: float = 0.1  # Of labels.
  network: Literal["signals", "images"] = "signals"  # Convolutions of 5, or of 3 x 3.
  widths: tuple[int, ...] = (32, 64, 64)  # Channels of the blocks.
  batch_size: int = 125  # Rows per update.
  num_steps: int = 1400  # Updates.
  num_evals: int = 20  # Looks at the held-out loss, by which training is stopped early.
  class_counts: tuple[int, ...] = (4, 20, 100)  # Numbers of Gaussians.
  rows_per_class: int = 50  # Training rows of each Gaussian.
  dense_widths: tuple[int, ...] = (256,)  # Widths of the Gaussians' network.
  dense_steps: int = 1000  # Updates of the Gaussians' network.


PRESETS = {
  "smoke": Config(
    num_train=60,
    num_held_out=40,
    num_test=60,
    noise_rates=(0.0, 0.5),
    widths=(8,),
    batch_size=20,
    num_steps=4,
    num_evals=2,
    class_counts=(3,),
    dense_widths=(8,),
    dense_steps=4,
  ),
  "laptop": Config(),
  "paper": Config(
    datasets=("cifar10", "cifar100", "svhn_cropped"),
    num_train=45_000,
    num_held_out=5_000,
    network="images",
    widths=(64, 128, 256, 512),
    batch_size=500,
    num_steps=18_000,  # 200 epochs.
    class_counts=(),
  ),
}


def mixup(apply, key, batch) -> jax.Array:
  """Cross-entropy of pairs that are mixed at a uniform ratio, for `classification_loss`."""
  mixed = augment.multi_mixup(key, batch.inputs, batch.labels)
  logits = apply(mixed.inputs).logits
  return losses.multi_mixup_cross_entropy(logits, mixed.labels, mixed.weights)


def objectives(config: Config) -> dict[str, Callable | None]:
  """What each method minimizes."""

  def smoothed(apply, key, batch):
    del key
    return losses.label_smoothed_cross_entropy(
      apply(batch.inputs).logits, batch.labels, label_smoothing=config.smoothing
    )

  return {ERM: None, SMOOTHING: smoothed, MIXUP: mixup}


def names(config: Config) -> list[str]:
  """The methods in the order of `evaluate`: each trained to the end, and stopped early."""
  return [name for method in objectives(config) for name in (method, early(method))]


def early(method: str) -> str:
  """A method's name if it is stopped early."""
  return f"{method}, stopped early"


def evaluate(config: Config, task: problems.Task, key, splits, *, setting) -> dict[str, jax.Array]:
  """Trains by all methods at one rate of noise: scores `[names, 2]`, raw and scaled."""
  noise_key, train_key, floor_key = jax.random.split(key, 3)
  noisy = problems.flip(noise_key, task.num_classes, splits, **setting)
  variables = [fit(config, task, loss, noisy, train_key) for loss in objectives(config).values()]
  stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *variables)
  clean_labels = jnp.asarray(splits[2].labels)
  return jax.lax.map(lambda v: score(task.module, noisy, clean_labels, floor_key, v), stacked)


def fit(config: Config, task: problems.Task, objective, noisy, key) -> dict[str, Any]:
  """Variables at the end of training, and where the scaled held-out loss was least, stacked."""
  rows, held_out, _ = noisy

  def look(trained):
    logits = predict(task.module, trained.variables, held_out.inputs).logits
    temperature = uncertainty.fit_temperature(logits, held_out.labels)
    values = metrics.negative_log_likelihood(logits / temperature, held_out.labels)
    return trained.variables, jnp.mean(values)

  variables, held_out_nll = train(
    key,
    task.module,
    classification_loss(task.module, objective),
    optax.adam(LEARNING_RATE),
    rows,
    num_steps=task.num_steps,
    batch_size=min(task.batch_size, len(rows.labels)),
    evaluate=look,
    eval_every=task.num_steps // config.num_evals,
  ).scores
  chosen = jnp.stack([config.num_evals - 1, jnp.argmin(held_out_nll)])
  return jax.tree.map(lambda leaf: leaf[chosen], variables)


def score(module, noisy, clean_labels, key, variables) -> dict[str, jax.Array]:
  """Test scores of the raw and of the scaled logits, `[2]` each."""
  rows, held_out, test = noisy
  held_out_logits, logits = (predict(module, variables, s.inputs).logits for s in (held_out, test))
  error, fitted = jnp.mean(1 - agrees(logits, test.labels)), accuracy(module, variables, rows)

  def at(temperature):
    scaled = uncertainty.apply_temperature(logits, temperature=temperature)
    probs, confidence = jax.nn.softmax(scaled), jnp.max(jax.nn.softmax(scaled), -1)
    draws = jax.random.bernoulli(key, confidence, (_FLOOR_DRAWS, len(confidence)))
    by_chance = functools.partial(metrics.confidence_calibration_error, confidence, num_bins=15)
    held_out_nll = metrics.negative_log_likelihood(held_out_logits / temperature, held_out.labels)
    return {
      "NLL": jnp.mean(metrics.negative_log_likelihood(scaled, test.labels)),
      "ECE": metrics.expected_calibration_error(probs, test.labels),
      "ECE floor": jnp.mean(jax.lax.map(by_chance, draws)),  # Of calibrated predictions.
      "ACE": metrics.average_calibration_error(probs, test.labels),
      "MCE": metrics.maximum_calibration_error(probs, test.labels),
      "error": error,
      "training accuracy": fitted,
      "held-out NLL": jnp.mean(held_out_nll),
      "temperature": temperature,
      "NLL, clean labels": jnp.mean(metrics.negative_log_likelihood(scaled, clean_labels)),
      "ECE, clean labels": metrics.expected_calibration_error(probs, clean_labels),
    }

  best = uncertainty.fit_temperature(held_out_logits, held_out.labels)
  return jax.lax.map(at, jnp.stack([jnp.ones_like(best), best]))


def run(config: Config, context: Context) -> Results:
  """Measures every overlap of every task, and what the closed form makes of ERM's error."""
  results, settings = Results(), [{"noise": rate} for rate in config.noise_rates]
  for task in problems.tasks(config):
    splits = datasets.stack_seeds(task.draw, context.seed_numbers)
    measure = functools.partial(evaluate, config, task)
    stage = "/".join(map(str, task.where.values()))
    scores = grid(context, stage, measure, splits, settings)
    for level, setting in enumerate(settings):
      add = functools.partial(results.add, **task.where, **setting)
      bayes = entr(setting["noise"]) + entr(1 - setting["noise"])  # If nothing else overlaps.
      closed = problems.uniform_miss_nll(scores["error"][:, level, 0, 0], task.num_classes)
      add({CLOSED: {"NLL": closed}, BAYES: {"NLL": bayes}})
      for i, name in enumerate(names(config)):
        for j, scaled in enumerate((False, True)):
          row = {quantity: values[:, level, i, j] for quantity, values in scores.items()}
          add({name: {**row, "excess NLL": row["NLL"] - bayes}}, scaled=scaled)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements: the excess loss of the scaled ERM, and what mixup makes of it."""
  rates, sets = sorted(config.noise_rates), [{"dataset": name} for name in config.datasets]
  overlaps, clean, most = rates[1:], rates[:1], rates[-1:]

  def mean(quantity, method, rates, tasks=sets):
    """The mean over rates of noise and tasks, of networks with a temperature, `[seeds]`."""
    at = functools.partial(results.select, quantity, method=method, scaled=True)
    return np.mean([at(noise=rate, **where) for rate in rates for where in tasks], axis=0)

  def base(tasks, name):
    """That ERM fits the labels at every rate, and errs by the noise alone."""
    fitted = np.min([mean("training accuracy", ERM, [rate], tasks) for rate in rates], axis=0)
    error = mean("error", ERM, clean, tasks)
    return (
      precondition(f"ERM fits 99% or more of the labels of {name}", fitted, at_least=0.99),
      precondition(f"without noise ERM errs on 5% or less of {name}", error, at_most=0.05),
    )

  excess = mean("excess NLL", ERM, overlaps)
  room = precondition("ERM with a temperature is .1 nats or more above Bayes", excess, at_least=0.1)
  of_sets = functools.partial(compare, requires=(*base(sets, "the sets"), room))
  lower = functools.partial(of_sets, better="lower")
  erm, mixed = (mean("NLL", method, overlaps) for method in (ERM, MIXUP))
  gain = mean("NLL", ERM, clean) - mean("NLL", MIXUP, clean)
  stopped = [mean("NLL", early(method), overlaps) for method in (ERM, SMOOTHING)]
  text = "with a temperature each, mixup's NLL is below ERM's, a mean over rates of noise"
  paper = "lower at every rate of noise, CIFAR and SVHN"
  statements = [
    lower(text, mixed, erm, margin=0.03, headline=True, paper=paper),
    lower(
      "mixup's ECE is below ERM's",
      mean("ECE", MIXUP, overlaps),
      mean("ECE", ERM, overlaps),
      margin=0.005,
      paper=paper,
    ),
    of_sets("mixup lowers NLL more with noise than without", erm - mixed, gain, margin=0.03),
    of_sets(
      f"ERM's NLL is further above Bayes at a noise of {most[0]:.0%} than without",
      mean("excess NLL", ERM, most),
      mean("excess NLL", ERM, clean),
      margin=0.1,
    ),
    lower(
      "stopped early, mixup's NLL is below the better of ERM's and label smoothing's per seed",
      mean("NLL", early(MIXUP), overlaps),
      np.min(stopped, axis=0),
      margin=0.02,
    ),
  ]
  if len(config.class_counts) > 1:
    ends = min(config.class_counts), max(config.class_counts)
    few, many = ([{"dataset": problems.GAUSSIANS, "classes": k}] for k in ends)
    statements.append(
      compare(
        f"at equal noise ERM's NLL is further above Bayes with {ends[1]} classes than {ends[0]}",
        mean("excess NLL", ERM, overlaps, many),
        mean("excess NLL", ERM, overlaps, few),
        margin=0.1,
        requires=(*base(few, f"{ends[0]} classes"), *base(many, f"{ends[1]} classes")),
      )
    )
  return statements


def figure(results: Results):
  """Loss over noise and over the number of classes, and calibration error over noise."""
  drawing, axes = plots.panels(3, width=4.2)
  name, rate = results.distinct("dataset")[0], max(results.distinct("noise"))
  of_set, of_gaussians = {"dataset": name}, {"dataset": problems.GAUSSIANS, "noise": rate}
  for ax, quantity, x, where, methods in (
    (axes[0], "NLL", "noise", of_set, (ERM, early(ERM), MIXUP, BAYES)),
    (axes[1], "NLL", "classes", of_gaussians, (ERM, early(ERM), MIXUP, BAYES, CLOSED)),
    (axes[2], "ECE", "noise", of_set, (ERM, early(ERM), MIXUP)),
  ):
    for method in methods:
      scaled = {} if method in (CLOSED, BAYES) else {"scaled": True}
      plots.curves(ax, results, quantity, x=x, method=method, **where, **scaled)
    ax.set(title=name, xlabel="share of flipped labels", ylabel=f"test {quantity}, nats")
  axes[1].set(title=f"Gaussians, {rate:.0%} flipped", xlabel="classes", xscale="log")
  axes[2].set_ylabel("test ECE")
  axes[1].legend(fontsize=7, title="with a temperature")
  return drawing


def abstract(config: Config, mesh):
  """One update of mixup, for a dry run."""
  dataset = datasets.describe(config.datasets[0])
  module = problems.network(config, dataset.num_classes)
  loss = classification_loss(module, mixup)
  batch = dataset.batch(config.batch_size)
  return abstract_step(module, loss, optax.adam(LEARNING_RATE), batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
