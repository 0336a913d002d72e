"""Transformers can do Bayesian inference: a network fitted to a prior against the exact posterior.

Tasks: `gp` (a GP prior, where the exact posterior is known), `series` (the same network on real
hand-motion series), `optimize` (the same network inside Bayesian optimization), `gp_hyper`
(hyper-parameters unknown: MLE-II and a grid mixture), `tabular` (a prior over Bayesian networks,
evaluated on real classification tables), `regression` (a GP prior in ten dimensions, evaluated on
`diabetes`).
"""

import dataclasses
import sys
from typing import Literal

import jax.numpy as jnp

from experiments import catalogue
from experiments.bayes.pfn import gaussian, hyper
from experiments.bayes.pfn.gaussian import EXACT, RANDOM
from experiments.bayes.pfn.networks import PFN, bar_nll, network, trainer
from experiments.bayes.pfn.pictures import draw_figure
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "pfn"
TABLES = ("iris", "wine", "breast_cancer", "pima", "heart", "australian", "bupa", "haberman")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  task: Literal["all", "gp", "series", "optimize", "gp_hyper", "tabular", "regression"] = (
    "all"  # Which part.
  )
  embed_dim: int = 64  # Width of the network.
  num_layers: int = 3  # Encoder layers.
  num_heads: int = 4  # Attention heads.
  small_embed_dim: int = 32  # Width of the second network of the task gp.
  small_num_layers: int = 2  # Layers of the second network.
  num_bars: int = 100  # Bars of the predictive distribution.
  batch_size: int = 64  # Data sets an update.
  accumulate: int = 1  # Micro-batches an update.
  learning_rate: float = 1e-3  # Peak of the schedule.
  warmup_fraction: float = 0.1  # Share of the steps that the learning rate rises.
  steps_per_call: int = 100  # Updates in one compiled program.
  num_points: int = 40  # Points of a data set of the GP priors.
  num_features: int = 1  # Inputs of the GP priors.
  max_context: int = 40  # Context sizes are drawn below this.
  scheme: Literal["uniform", "weighted"] = "uniform"  # How context sizes are drawn.
  lengthscale: float = 0.2  # Of the RBF prior.
  noise: float = 0.01  # Variance of the RBF prior's noise.
  num_steps: int = 8000  # Updates of both networks of the task gp.
  num_test: int = 1000  # Fresh data sets of the task gp.
  context_sizes: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 30, 39)  # Where the task gp is evaluated.
  series_contexts: tuple[int, ...] = (2, 5, 10, 20)  # Seen moments in the task series.
  num_functions: int = 64  # Functions that the task optimize maximizes.
  num_evaluations: int = 16  # Evaluations per function, the random first one counted.
  hyper_steps: int = 4000  # Updates of the task gp_hyper.
  num_hyper_test: int = 200  # Fresh data sets of the task gp_hyper.
  hyper_context_sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 30)  # Where it is evaluated.
  lengthscale_gamma: tuple[float, float] = (3.0, 12.0)  # Shape and rate of the hyper-prior.
  outputscale_gamma: tuple[float, float] = (3.0, 3.0)  # Likewise.
  noise_gamma: tuple[float, float] = (1.1, 20.0)  # Likewise.
  tabular_steps: int = 2000  # Updates of the task tabular.
  tabular_points: int = 60  # Points of its data sets.
  tabular_features: int = 16  # Most features that its network takes.
  tabular_dropout: float = 0.0  # Dropout of its network.
  tables: tuple[str, ...] = TABLES  # Real tables.
  num_train: int = 30  # Training points per real table, half of them of either class.
  num_splits: int = 10  # Splits per real table and seed.
  regression_steps: int = 3000  # Updates of the task regression.
  regression_points: int = 110  # Points of its data sets.
  regression_train: int = 100  # Training points of `diabetes`.
  regression_splits: int = 5  # Splits per seed.


_SMOKE = Config(
  embed_dim=16,
  num_layers=1,
  num_heads=2,
  small_embed_dim=8,
  small_num_layers=1,
  num_bars=10,
  batch_size=16,
  steps_per_call=2,
  num_points=12,
  max_context=12,
  num_steps=4,
  num_test=8,
  context_sizes=(0, 5, 10),
  series_contexts=(2, 8),
  num_functions=2,
  num_evaluations=3,
  hyper_steps=4,
  num_hyper_test=2,
  hyper_context_sizes=(5,),
  tabular_steps=4,
  tabular_points=40,
  tables=("iris",),
  num_splits=1,
  regression_steps=4,
  regression_points=40,
  regression_train=30,
  regression_splits=1,
)
PRESETS = {
  "smoke": _SMOKE,
  "laptop": Config(),
  "demo": Config(task="series", num_steps=2500),
  "paper": Config(
    task="gp",
    embed_dim=512,
    num_layers=6,
    num_bars=1000,
    batch_size=100,
    accumulate=25,
    learning_rate=3e-4,
    warmup_fraction=0.25,
    num_points=2010,
    num_features=5,
    max_context=2000,
    scheme="weighted",
    lengthscale=0.6,
    noise=1e-4,
    num_steps=1_000_000,
    small_embed_dim=512,
    small_num_layers=3,
    context_sizes=(0, 1, 5, 10, 50, 100, 500, 1000, 1999),
    tabular_steps=10_000,
    tabular_features=60,
    tabular_dropout=0.5,
  ),
}


GP_TASKS = {
  "gp": gaussian.run_gp,
  "series": gaussian.run_series,
  "optimize": gaussian.run_optimize,
}


def run(config: Config, context: Context) -> Results:
  """Trains the networks of the chosen tasks and evaluates each beside its baselines."""
  results = Results()
  wanted = {*GP_TASKS, "gp_hyper", "tabular", "regression"}
  if config.task != "all":
    wanted = {config.task}
  if wanted & set(GP_TASKS):
    networks = gaussian.train(config, context, both="gp" in wanted)
    for task, run_task in GP_TASKS.items():
      if task in wanted:
        run_task(config, context, networks, results)
  if "gp_hyper" in wanted:
    hyper.run_gp_hyper(config, context, results)
  if wanted & {"tabular", "regression"}:
    from experiments.bayes.pfn import tables  # Brings scikit-learn, which nothing else here needs.

    if "tabular" in wanted:
      tables.run_tabular(config, context, results)
    if "regression" in wanted:
      tables.run_regression(config, context, results)
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements, on the tasks that ran."""
  measured = results.distinct("task")

  def select(quantity: str, task: str, *methods: str, **where):
    return [results.select(quantity, task=task, method=method, **where) for method in methods]

  statements: list[Claim] = []
  if "gp" in measured:
    network, exact, prior = select("NLL", "gp", PFN, EXACT, "prior", average=("context",))
    informative = "the exact posterior is .5 nats better than the prior"
    statement = compare(
      "the network's NLL is within .10 nats of the exact posterior's, a mean over context sizes",
      network,
      exact,
      better="lower",
      margin=-0.10,
      headline=True,
      requires=(precondition(informative, prior - exact, at_least=0.5),),
      paper="indistinguishable up to about 1,000 points at the longest training",
    )
    statements.append(statement)
  if "optimize" in measured:
    last = config.num_evaluations
    network, exact, random = select(
      "simple regret", "optimize", PFN, EXACT, RANDOM, evaluations=last
    )
    text = "random search leaves twice the exact GP's regret"
    statement = compare(
      "Bayesian optimization with the network leaves at most 1.5 times the exact GP's regret",
      network,
      1.5 * exact,
      better="lower",
      requires=(precondition(text, random - 2 * exact, at_least=0.0),),
    )
    statements.append(statement)
  if "gp_hyper" in measured:
    methods = PFN, "MAP-II", "grid mixture"
    network, fitted, mixture = select("NLL", "gp_hyper", *methods, average=("context",))
    over_fitted = compare(
      "unknown hyper-parameters: NLL below that of a GP fitted by MAP, a mean over context sizes",
      network,
      fitted,
      better="lower",
      paper="equal to or better than MLE-II",
    )
    over_mixture = compare(
      "unknown hyper-parameters: NLL within .10 nats of the mixture over the prior's grid",
      network,
      mixture,
      better="lower",
      margin=-0.10,
    )
    statements += [over_fitted, over_mixture]
  if "tabular" in measured:
    network, linear = select("AUC", "tabular", PFN, "logistic regression", average=("table",))
    able = precondition("logistic regression has an AUC of .7 or more", linear, at_least=0.7)
    room = precondition("and of .97 or less", linear, at_most=0.97)
    statement = compare(
      "real tables: AUC within .02 of tuned logistic regression's, a mean over tables",
      network,
      linear,
      margin=-0.02,
      requires=(able, room),
      paper="best mean rank AUC of seven methods",
    )
    statements.append(statement)
  if "regression" in measured:
    text = "real regression table: NLL within .01 nats of ridge regression's"
    network, ridge = select("NLL", "regression", PFN, "ridge")
    statements.append(compare(text, network, ridge, better="lower", margin=-0.01))
  return statements


def figure(results: Results):
  """Posteriors over the exact ones, then a panel per task."""
  return draw_figure(results)


def abstract(config: Config, mesh):
  """The training step of the task gp, for a dry run."""
  nll = bar_nll(jnp.linspace(-3.0, 3.0, config.num_bars + 1))
  module, prior_fn = network(config, config.num_bars), gaussian.gp_prior(config)
  return trainer(config, module, prior_fn, nll, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
