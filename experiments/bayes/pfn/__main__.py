"""Transformers can do Bayesian inference: a network fitted to a prior against the exact posterior.

Tasks: `gp` (a GP prior, where the exact posterior is known), `series` (the same network on real
hand-motion series), `optimize` (the same network inside Bayesian optimization), `gp_hyper`
(hyper-parameters unknown: MLE-II and a grid mixture), `tabular` (a prior over Bayesian networks,
evaluated on real classification tables), `regression` (a GP prior in ten dimensions, evaluated on
`diabetes`).
"""

import dataclasses
import functools
import sys
import typing
from typing import Literal

import numpy as np

from experiments import catalogue
from experiments.bayes.pfn import gaussian
from experiments.bayes.pfn.gaussian import EXACT, PFN, RANDOM
from experiments.kit import plots
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "pfn"
Task = Literal["gp", "series", "optimize", "gp_hyper", "tabular", "regression"]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  task: tuple[Task, ...] = typing.get_args(Task)  # Parts.
  embed_dim: int = 64  # Width of the networks.
  num_layers: int = 3  # Encoder layers.
  num_bars: int = 100  # Bars of the predictive distribution.
  batch_size: int = 64  # Data sets per update.
  accumulate: int = 1  # Micro-batches per update.
  learning_rate: float = 1e-3  # Peak of the schedule.
  warmup_fraction: float = 0.1  # Share of the steps that the learning rate rises.
  num_points: int = 40  # Points of a data set of the GP priors.
  num_features: int = 1  # Inputs of the GP priors.
  max_context: int | None = None  # Context sizes are drawn below this; None for num_points.
  scheme: Literal["uniform", "weighted"] = "uniform"  # How context sizes are drawn.
  lengthscale: float = 0.2  # Of the RBF prior.
  noise: float = 0.01  # Variance of the RBF prior's noise.
  num_steps: int = 8000  # Updates for the tasks gp, series and optimize.
  num_test: int = 1000  # Fresh data sets of the task gp; the task gp_hyper draws a fifth.
  context_sizes: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 30, 39)  # Where the task gp is evaluated.
  num_functions: int = 64  # Functions that the task optimize maximizes.
  hyper_steps: int = 4000  # Updates of the task gp_hyper.
  hyper_context_sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 30)  # Where it is evaluated.
  tabular_steps: int = 2000  # Updates of the task tabular.
  tabular_features: int = 16  # Most features that its network takes.
  tabular_dropout: float = 0.0  # Dropout of its network.
  num_splits: int = 10  # Splits per real table and seed; the task regression makes half as many.
  regression_steps: int = 3000  # Updates of the task regression.


_SMALL = dict(embed_dim=16, num_layers=1, num_bars=10, batch_size=32, num_points=24, num_steps=4)
_LARGE = dict(embed_dim=512, num_layers=6, num_bars=1000, batch_size=100, accumulate=25)
_PRIOR = dict(num_points=2010, num_features=5, max_context=2000, lengthscale=0.6, noise=1e-4)
_TABULAR = dict(tabular_steps=10_000, tabular_features=60, tabular_dropout=0.5)
PRESETS = {
  "smoke": Config(
    task=("gp", "series", "optimize"),  # The others need a network of another prior each.
    num_test=150,  # As many as series, so that both run the same compiled evaluation.
    context_sizes=(0, 5, 10, 20),
    num_functions=2,
    **_SMALL,
  ),
  "laptop": Config(),
  "demo": Config(task=("series",), num_steps=2500),
  "paper": Config(
    task=("gp",),
    learning_rate=3e-4,
    warmup_fraction=0.25,
    scheme="weighted",
    num_steps=1_000_000,
    context_sizes=(0, 1, 5, 10, 50, 100, 500, 1000, 1999),
    **_LARGE,
    **_PRIOR,
    **_TABULAR,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Trains the networks of the chosen tasks and evaluates each beside its baselines."""
  results, runs = Results(), {"gp_hyper": gaussian.run_gp_hyper}
  if {"gp", "series", "optimize"} & {*config.task}:
    network = gaussian.fit(config, context, "gp", gaussian.gp_prior(config), context.key)
    for task in ("gp", "series", "optimize"):
      runs[task] = functools.partial(getattr(gaussian, f"run_{task}"), network=network)
  if {"tabular", "regression"} & {*config.task}:
    from experiments.bayes.pfn import tables  # Brings scikit-learn, which nothing else here needs.

    runs |= {"tabular": tables.run_tabular, "regression": tables.run_regression}
  for task in config.task:
    runs[task](config, context, results)
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, on the tasks that ran."""
  measured, statements = results.distinct("task"), []

  def select(quantity: str, task: str, *methods: str, **where):
    return [results.select(quantity, task=task, method=method, **where) for method in methods]

  def state(*args, better="lower", **options):
    statements.append(compare(*args, better=better, **options))

  if "gp" in measured:
    network, exact, prior = select("NLL", "gp", PFN, EXACT, "prior", average=("context",))
    text = "the exact posterior is .5 nats better than the prior"
    able = precondition(text, prior - exact, at_least=0.5)
    gap = "the network's NLL is within .10 nats of the exact posterior's, a mean over context sizes"
    paper = "indistinguishable up to about 1,000 points at the longest training"
    state(gap, network, exact, margin=-0.1, headline=True, requires=(able,), paper=paper)
  if "optimize" in measured:
    where = dict(evaluations=gaussian.NUM_EVALUATIONS)
    network, exact, random = select("simple regret", "optimize", PFN, EXACT, RANDOM, **where)
    text = "random search leaves twice the exact GP's regret"
    able = precondition(text, random - 2 * exact, at_least=0.0)
    text = "Bayesian optimization with the network leaves at most 1.5 times the exact GP's regret"
    state(text, network, 1.5 * exact, requires=(able,))
  if "gp_hyper" in measured:
    methods = PFN, "MAP-II", "grid mixture"
    network, fitted, mixture = select("NLL", "gp_hyper", *methods, average=("context",))
    text = "NLL below that of a GP fitted by MAP, a mean over context sizes"
    paper = "equal to or better than MLE-II"
    state(f"unknown hyper-parameters: {text}", network, fitted, paper=paper)
    text = "NLL within .10 nats of the mixture over the prior's grid"
    state(f"unknown hyper-parameters: {text}", network, mixture, margin=-0.1)
  if "tabular" in measured:
    network, linear = select("AUC", "tabular", PFN, "logistic regression", average=("table",))
    able = precondition("logistic regression has an AUC of .7 or more", linear, at_least=0.7)
    room = precondition("and of .97 or less", linear, at_most=0.97)
    text = "real tables: AUC within .02 of tuned logistic regression's, a mean over tables"
    options = dict(better="higher", margin=-0.02, requires=(able, room))
    state(text, network, linear, paper="best mean rank AUC of seven methods", **options)
  if "regression" in measured:
    text = "real regression table: NLL within .01 nats of ridge regression's"
    state(text, *select("NLL", "regression", PFN, "ridge"), margin=-0.01)
  return statements


def figure(results: Results):
  """Posteriors of real series over the exact ones, then a panel per task."""
  titles = list(dict.fromkeys(name.partition("/")[0] for name in results.extras))
  along = {"gp": ("gap to the exact posterior", "context"), "gp_hyper": ("NLL", "context")}
  along |= {"optimize": ("simple regret", "evaluations"), "tabular": ("AUC", "table")}
  along |= {"regression": ("NLL", "method")}
  tasks = [task for task in results.distinct("task") if task in along]
  picture, axes = plots.panels(len(titles) + len(tasks), columns=3)
  for ax, title in zip(axes, titles):
    grid, truth, x, y, network, exact = (
      results.extras[f"{title}/{name}"] for name in ("grid", "truth", "x", "y", PFN, EXACT)
    )
    plots.prediction(ax, grid, *exact, color="gray", label="exact posterior, 90%")
    plots.prediction(ax, grid, *network, color="tab:blue", label=f"{PFN}, 90%")
    ax.plot(grid, truth, ":", color="tab:red", label="real series")
    ax.plot(x, y, "k.", label="seen")
    ax.set_title(title)
  for ax, task in zip(axes[len(titles) :], tasks):
    quantity, x = along[task]
    if task in ("tabular", "regression"):
      plots.intervals(ax, results, quantity, by=x, task=task)
    else:
      plots.curves(ax, results, quantity, x=x, task=task)
      ax.set_yscale("symlog", linthresh=0.1)
    ax.set_title(task)
  for ax in axes:
    ax.legend(fontsize=6)
  return picture


def abstract(config: Config, mesh):
  """The training step of the task gp, for a dry run."""
  borders = np.linspace(-3.0, 3.0, config.num_bars + 1, dtype=np.float32)
  return gaussian.trainer(config, gaussian.gp_prior(config), borders, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
