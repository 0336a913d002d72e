"""Transformers can do Bayesian inference: a network trained on a prior against the exact posterior.

Tasks: `gp` (a GP prior, where the exact posterior is known), `series` (the same network on real
hand-motion series), `optimize` (the same network inside Bayesian optimisation), `gp_hyper`
(hyper-parameters unknown: MLE-II and a grid mixture), `tabular` (a prior over Bayesian networks,
judged on real classification tables), `regression` (a GP prior in ten dimensions, judged on
`diabetes`).
"""

import dataclasses
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.bayes import pfn_hyper, pfn_tasks

PAPER = "pfn"
TABLES = ("iris", "wine", "breast_cancer", "pima", "heart", "australian", "bupa", "haberman")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is judged."""

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
  save_every: int = 1000  # Updates between checkpoints.
  num_points: int = 40  # Points of a data set of the GP priors.
  num_features: int = 1  # Inputs of the GP priors.
  max_context: int = 40  # Context sizes are drawn below this.
  scheme: Literal["uniform", "weighted"] = "uniform"  # How context sizes are drawn.
  lengthscale: float = 0.2  # Of the RBF prior.
  noise: float = 0.01  # Variance of the RBF prior's noise.
  num_steps: int = 8000  # Updates of both networks of the task gp.
  num_test: int = 1000  # Fresh data sets of the task gp.
  context_sizes: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 30, 39)  # Where the task gp is judged.
  series_contexts: tuple[int, ...] = (2, 5, 10, 20)  # Seen moments in the task series.
  num_functions: int = 64  # Functions that the task optimize maximises.
  num_evaluations: int = 16  # Evaluations a function, the random first one counted.
  hyper_steps: int = 4000  # Updates of the task gp_hyper.
  num_hyper_test: int = 200  # Fresh data sets of the task gp_hyper.
  hyper_context_sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 30)  # Where it is judged.
  lengthscale_gamma: tuple[float, float] = (3.0, 12.0)  # Shape and rate of the hyper-prior.
  outputscale_gamma: tuple[float, float] = (3.0, 3.0)  # Likewise.
  noise_gamma: tuple[float, float] = (1.1, 20.0)  # Likewise.
  tabular_steps: int = 2000  # Updates of the task tabular.
  tabular_points: int = 60  # Points of its data sets.
  tabular_features: int = 16  # Most features that its network takes.
  tabular_dropout: float = 0.0  # Dropout of its network.
  tables: tuple[str, ...] = TABLES  # Real tables.
  num_train: int = 30  # Training points a real table, half of them of either class.
  num_splits: int = 10  # Splits a real table and seed.
  regression_steps: int = 3000  # Updates of the task regression.
  regression_points: int = 110  # Points of its data sets.
  regression_train: int = 100  # Training points of `diabetes`.
  regression_splits: int = 5  # Splits a seed.


_SMOKE = Config(
  embed_dim=16,
  num_layers=1,
  num_heads=2,
  small_embed_dim=8,
  small_num_layers=1,
  num_bars=10,
  batch_size=16,
  steps_per_call=2,
  save_every=4,
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


def _wants(config: Config, *tasks: str) -> bool:
  return config.task == "all" or config.task in tasks


def run(config: Config, context: common.Context) -> common.Results:
  """Trains the networks of the chosen tasks and sets each beside its rivals."""
  rows: dict[str, dict] = {}
  extras: dict[str, np.ndarray] = {}

  def add(part):
    for method, row in part[0].items():
      rows.setdefault(method, {}).update(row)
    extras.update(part[1])

  if _wants(config, "gp", "series", "optimize"):
    networks = pfn_tasks.train_gp(config, context, both=_wants(config, "gp"))
    if _wants(config, "gp"):
      add(pfn_tasks.run_gp(config, context, networks))
    if _wants(config, "series"):
      add(pfn_tasks.run_series(config, context, networks))
    if _wants(config, "optimize"):
      add(pfn_tasks.run_optimize(config, context, networks))
  if _wants(config, "gp_hyper"):
    add(pfn_hyper.run_gp_hyper(config, context))
  if _wants(config, "tabular", "regression"):
    from experiments.bayes import pfn_real  # Brings scikit-learn, which nothing else here needs.
  if _wants(config, "tabular"):
    add(pfn_real.run_tabular(config, context))
  if _wants(config, "regression"):
    add(pfn_real.run_regression(config, context))
  return common.Results(rows, extras)


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements, judged on the tasks that ran."""
  found: list[common.Claim] = []
  quantities = results.quantities
  main = next((name for name in quantities if name.startswith("PFN ")), None)
  if main and "gp/mean gap" in quantities[main]:
    row, wrong = quantities[main], pfn_tasks.WRONG_GP
    found += [
      common.compare(
        "gp: mean gap to the exact posterior is at most 0.10 nats",
        row["gp/mean gap"],
        0.10,
        better="lower",
        paper="indistinguishable up to about 1,000 points at the longest training",
      ),
      common.compare(
        "gp: no context size beats the exact posterior by 2 standard errors",
        row["gp/smallest gap in s.e."],
        -2.0,
      ),
      common.compare(
        f"gp: closer to the exact posterior than a {wrong}, at every context of 5 or more",
        row[f"gp/smallest lead over {wrong}"],
        0.0,
      ),
      common.compare(
        "gp: the central 90% interval covers 88 to 92%",
        np.abs(row["gp/90% coverage"] - 0.9),
        0.02,
        better="lower",
      ),
    ]
  if "random search" in quantities:
    regret = {
      name: quantities[name]["optimize/simple regret"]
      for name in ("PFN", "exact GP", "random search")
    }
    found += [
      common.compare(
        "optimize: simple regret within 1.5x of the exact GP's",
        regret["PFN"],
        1.5 * regret["exact GP"],
        better="lower",
      ),
      common.compare(
        "optimize: simple regret below half of random search's",
        regret["PFN"],
        0.5 * regret["random search"],
        better="lower",
      ),
    ]
  if "MLE-II" in quantities:
    names = [name for name in quantities["MLE-II"] if name.startswith("gp_hyper/NLL")]
    short = [name for name in names if int(name.rpartition("=")[2]) <= 10]

    def mean(method, chosen):
      return np.mean([quantities[method][name] for name in chosen], 0)

    found += [
      common.compare(
        "gp_hyper: NLL below MLE-II's, contexts up to 10",
        mean("PFN", short),
        mean("MLE-II", short),
        better="lower",
        paper="equal or better likelihood, 200x faster",
      ),
      common.compare(
        "gp_hyper: NLL below that of MLE-II with the prior as penalty (MAP), contexts up to 10",
        mean("PFN", short),
        mean("MAP-II", short),
        better="lower",
      ),
      common.compare(
        "gp_hyper: NLL not below the grid mixture's, all contexts",
        mean("PFN", names),
        mean("grid mixture", names),
        better="higher",
      ),
    ]
  if "logistic regression" in quantities:
    auc = {name: row["tabular/AUC"] for name, row in quantities.items() if "tabular/AUC" in row}
    seconds = {name: quantities[name]["tabular/seconds"] for name in auc}
    found += [
      common.compare("tabular: mean AUC at least 5-NN's", auc["PFN"], auc["5-NN"]),
      common.compare(
        "tabular: mean AUC within .02 of logistic regression's",
        auc["PFN"],
        auc["logistic regression"],
        margin=-0.02,
        paper="best mean rank AUC of seven methods",
      ),
      common.compare(
        "tabular: against the cross-validated GP a 50x speedup",
        seconds["GP classifier"] / seconds["PFN"],
        50.0,
        paper="about 5,000x against tuned XGBoost and Bayesian networks",
      ),
    ]
  if "GP, 3 restarts" in quantities:
    nll = {n: row["regression/NLL"] for n, row in quantities.items() if "regression/NLL" in row}
    seconds = {name: quantities[name]["regression/seconds"] for name in nll}
    found += [
      common.compare(
        "regression: NLL on diabetes below that of a GP with restarts",
        nll["PFN"],
        nll["GP, 3 restarts"],
        better="lower",
      ),
      common.compare(
        "regression: NLL on diabetes below ridge's", nll["PFN"], nll["ridge"], better="lower"
      ),
      common.compare(
        "regression: against a GP with restarts a 50x speedup",
        seconds["GP, 3 restarts"] / seconds["PFN"],
        50.0,
        paper="200x against MLE-II",
      ),
    ]
  return found


def figure(results: common.Results):
  """Posterior bands over the exact ones, gaps by context size, optimisation, real tables."""
  import matplotlib.pyplot as plt

  extras, quantities = results.extras, results.quantities
  titles = [name.split("/")[1] for name in extras if name.startswith("bands/")]
  titles = list(dict.fromkeys(titles))
  has_gaps = any("gp/mean gap" in row for row in quantities.values())
  has_search = any(name.startswith("optimize/") for name in extras)
  bars = [
    label
    for label in ("tabular/AUC", "tabular/NLL", "regression/NLL")
    if any(label in row for row in quantities.values())
  ]
  num_panels = len(titles) + has_gaps + has_search + len(bars)
  columns = min(3, max(num_panels, 1))
  num_rows = -(-max(num_panels, 1) // columns)
  fig, axes = plt.subplots(
    num_rows, columns, figsize=(4.2 * columns, 3.2 * num_rows), squeeze=False, layout="constrained"
  )
  panels = iter(axes.flat)
  for title in titles:
    band = {n.split("/")[2]: a for n, a in extras.items() if n.startswith(f"bands/{title}/")}
    _plot_bands(next(panels), title, band, legend=title == titles[0])
  if has_gaps:
    _plot_gaps(next(panels), quantities)
  if has_search:
    ax = next(panels)
    for name in ("PFN", "exact GP", "random search"):
      path = extras[f"optimize/{name}"]
      ax.plot(np.arange(1, len(path) + 1), path, label=name)
    ax.set(xlabel="evaluations", ylabel="simple regret", yscale="log", title="Optimisation")
    ax.legend(fontsize=8)
  for label in bars:
    ax = next(panels)
    chosen = {name: common.quantity(row[label]) for name, row in quantities.items() if label in row}
    for i, (name, value) in enumerate(chosen.items()):
      color = "tab:blue" if name == "PFN" else "dimgray"
      ax.errorbar(value.mean, i, xerr=np.nan_to_num(value.standard_error), fmt="o", color=color)
    ax.set_yticks(range(len(chosen)), list(chosen))
    ax.grid(axis="x", alpha=0.3)
    ax.set_title(label.replace("/", ": "))
    ax.invert_yaxis()
  for ax in panels:
    ax.set_axis_off()
  return fig


def _plot_bands(ax, title, band, *, legend):
  grid = band["grid"]
  low, mean, high = band["exact"]
  ax.fill_between(grid, low, high, color="lightgray", label="exact posterior, 90%")
  ax.plot(grid, mean, color="dimgray", label="exact mean")
  low, mean, high = band["PFN"]
  ax.plot(grid, mean, color="tab:blue", label="PFN mean")
  ax.plot(grid, low, "--", color="tab:blue", linewidth=1, label="PFN, 90%")
  ax.plot(grid, high, "--", color="tab:blue", linewidth=1)
  if "truth" in band:
    truth = band["truth"]
    ax.plot(np.linspace(0, 1, len(truth)), truth, ":", color="tab:red", label="real series")
  ax.plot(band["x"], band["y"], "k.", label="seen")
  ax.set_title(title, fontsize=10)
  if legend:
    ax.legend(fontsize=6)


def _plot_gaps(ax, quantities):
  exact = quantities["exact GP"]
  names = [name for name in exact if name.startswith("gp/NLL c=")]
  sizes = [int(name.rpartition("=")[2]) for name in names]
  for method, row in quantities.items():
    if "gp/mean gap" in row and method != "exact GP":
      ax.plot(sizes, [np.mean(row[n] - exact[n]) for n in names], ".-", label=method)
  ax.set(xlabel="context size", ylabel="NLL above exact (nats)", title="Gap to the posterior")
  ax.set_yscale("symlog", linthresh=0.1)
  ax.legend(fontsize=7)


def abstract(config: Config, mesh):
  """The training step of the task gp, for a dry run."""
  borders = jnp.linspace(-3.0, 3.0, config.num_bars + 1)
  trainer = pfn_tasks.gp_trainer(
    dataclasses.replace(config, steps_per_call=1),
    pfn_tasks.gp_prior(config),
    borders,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_steps=config.num_steps,
    mesh=mesh,
  )
  state = jax.eval_shape(trainer.init, jax.random.key(0))
  batch = {
    "key": jax.ShapeDtypeStruct((config.batch_size, 2), jnp.uint32),
    "num_context": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
  }
  return trainer.update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
