"""Inductive bias of a task: how surprising is it to fit the training data and generalize as well?

Hypotheses that fit the training data are drawn from a space, a distribution is fitted to their test
errors, and its tail below a wanted error is the information that the space does not supply. Kernel
spaces, in which the answer is also known exactly, are compared on spheres of several dimensions,
and with networks on images.
"""

import dataclasses
import functools
import sys
from typing import Literal

import jax
import numpy as np
import optax

from experiments import catalogue
from experiments.bayes.inductive_bias import kernels, networks, tails
from experiments.bayes.inductive_bias.kernels import ROWS, TUNED
from experiments.bayes.inductive_bias.networks import CNN, MLP, PERMUTED, SPACES, WIDE
from experiments.bayes.inductive_bias.tails import BIAS, DEVIATION, MEAN, PER_TARGET
from experiments.kit import datasets, plots, sizes
from experiments.kit.abstract import abstract_step
from experiments.kit.sweep import by_seed, each_seed
from experiments.kit.train import squared_loss
from jaxlab._checks import check_at_least, check_range
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "inductive_bias"
SPHERE = "kernel on a sphere"
EXACT, TRAINING = "exact inductive bias", "training error"
FEW = "share of draws that are right at few points"
EXACT_RANGE = 10.0, 150.0  # Nats at which the fitted tail is compared with the exact one.


@dataclasses.dataclass(frozen=True)
class Config:
  """The spheres, the images, and the spaces."""

  dims: tuple[int, ...] = (2, 4, 8, 16, 32)  # Of the spheres; increasing.
  compared: tuple[int, int, int] = (4, 8, 16)  # Of these, what the claims compare.
  sphere_train: int = 100  # Training points on a sphere.
  sphere_test: int = 50  # Test points on it.
  sphere_error: float = 0.01  # Wanted there.
  few_points: int = 4  # Test points at which good draws are counted, without a fit.
  few_error: float = 0.05  # Wanted there.
  few_samples: int = 1_000_000  # Draws that are counted.
  num_samples: int = 10_000  # Functions drawn from a kernel space.
  draws_at_once: int = 1000  # Functions in memory.
  jitter: float = 2e-5  # On the diagonal of the kernel matrix, in units of the amplitude².
  dataset: Literal["digits", "fashion_mnist", "cifar10"] = "digits"  # Of ten classes.
  num_train: int = 200  # Training images.
  num_test: int = 200  # Test images.
  target: float = 0.02  # Wanted mean squared error of one-hot targets; class frequencies give .09.
  convolution_target: float = 0.013  # That at which networks are compared; chosen by a pilot.
  further_targets: tuple[float, ...] = (0.015, 0.03)  # For the table.
  lengthscales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)  # To choose from by evidence.
  variances: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # Amplitudes², chosen likewise.
  widths: tuple[int, ...] = (64, 64, 64)  # Of the MLP.
  wide: int = 256  # Width of the one layer of another MLP.
  channels: tuple[int, int] = (8, 16)  # Of the CNN.
  num_networks: int = 32  # Networks trained of each kind.
  networks_at_once: int = 1  # Networks trained side by side.
  num_steps: int = 1200  # Updates of each, on all training images.
  learning_rate: float = 1e-3  # Of Adam.
  num_resamples: int = 200  # Of the bootstrap.


PRESETS = {
  "smoke": Config(
    sphere_train=8, sphere_test=6, few_samples=32, num_samples=32, draws_at_once=16, num_train=20,
    num_test=20, lengthscales=(1.0, 2.0), variances=(0.1,), widths=(8,), wide=4, channels=(2, 2),
    num_networks=8, num_steps=3, num_resamples=8,
  ),
  "laptop": Config(),
  "paper": Config(
    sphere_train=1000, sphere_test=200, jitter=2e-4, dataset="cifar10", num_train=10_000,
    num_test=1000, target=0.06, convolution_target=0.05, further_targets=(0.04, 0.07),
    lengthscales=(10.0, 20.0, 40.0, 80.0), widths=(1024, 1024, 1024), wide=8192,
    channels=(64, 128), num_networks=64, networks_at_once=8, num_steps=5000,
  ),
}  # fmt: skip


def validate(config: Config) -> None:
  """Raises ValueError where sizes are impossible or do not fit together."""
  sizes.check_sizes(config, empty=("further_targets",))
  errors = "sphere_error", "few_error", "target", "convolution_target", "further_targets"
  for name in (*errors, "jitter", "learning_rate", "lengthscales", "variances"):
    for value in np.ravel(getattr(config, name)):
      check_range(name, float(value), "(0, inf)")
  for name in ("dims", "compared"):
    values = getattr(config, name)
    if list(values) != sorted(set(values)):
      raise ValueError(f"{name} must increase, got {values}.")
  if not set(config.compared) <= set(config.dims):
    raise ValueError(f"compared must be among {config.dims}, got {config.compared}.")
  check_at_least(2, dims=config.dims[0])
  sizes.check_at_most(config.sphere_test, few_points=config.few_points)
  check_at_least(8, num_samples=config.num_samples, num_networks=config.num_networks)
  sizes.check_divides(config.draws_at_once, num_samples=config.num_samples)
  sizes.check_divides(config.networks_at_once, num_networks=config.num_networks)
  datasets.describe(config.dataset).check_splits(config.num_train, config.num_test)


def all_targets(config: Config) -> tuple[float, ...]:
  """The errors that are wanted of images, that of the headline first."""
  every = config.target, config.convolution_target, *config.further_targets
  return tuple(dict.fromkeys(every))


def run(config: Config, context: Context) -> Results:
  """Draws and fits the kernel space on spheres, then all spaces on images."""
  results = Results()
  run_spheres(config, context, results)
  run_images(config, context, results)
  return results


def run_spheres(config: Config, context: Context, results: Results) -> None:
  """The kernel space by dimension, on targets of its own process."""
  draw = functools.partial(kernels.sphere_tasks, config)
  tasks = datasets.stack_seeds(draw, context.seed_numbers)
  found = each_seed(context, "spheres", functools.partial(kernels.sphere_errors, config), tasks)
  target = (config.sphere_error,)

  def exact(task):
    law = kernels.exact_law(task, 1.0, 1.0, config.jitter)
    return np.float64(kernels.exact_surprisal(law, *target))

  for i, dim in enumerate(config.dims):
    scores = fit_errors(config, context, f"spheres fitted/{dim}", found["errors"][:, i], target)
    measured = {name: x[:, 0] if x.ndim > 1 else x for name, x in scores.items() if name != "law"}
    measured |= {EXACT: by_seed(exact, jax.tree.map(lambda x, i=i: x[:, i], tasks))}
    results.add({SPHERE: measured | {FEW: found["few"][:, i]}}, dim=dim)


def run_images(config: Config, context: Context, results: Results) -> None:
  """All spaces on the same images, and all errors that are wanted."""
  tasks = [kernels.image_task(config, seed) for seed in context.seed_numbers]
  mixed = [networks.permuted(*pair) for pair in zip(tasks, context.seed_numbers)]
  tasks, mixed = (jax.tree.map(lambda *x: np.stack(x), *x) for x in (tasks, mixed))
  drawn = each_seed(context, "kernels", functools.partial(kernels.image_errors, config), tasks)
  for i, space in enumerate(ROWS):
    settings = drawn["settings"][:, i]
    results.add({space: dict(zip(("lengthscale", "amplitude²"), settings.T))})
    laws = [
      kernels.exact_law(jax.tree.map(lambda x, s=s: x[s], tasks), *row, config.jitter)
      for s, row in enumerate(settings.astype(np.float64))
    ]
    for target in all_targets(config):
      exact = [kernels.exact_surprisal(law, target) for law in laws]
      results.add({space: {EXACT: exact}}, target=target)
    add_space(config, context, results, space, drawn["errors"][:, i])
  train = {x: functools.partial(networks.train_errors, config, x) for x in (MLP, WIDE, CNN)}
  train[PERMUTED] = train[CNN]  # One program.
  for space in SPACES:
    inputs = mixed if space == PERMUTED else tasks
    trained = each_seed(context, f"networks/{space}", train[space], inputs)
    results.add({space: {TRAINING: np.mean(trained["training"], axis=1)}})
    add_space(config, context, results, space, trained["errors"])


def add_space(config: Config, context: Context, results: Results, space: str, errors) -> None:
  """Fits a law to errors `[seeds, s]`, and adds what it says of every error that is wanted."""
  targets, kind = all_targets(config), {ord("²"): "2", ord("×"): "x", ord("/"): " of "}
  stage = "images fitted/" + space.translate(kind)
  scores = fit_errors(config, context, stage, errors, targets)
  results.extras |= {f"{space}: errors": errors[0], f"{space}: law": scores.pop("law")[0]}
  results.add({space: {name: x for name, x in scores.items() if x.ndim == 1}})
  for i, target in enumerate(targets):
    results.add({space: {name: scores[name][:, i] for name in PER_TARGET}}, target=target)


def fit_errors(config: Config, context: Context, stage: str, errors, targets):
  """`tails.biases` as a stage."""
  return context.cached(stage, tails.biases, errors, targets, num_resamples=config.num_resamples)


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  (low, middle, high), second = config.compared, config.convolution_target

  def bias(space, target=config.target):
    return results.select(BIAS, method=space, target=target)

  def on_sphere(dim, quantity=BIAS):
    return results.select(quantity, method=SPHERE, dim=dim)

  def measurable(space, target):
    """A space of networks that fit, whose tail is not too far away for so few of them."""
    training = results.select(TRAINING, method=space)
    mean, deviation = (results.select(name, method=space) for name in (MEAN, DEVIATION))
    far = (mean - target) / deviation
    return (
      precondition(f"{space}: the training error is at most .002", training, at_most=0.002),
      precondition(f"{space}: the bias is finite", bias(space, target), at_least=0),
      precondition(f"and {target:g} at most 8 deviations below the mean", far, at_most=8),
    )

  def counted(dim):
    with np.errstate(divide="ignore"):
      return -np.log(on_sphere(dim, FEW))

  def grows(*dims):
    with np.errstate(invalid="ignore"):
      more = counted(dims[1]) - counted(dims[0])
    text = f"counted at few points, the bias grows from {dims[0]} to {dims[1]} dimensions"
    return (precondition(text, more, at_least=0.5),)

  finite = precondition("the kernel's bias is finite", bias(TUNED), at_least=0)
  gap = bias(PERMUTED, second) - bias(CNN, second)
  lost = precondition("the CNN needs 2.5 nats more if pixels are permuted", gap, at_least=2.5)
  of_images = f"{config.dataset}, error {config.target:g}"
  able = *measurable(MLP, second), *measurable(CNN, second), lost
  return [
    compare(f"{of_images}: the kernel space needs 20 nats more than MLPs",
            bias(TUNED), bias(MLP), margin=20, headline=True,
            requires=(finite, *measurable(MLP, config.target)),
            paper="network spaces need orders of magnitude less than kernel spaces"),
    compare(f"spheres: {high} dimensions need 15 nats more than {middle}",
            on_sphere(high), on_sphere(middle), margin=15, requires=grows(middle, high),
            paper="the bias grows with the dimension of the data"),
    compare(f"{middle} dimensions need 15 nats more than {low}", on_sphere(middle), on_sphere(low),
            margin=15, requires=grows(low, middle)),
    compare(f"{config.dataset}, error {second:g}: MLPs need 5 nats more than CNNs",
            bias(MLP, second), bias(CNN, second), margin=5, requires=able,
            paper="convolutional networks need less than fully connected ones"),
    compare("|log(fitted / exact bias)| is below .2, a mean over kernel spaces of 10 to 150 nats",
            log_ratios(config, results), 0.2, better="lower"),
  ]  # fmt: skip


def log_ratios(config: Config, results: Results) -> np.ndarray:
  """How far the fitted bias is from the exact one, a mean over kernel spaces per seed."""
  low, high = EXACT_RANGE
  total = count = 0.0
  on_spheres = results.matching(quantity=EXACT, method=SPHERE)
  for record in (*on_spheres, *results.matching(quantity=EXACT, target=config.target)):
    exact, fitted = record.values, results.select(BIAS, method=record.method, **record.setting)
    inside = (exact >= low) & (exact <= high)
    total += np.where(inside, np.abs(np.log(np.where(inside, fitted / exact, 1.0))), 0.0)
    count += inside
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def figure(results: Results):
  """Errors of the spaces in the first seed with their fitted laws; the bias by dimension."""
  from scipy import stats

  figure, (left, right) = plots.panels(2, width=5.5, height=4.2)
  target = results.distinct("target")[0]
  shown = [space for space in (TUNED, *SPACES) if f"{space}: law" in results.extras]
  logs = {space: np.log10(results.extras[f"{space}: errors"]) for space in shown}
  plots.histograms(left, logs, bins=20)
  for space, patch in zip(shown, left.patches):
    df, nc, scale = results.extras[f"{space}: law"]
    x = np.linspace(logs[space].min() - 0.1, logs[space].max() + 0.1, 200)
    density = stats.ncx2.pdf(10**x, df, nc, scale=scale) * 10**x * np.log(10)
    left.plot(x, density, color=patch.get_edgecolor(), linewidth=1)
  left.axvline(np.log10(target), color="gray", linestyle="--", label=f"wanted: {target:g}")
  left.set(xlabel="log10 of the test error")
  left.legend(fontsize=7)
  plots.curves(right, results, BIAS, x="dim", method=SPHERE)
  dims = results.distinct("dim", quantity=EXACT)
  exact = [results.select(EXACT, dim=dim, method=SPHERE).mean() for dim in dims]
  right.plot(dims, exact, "x", color="black", label="exact")
  right.set_xscale("log", base=2)
  right.set(xlabel="dimensions of the sphere", ylabel="inductive bias (nats)")
  right.legend(fontsize=7)
  return figure


def abstract(config: Config, mesh):
  """An update of an MLP, for a dry run."""
  dataset = datasets.describe(config.dataset)
  module = networks.network(config, MLP, dataset.num_classes)
  shapes = dataset.shape, (dataset.num_classes,)
  rows = (jax.ShapeDtypeStruct((config.num_train, *x), np.float32) for x in shapes)
  batch = datasets.Split(*rows)
  optimizer = optax.adam(config.learning_rate)
  return abstract_step(module, squared_loss(module), optimizer, batch, mesh)


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
