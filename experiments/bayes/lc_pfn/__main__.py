"""Learning-curve extrapolation: a network fitted to a prior over curves against MCMC on that prior.

Evaluated on epoch curves of small networks, by what early stopping costs at a matched regret, and
on LCDB (20 learners on 248 data sets), whose curves go over the training size.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.bayes.lc_pfn import networks, prediction, stopping
from experiments.kit import plots
from experiments.kit.prior_fitting import score_seeds, validate  # noqa: F401
from experiments.kit.sweep import add_along
from jaxlab.data.epoch_curves import EPOCH_CURVE_SETS
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "lc_pfn"
ZERO_SHOT, CALIBRATED, MATCHED = "zero-shot NLL", "calibrated NLL", "times fewer epochs"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  tables: tuple[str, ...] = EPOCH_CURVE_SETS  # Tables of the epoch curves.
  num_networks: int = 20  # Epoch curves per table.
  num_rows: int = 800  # Training rows of these networks, and validation rows.
  length: int = 30  # Epochs.
  embed_dim: int = 48  # Width of the networks that predict.
  num_layers: int = 3  # Their encoder layers.
  dropout: float = 0.0  # Their dropout.
  num_bars: int = 100  # Bars of the predictive distribution.
  batch_size: int = 32  # Curves per update.
  learning_rate: float = 1.5e-3  # Peak of the schedule.
  num_steps: int = 3500  # Updates on the paper's prior.
  size_steps: int = 1500  # Updates on the prior over training size.
  cutoffs: tuple[int, ...] = (6, 12)  # Epochs that are seen.
  num_curves: int = 64  # Epoch curves, and fresh curves of the prior, per seed.
  mcmc_steps: int = 3000  # Steps of MCMC; half is burnt.
  num_walkers: int = 50  # Walkers of its ensemble.
  num_orders: int = 20  # Random orders of the runs of a table in early stopping.
  num_sizes: int = 400  # LCDB curves per seed.


PRESETS = {
  "smoke": Config(
    tables=("iris", "wine"),
    num_networks=4,
    num_rows=64,
    embed_dim=16,
    num_layers=1,
    num_bars=16,
    num_steps=4,
    size_steps=4,
    cutoffs=(4,),
    num_curves=8,
    mcmc_steps=100,
    num_sizes=8,
  ),
  "laptop": Config(),
  "paper": Config(
    num_networks=2000,
    length=100,
    embed_dim=512,
    num_layers=12,
    dropout=0.2,
    num_bars=1000,
    batch_size=100,
    learning_rate=1e-4,
    num_steps=100_000,
    size_steps=100_000,
    cutoffs=(10, 20, 40, 80),
    num_curves=1000,
    num_walkers=100,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Trains both networks and evaluates them beside MCMC and what needs no prior."""
  sizes, results = networks.curves_by_size(), Results()
  by_epoch = networks.fit(config, context, "epochs")
  by_size = networks.fit(config, context, "sizes")

  def choose(seed, curves, number):
    rng = np.random.default_rng([context.seed_numbers[seed], number])
    return curves.rows(rng.choice(len(curves.values), number, replace=False))

  def score(seed, curves, **more):
    logits = networks.logits_of(by_epoch, seed, curves)[:, -1]
    chains = prediction.mcmc(config, context.mesh, context.seed_key(seed), curves)
    methods = {"PFN": [prediction.bars(logits, by_epoch.borders)]}
    methods |= {name: [chain] for name, chain in chains.items()} | more
    return prediction.scores(methods, curves)

  def on_prior(seed):
    draw = functools.partial(networks.prior(config, "epochs")[0], batch_size=config.num_curves)
    values = np.asarray(jax.jit(draw)(context.seed_key(seed)).y)
    curves = networks.curves_by_epoch(values, np.arange(config.num_curves))
    return score(seed, curves.seen(config.cutoffs[-1]))

  def on_epochs(seed):
    curves = networks.real_by_epoch(config, context.seed_numbers[seed])
    curves = choose(seed, curves, config.num_curves)
    seen = (curves.seen(cutoff) for cutoff in config.cutoffs)
    rows = [score(seed, part, **prediction.baselines(part)) for part in seen]
    return {m: {q: np.array([row[m][q] for row in rows]) for q in rows[0][m]} for m in rows[0]}

  def on_sizes(seed):
    curves = choose(seed, sizes, config.num_sizes)
    paper, *fitted = (
      prediction.bars(networks.logits_of(by_size, seed, curves, s)[:, -1], by_size.borders)
      for s in networks.SETTINGS
    )
    methods = {"PFN, paper's prior": [paper], "PFN, fitted prior": fitted}
    return prediction.scores(methods | prediction.baselines(curves), curves)

  def stop(seed):
    rng = np.random.default_rng(context.seed_numbers[seed])
    curves = networks.real_by_epoch(config, context.seed_numbers[seed])
    return stopping.evaluate_stopping(by_epoch, seed, curves, config.num_orders, rng)

  results.add(score_seeds(context, "prior", on_prior), task="prior")
  scores = score_seeds(context, "epochs", on_epochs)
  add_along(results, scores, {"cutoff": config.cutoffs}, task="epochs")
  results.add(score_seeds(context, "sizes", on_sizes), task="sizes")
  rows = score_seeds(context, "stopping", stop)
  results.add({m: {MATCHED: row.pop(MATCHED)} for m, row in rows.items()}, task="stopping")
  add_along(results, rows, {"confidence": stopping.CONFIDENCES}, task="stopping")
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def nll(task, method, quantity=CALIBRATED):
    return results.select(quantity, task=task, method=method, average=("cutoff",))

  def stopped(quantity, **where):
    methods = "PFN", "last value"
    return (results.select(quantity, task="stopping", method=m, **where) for m in methods)

  methods = "PFN", "MCMC", "MCMC, a quarter"
  network, chain, quarter = (nll("epochs", method, ZERO_SHOT) for method in methods)
  behind = np.subtract(*(nll("prior", method, ZERO_SHOT) for method in ("PFN", "MCMC")))
  regret = np.maximum(*stopped("regret", confidence=max(stopping.CONFIDENCES)))
  converged, fitted, matched = (
    precondition("four times the steps gain MCMC at most .15 nats", quarter - chain, at_most=0.15),
    precondition("on prior curves at most .2 nats behind MCMC", behind, at_most=0.2),
    precondition("the strictest rule of each loses at most .005", regret, at_most=stopping.REGRET),
  )
  text = "epoch curves, zero-shot: NLL of the last value below that of MCMC on the same prior"
  arguments = dict(better="lower", headline=True, requires=(converged, fitted))
  headline = compare(text, network, chain, paper="better likelihood", **arguments)
  text = "early stopping by the network saves more epochs than by last value, at the same regret"
  arguments = dict(requires=(matched,), paper="2 to 6 times fewer epochs than in full")
  stops = compare(text, *stopped(MATCHED), **arguments)
  own = {"epochs": nll("epochs", "PFN"), "sizes": nll("sizes", "PFN, fitted prior")}
  best = {t: np.minimum(nll(t, "last value"), nll(t, "power law")) for t in own}
  simple, paper = "below the better of last value and power law", nll("sizes", "PFN, paper's prior")
  pairs = {
    "epoch curves, calibrated: NLL below MCMC's": (own["epochs"], nll("epochs", "MCMC")),
    f"epoch curves, calibrated: NLL {simple}": (own["epochs"], best["epochs"]),
    f"LCDB, calibrated: NLL with the fitted prior {simple}": (own["sizes"], best["sizes"]),
    "LCDB, calibrated: NLL with the fitted prior below the paper's": (own["sizes"], paper),
  }
  return [headline, stops, *(compare(t, *pair, better="lower") for t, pair in pairs.items())]


def figure(results: Results):
  """NLL by method, and what early stopping trains and loses."""
  picture, (*panels, stops) = plots.panels(4, columns=2)
  # The baselines' own spreads are off by whole nats.
  priors = Results(r for r in results if r.method.startswith(("PFN", "MCMC")))
  calibrated = ((results, CALIBRATED, task) for task in ("epochs", "sizes"))
  for ax, (records, quantity, task) in zip(panels, [(priors, ZERO_SHOT, "epochs"), *calibrated]):
    color, title = ("cutoff", "epoch curves") if task == "epochs" else ("task", "LCDB")
    plots.intervals(ax, records, quantity, by="method", color=color, task=task)
    ax.set_title(title)
  panels[0].margins(y=0.3)
  panels[0].legend(title="epochs seen", fontsize=7, loc="upper right", ncols=2)
  for method in results.distinct("method", task="stopping"):
    both = (results.matching(quantity=q, method=method) for q in ("steps", "regret"))
    stops.plot(*([r.values.mean() for r in rows] for rows in both), ".-", label=method)
  stops.axhline(stopping.REGRET, color="gray", linestyle=":")
  stops.set(xlabel="share of the epochs trained", ylabel="regret", title="early stopping")
  stops.legend(fontsize=7)
  return picture


def abstract(config: Config, mesh):
  """One training step, for a dry run."""
  borders = np.linspace(0.0, 1.0, config.num_bars + 1, dtype=np.float32)
  return networks.trainer(config, "epochs", borders, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
