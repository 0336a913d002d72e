"""The figure of the experiment, panel by panel."""

import numpy as np

from experiments.bayes.pfn.gaussian import EXACT
from experiments.bayes.pfn.networks import PFN
from experiments.kit import plots
from jaxlab.experiment import Results


def draw_figure(results: Results):
  """Posteriors over the exact ones, then a panel per task."""
  titles = list(dict.fromkeys(name.partition("/")[0] for name in results.extras))
  tasks = [task for task in results.distinct("task") if task in DRAWINGS]
  figure, axes = plots.panels(len(titles) + len(tasks), columns=3)
  for ax, title in zip(axes, titles):
    _draw_posterior(ax, title, results.extras)
    ax.set_title(title)
  for ax, task in zip(axes[len(titles) :], tasks):
    DRAWINGS[task](ax, results)
    ax.set_title(task)
    if task != "regression":  # Its methods stand along x.
      ax.legend(fontsize=6)
  axes[0].legend(fontsize=6)
  return figure


def _draw_posterior(ax, title: str, extras) -> None:
  grid, x, y = (extras[f"{title}/{name}"] for name in ("grid", "x", "y"))
  low, median, high = extras[f"{title}/{EXACT}"]
  ax.fill_between(grid, low, high, color="lightgray", label="exact posterior, 90%")
  ax.plot(grid, median, color="dimgray", label="exact median")
  low, median, high = extras[f"{title}/{PFN}"]
  ax.plot(grid, median, color="tab:blue", label="PFN, median")
  ax.plot(grid, low, "--", color="tab:blue", linewidth=1, label="PFN, 90%")
  ax.plot(grid, high, "--", color="tab:blue", linewidth=1)
  if f"{title}/truth" in extras:
    truth = extras[f"{title}/truth"]
    ax.plot(np.linspace(0, 1, len(truth)), truth, ":", color="tab:red", label="real series")
  ax.plot(x, y, "k.", label="seen")


def _draw_gaps(ax, results: Results) -> None:
  plots.curves(ax, results, "gap to the exact posterior", x="context", task="gp")
  ax.set_yscale("symlog", linthresh=0.1)
  ax.set(xlabel="context size", ylabel="NLL above exact (nats)")


def _draw_regret(ax, results: Results) -> None:
  plots.curves(ax, results, "simple regret", x="evaluations", task="optimize")
  ax.set_yscale("log")


def _draw_unknown(ax, results: Results) -> None:
  plots.curves(ax, results, "NLL", x="context", task="gp_hyper")
  ax.set_yscale("symlog", linthresh=2.0)
  ax.set(xlabel="context size", ylabel="NLL (nats)")


def _draw_tables(ax, results: Results) -> None:
  plots.intervals(ax, results, "AUC", by="table", task="tabular")


def _draw_regression(ax, results: Results) -> None:
  plots.intervals(ax, results, "NLL", by="method", color="task", task="regression")
  ax.set_ylabel("NLL on diabetes (nats)")


DRAWINGS = {
  "gp": _draw_gaps,
  "optimize": _draw_regret,
  "gp_hyper": _draw_unknown,
  "tabular": _draw_tables,
  "regression": _draw_regression,
}
