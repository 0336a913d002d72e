"""Transformers can do Bayesian inference: a network fitted to a prior against the exact posterior.

Tasks: `gp` (a GP prior, whose posterior is known), `gp_hyper` (its hyper-parameters unknown: a
mixture over a grid, and MAP-II), `series` (the same network on real power demand), `tabular` (a
prior over Bayesian networks, evaluated on real classification tables), `regression` (a prior of
linear and smooth functions of ten inputs, evaluated on `diabetes`).
"""

import dataclasses
import sys
import typing
from typing import Literal

import numpy as np

from experiments import catalogue
from experiments.bayes.pfn import gaussian
from experiments.bayes.pfn.gaussian import COVERAGE, EXACT, FITTED, MIXTURE, PFN, RESTARTED, SAMPLED
from experiments.kit import plots
from experiments.kit.prior_fitting import validate as validate
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "pfn"
Task = Literal["gp", "gp_hyper", "series", "tabular", "regression"]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  task: tuple[Task, ...] = typing.get_args(Task)  # Parts.
  embed_dim: int = 64  # Width of the networks.
  num_layers: int = 3  # Encoder layers.
  num_bars: int = 200  # Bars of the predictive distribution.
  batch_size: int = 32  # Data sets per update.
  accumulate: int = 1  # Micro-batches per update.
  learning_rate: float = 2e-3  # Peak of the schedule.
  warmup_fraction: float = 0.1  # Share of the steps that the learning rate rises.
  num_points: int = 24  # Points of a data set of the GP priors.
  num_features: int = 1  # Inputs of the GP priors.
  max_context: int | None = None  # Context sizes are drawn below this; None for num_points.
  scheme: Literal["uniform", "weighted"] = "uniform"  # How context sizes are drawn.
  lengthscale: float = 0.2  # Of the RBF prior.
  noise: float = 0.01  # Variance of the RBF prior's noise.
  num_steps: int = 4000  # Updates under the GP priors.
  num_test: int = 250  # Fresh data sets of a GP prior, or real series, per seed.
  context_sizes: tuple[int, ...] = (0, 1, 2, 5, 10, 20)  # Where the GP priors are evaluated.
  tabular_steps: int = 3000  # Updates of the task tabular.
  regression_steps: int = 8000  # Updates of the task regression.
  num_draws: int = 1000  # Draws of hyper-parameters behind its exact posterior.
  num_splits: int = 10  # Splits per real table and seed.


_SMALL = dict(embed_dim=16, num_layers=1, num_bars=10, num_steps=4)
_LARGE = dict(embed_dim=512, num_layers=6, num_bars=1000, batch_size=100, accumulate=25)
_PRIOR = dict(num_points=2010, num_features=5, max_context=2000, lengthscale=0.6, noise=1e-4)
_LONG = dict(num_steps=1_000_000, learning_rate=3e-4, warmup_fraction=0.25, scheme="weighted")
_SIZES = dict(num_test=1000, context_sizes=(0, 1, 5, 10, 50, 100, 500, 1000, 1999))
PRESETS = {
  # The other tasks need a network of another prior each.
  "smoke": Config(task=("gp", "series"), num_test=16, context_sizes=(0, 5, 10), **_SMALL),
  "laptop": Config(),
  "demo": Config(task=("series",)),
  "paper": Config(task=("gp",), **_LARGE, **_PRIOR, **_LONG, **_SIZES),
}


def run(config: Config, context: Context) -> Results:
  """Trains the networks of the chosen tasks and evaluates each beside its baselines."""
  results, tasks = Results(), {*config.task}
  if "gp" in tasks:
    gaussian.run_gp(config, context, results)
  if {"gp_hyper", "series"} & tasks:
    gaussian.run_gp_hyper(config, context, results)
  if {"tabular", "regression"} & tasks:
    from experiments.bayes.pfn import tables  # Brings scikit-learn, which nothing else here needs.

    for task in ("tabular", "regression"):
      if task in tasks:
        getattr(tables, f"run_{task}")(config, context, results)
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
    gap = "the network's NLL is within .06 nats of the exact posterior's, a mean over context sizes"
    paper = "indistinguishable up to about 1,000 points at the longest training"
    state(gap, network, exact, margin=-0.06, headline=True, requires=(able,), paper=paper)
  if "gp_hyper" in measured:
    network, fitted = select("NLL", "gp_hyper", PFN, FITTED, average=("context",))
    text = "unknown hyper-parameters: NLL within .05 nats of MAP-II's, a mean over context sizes"
    state(text, network, fitted, margin=-0.05, paper="equal to or better than MLE-II")
    few, methods = [c for c in config.context_sizes if 1 <= c <= 5], (PFN, FITTED, MIXTURE)
    if few:
      rows = [select("NLL", "gp_hyper", *methods, context=c) for c in few]
      network, fitted, mixture = np.mean(rows, axis=0)
      text = "given 1 to 5 points MAP-II is .03 nats worse than the mixture over the prior's grid"
      room = precondition(text, fitted - mixture, at_least=0.03)
      text = "unknown hyper-parameters: given 1 to 5 points, NLL below that of MAP-II"
      state(text, network, fitted, requires=(room,))
  if "tabular" in measured:
    others = [name for name in results.distinct("method", task="tabular") if name != PFN]
    network, *baselines = select("AUC", "tabular", PFN, *others, average=("table",))
    best = np.max(baselines, axis=0)
    text = "the best baseline has an AUC between .7 and .97"
    able = precondition(text, best, at_least=0.7, at_most=0.97)
    text = "real tables: AUC within .01 of the best tuned baseline's, a mean over tables"
    options = dict(better="higher", margin=-0.01, requires=(able,))
    state(text, network, best, paper="best mean rank AUC of seven methods", **options)
  if "regression" in measured:
    network, ridge, fitted, exact = select("NLL", "regression", PFN, "ridge", RESTARTED, SAMPLED)
    text = "the prior's exact posterior is within .03 nats of ridge regression"
    able = precondition(text, exact - ridge, at_most=0.03)
    text = "real regression table: NLL within .03 nats of tuned ridge regression's"
    state(text, network, ridge, margin=-0.03, requires=(able,))
    state("real regression table: NLL below that of a GP fitted with restarts", network, fitted)
  return statements


def figure(results: Results):
  """Posteriors of real series over the grid mixture's, then a panel per task."""
  contexts = list(dict.fromkeys(name.partition("/")[0] for name in results.extras))
  along = dict.fromkeys(("gp", "gp_hyper"), ("gap to the posterior", "context"))
  along |= {"tabular": ("AUC", "table"), "regression": ("NLL", "method")}
  tasks = [task for task in along if task in results.distinct("task")]
  picture, axes = plots.panels(len(contexts) + len(tasks), columns=3)
  for ax, c in zip(axes, contexts):
    hours, truth, seen = (results.extras[f"{c}/{name}"] for name in ("hours", "truth", "seen"))
    covers = []
    for name, color in ((MIXTURE, "gray"), (PFN, "tab:blue")):
      covered = results.select(COVERAGE, task="series", method=name, context=int(c)).mean()
      covers.append(f"{name} {covered:.0%}")
      plots.prediction(ax, hours, *results.extras[f"{c}/{name}"], color=color, label=f"{name}: 90%")
    ax.plot(hours, truth, ":", color="tab:red", label="real series")
    ax.plot(seen, truth[seen], "k.", label="seen")
    ax.set(xlabel="hour of the day", ylabel="power demand, standardized")
    ax.set_title(f"{c} hours seen; the intervals cover\n{', '.join(covers)}", fontsize=9)
  for ax, task in zip(axes[len(contexts) :], tasks):
    quantity, x = along[task]
    if x == "context":
      plots.curves(ax, results, quantity, x=x, task=task)
      ax.set(xlabel="context size", ylabel=f"{quantity}, nats", yscale="log")
    else:
      plots.intervals(ax, results, quantity, by=x, task=task)
      ax.tick_params(axis="x", labelsize=7)
    ax.set_title(task)
    ax.legend(fontsize=6)
  if contexts:
    plots.legend_below(picture, axes[0], columns=4)
  return picture


def abstract(config: Config, mesh):
  """The training step of the task gp, for a dry run."""
  borders = np.linspace(-3.0, 3.0, config.num_bars + 1, dtype=np.float32)
  return gaussian.trainer(config, gaussian.gp_prior(config), borders, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
