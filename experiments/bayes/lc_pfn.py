"""Learning-curve extrapolation: a network fitted to a prior over curves against MCMC on that prior.

Judged on fresh curves of the prior, on real learning curves (LCDB: 20 learners on 248 data sets),
and by what predictive early stopping saves and loses with its predictions.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.bayes.lc_pfn_prior import (
  Predictor,
  curve_borders,
  curve_trainer,
  judge_on_prior,
)
from experiments.bayes.lc_pfn_real import judge_on_real, judge_stopping, real_curves

PAPER = "lc_pfn"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is judged."""

  length: int = 30  # Steps of a curve.
  embed_dim: int = 64  # Width of the network.
  num_layers: int = 3  # Encoder layers.
  num_heads: int = 4  # Attention heads.
  dropout: float = 0.0  # Dropout of the network.
  num_bars: int = 200  # Bars of the predictive distribution.
  batch_size: int = 64  # Curves an update.
  group_size: int = 16  # Curves that one key draws together.
  learning_rate: float = 1e-3  # Peak of the schedule.
  num_steps: int = 8000  # Updates.
  steps_per_call: int = 100  # Updates in one compiled program.
  save_every: int = 1000  # Updates between checkpoints.
  num_test: int = 200  # Fresh curves of the prior.
  contexts: tuple[int, ...] = (6, 12)  # Steps that are seen of them.
  mcmc_steps: tuple[int, ...] = (200, 1000, 3000)  # Budgets of the rival; half is burnt.
  num_walkers: int = 50  # Walkers of its ensemble.
  num_starts: int = 5000  # Prior draws that its start is resampled from.
  num_real: int = 400  # Real test curves a seed; 0 leaves out the real half.
  observed_share: float = 0.4  # Share of the steps of a real curve that is seen.
  test_share: float = 0.25  # Share of the real data sets that is tested on.
  num_orders: int = 20  # Random orders of the learners of a data set in early stopping.
  confidence: float = 0.95  # Confidence of early stopping.


PRESETS = {
  "smoke": Config(
    length=11,  # Ten real data sets have curves as short as that.
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    num_bars=10,
    batch_size=16,
    group_size=8,
    num_steps=4,
    steps_per_call=2,
    save_every=4,
    # As many as a share of real curves on two devices, so that both run the same compiled chain.
    num_test=32,
    contexts=(4,),
    mcmc_steps=(20,),
    num_walkers=26,
    num_starts=100,
    num_real=8,
    num_orders=2,
  ),
  "laptop": Config(),
  "paper": Config(
    length=100,
    embed_dim=512,
    num_layers=12,
    dropout=0.2,
    num_bars=1000,
    batch_size=100,
    group_size=25,
    learning_rate=1e-4,
    num_steps=100_000,
    num_test=1000,
    contexts=(10, 20, 40, 80),
    mcmc_steps=(2000,),
    num_walkers=100,
  ),
}


def run(config: Config, context: common.Context) -> common.Results:
  """Trains the network and judges it beside MCMC and the simple rivals."""
  borders = curve_borders(config, context.key)
  trainer = curve_trainer(config, borders, context.mesh)
  curves = context.cached("lcdb", real_curves, config) if config.num_real else None
  rows: dict[str, dict[str, list]] = {}
  extras: dict[str, np.ndarray] = {}
  for seed in range(context.seeds):
    params = trainer.train(context, f"seed{seed}", seed, save_every=config.save_every)
    predictor = Predictor(trainer.module, params, borders)
    key = jax.random.fold_in(context.seed_key(seed), 1)
    parts = [context.cached(f"prior/seed{seed}", judge_on_prior, config, context, predictor, key)]
    if curves:
      rng = np.random.default_rng([seed, 1])
      parts += [
        context.cached(f"real/seed{seed}", judge_on_real, config, context, predictor, curves, key),
        context.cached(f"stopping/seed{seed}", judge_stopping, config, predictor, curves, rng),
      ]
    for method, row in ((m, r) for part in parts for m, r in part["rows"].items()):
      for name, value in row.items():
        rows.setdefault(method, {}).setdefault(name, []).append(float(value))
    if seed == 0:
      extras = {name: array for part in parts for name, array in part["extras"].items()}
  return common.Results(rows, extras)


def claims(results: common.Results) -> list[common.Claim]:
  """The paper's statements."""
  quantities = results.quantities
  pfn = quantities["PFN"]
  budgets = [name for name in quantities if name.startswith("MCMC")]
  found = []
  for name in (name for name in pfn if name.startswith("prior/NLL")):
    best = np.min([quantities[budget][name] for budget in budgets], axis=0)
    found.append(
      common.compare(
        f"prior curves, {name.rpartition(' ')[2]}: NLL below MCMC's at every budget",
        pfn[name],
        best,
        better="lower",
        paper="better likelihood",
      )
    )
  longest = max(budgets, key=lambda name: int(name.split()[1]))
  found.append(
    common.compare(
      f"prior curves: against {longest} steps a 1,000x speedup",
      quantities[longest]["prior/seconds"] / pfn["prior/seconds"],
      1000.0,
      paper=10_000.0,
    )
  )
  if "lcdb/NLL" in pfn:
    for rival in ("last value", "last value, bias removed", "power law"):
      found.append(
        common.compare(
          f"LCDB: NLL below that of {rival}",
          pfn["lcdb/NLL"],
          quantities[rival]["lcdb/NLL"],
          better="lower",
        )
      )
    found += [
      common.compare(
        "LCDB: absolute error below last value's",
        pfn["lcdb/absolute error"],
        quantities["last value"]["lcdb/absolute error"],
        better="lower",
      ),
      common.compare(
        "early stopping needs 1.5x fewer steps",
        pfn["stopping/steps ratio"],
        1.5,
        paper="2 to 6x on 45 of 53 data sets",
      ),
      common.compare(
        "early stopping: mean regret below .005",
        pfn["stopping/regret"],
        0.005,
        better="lower",
        paper="virtually no loss",
      ),
    ]
  return found


def figure(results: common.Results):
  """Extrapolated prior and real curves, NLL against time, what early stopping saves."""
  import matplotlib.pyplot as plt

  extras, quantities = results.extras, results.quantities
  context = int(next(iter(quantities["PFN"])).rpartition("=")[2])
  real = "lcdb/values" in extras
  fig, axes = plt.subplots(
    2 + real, 3, figsize=(12, 3.1 * (2 + real)), squeeze=False, layout="constrained"
  )
  for i, ax in enumerate(axes[0]):
    bands = [extras[f"prior/pfn c={context} q={q}"][i] for q in (0.1, 0.5, 0.9)]
    _plot_curve(ax, extras["prior/values"][i], context, bands)
    if i == 0:
      ax.legend(fontsize=6)
    ax.set_title("Curve of the prior", fontsize=10)
  if real:
    for i, ax in enumerate(axes[1]):
      values = extras["lcdb/values"][i]
      values = values[np.isfinite(values)]
      bands = [extras[f"lcdb/pfn q={q}"][i][: len(values)] for q in (0.1, 0.5, 0.9)]
      _plot_curve(ax, values, int(extras["lcdb/observed"][i]), bands)
      ax.set_title("Real curve (LCDB)", fontsize=10)
  panels = iter(axes[-1])
  for task in ("prior", "lcdb") if real else ("prior",):
    ax = next(panels)
    for method, row in quantities.items():
      names = [name for name in row if name.startswith(f"{task}/NLL")]
      if names and f"{task}/seconds" in row:
        nll = np.mean([common.quantity(row[name]).mean for name in names])
        ax.plot(common.quantity(row[f"{task}/seconds"]).mean, nll, "o", label=method)
    ax.set(xscale="log", xlabel="seconds a curve", ylabel="NLL of the last point (nats)")
    ax.set_title("Prior curves" if task == "prior" else "LCDB", fontsize=10)
    ax.legend(fontsize=7)
  if real:
    ax = next(panels)
    names = [name for name in extras if name.startswith("stopping/ratios")]
    ax.hist([extras[n] for n in names], label=[n.split(" ", 1)[1] for n in names])
    ax.set(xlabel="fewer steps (x)", ylabel="data sets")
    ax.set_title("Early stopping", fontsize=10)
    ax.legend(fontsize=7)
  for ax in panels:
    ax.set_axis_off()
  return fig


def _plot_curve(ax, values, observed, bands):
  steps = np.arange(1, len(values) + 1)
  low, middle, high = (band[observed:] for band in bands)
  ax.fill_between(steps[observed:], low, high, alpha=0.3, label="80% interval")
  ax.plot(steps[observed:], middle, label="median")
  ax.plot(steps[:observed], values[:observed], "k.", label="seen")
  ax.plot(steps[observed:], values[observed:], ".", color="gray", label="unseen")
  ax.set(xlabel="step", ylabel="value")


def abstract(config: Config, mesh):
  """One training step, for a dry run."""
  borders = jnp.linspace(0.0, 1.0, config.num_bars + 1)
  trainer = curve_trainer(dataclasses.replace(config, steps_per_call=1), borders, mesh)
  state = jax.eval_shape(trainer.init, jax.random.key(0))
  num_keys = config.batch_size // config.group_size
  batch = {
    "key": jax.ShapeDtypeStruct((num_keys, 2), jnp.uint32),
    "num_context": jax.ShapeDtypeStruct((num_keys,), jnp.int32),
  }
  return trainer.update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
