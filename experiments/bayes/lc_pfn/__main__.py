"""Learning-curve extrapolation: a network fitted to a prior over curves against MCMC on that prior.

Evaluated on fresh curves of the prior, on real learning curves (LCDB: 20 learners on 248 data
sets), and by what predictive early stopping saves and loses with its predictions.
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

from experiments import catalogue
from experiments.bayes.lc_pfn import prediction, stopping
from experiments.kit import plots
from experiments.kit.prior_fitting import add_along, score_seeds
from jaxlab.experiment import Claim, Context, Results, compare, precondition

PAPER = "lc_pfn"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained, for how long, and on how much it is evaluated."""

  length: int = 30  # Steps of a curve.
  embed_dim: int = 64  # Width of the network.
  num_layers: int = 3  # Encoder layers.
  dropout: float = 0.0  # Dropout of the network.
  num_bars: int = 200  # Bars of the predictive distribution.
  batch_size: int = 64  # Curves per update.
  learning_rate: float = 1e-3  # Peak of the schedule.
  num_steps: int = 8000  # Updates.
  num_test: int = 200  # Fresh curves of the prior.
  contexts: tuple[int, ...] = (6, 12)  # Steps that are seen of them.
  mcmc_steps: tuple[int, ...] = (200, 1000, 3000)  # Budgets of MCMC; half is burnt.
  num_walkers: int = 50  # Walkers of its ensemble.
  num_real: int = 400  # Real test curves per seed.
  num_orders: int = 20  # Random orders of the learners of a data set in early stopping.


PRESETS = {
  "smoke": Config(
    length=11,  # Ten real data sets have curves as short as that.
    embed_dim=16,
    num_layers=1,
    num_bars=10,
    batch_size=32,
    num_steps=4,
    # As many as a share of real curves on two devices, so that both run the same programs.
    num_test=32,
    contexts=(4,),
    mcmc_steps=(20,),
    num_real=32,
    num_walkers=26,
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
    learning_rate=1e-4,
    num_steps=100_000,
    num_test=1000,
    contexts=(10, 20, 40, 80),
    mcmc_steps=(2000,),
    num_walkers=100,
  ),
}


def run(config: Config, context: Context) -> Results:
  """Trains the network and evaluates it beside MCMC and the simple baselines."""
  network, results = prediction.fit(config, context), Results()
  real = prediction.real_curves(config)
  keys = [jax.random.fold_in(context.seed_key(seed), 1) for seed in range(context.seeds)]

  def fresh(seed, seen):
    values = prediction.prior_curves(
      jax.random.split(keys[seed])[0], config.num_test, config.length
    )
    return prediction.Curves(
      np.asarray(values), *(np.full(config.num_test, n) for n in (config.length, seen))
    )

  def on_prior(seed):
    chain_key = jax.random.split(keys[seed])[1]
    chain_keys = jax.random.split(chain_key, config.num_test)
    arrays = chain_keys, prediction.starts(chain_key, config.length)
    nll = {"PFN": []} | {f"{num_steps}": [] for num_steps in config.mcmc_steps}
    for seen in config.contexts:
      curves = fresh(seed, seen)
      nll["PFN"].append(prediction.predict(network, seed, curves)[0].mean())
      for num_steps in config.mcmc_steps:
        chain = prediction.predict_by_mcmc(config, context.mesh, num_steps, curves, *arrays)
        nll[f"{num_steps}"].append(chain[0].mean())
    return {name: {"NLL": np.array(values)} for name, values in nll.items()}

  def split(seed):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(keys[seed])))
    test, rest = prediction.split_data_sets(real.dataset_ids, rng)
    if len(test) > config.num_real:
      test = rng.choice(test, config.num_real, replace=False)
    return real.rows(test), real.rows(rest)

  def on_real(seed):
    test, rest = split(seed)
    nll, quantiles = prediction.predict(network, seed, test)
    end = quantiles[:, np.arange(len(test.lengths)), test.lengths - 1]
    rows = {"PFN": prediction.scores(test.last, nll, *end)}
    rows |= prediction.gaussian_baselines(test, rest)
    return rows | {"MCMC": prediction.score_mcmc(config, context.mesh, test, keys[seed])}

  def stop(seed):
    logits_fn = functools.partial(prediction.logits_of, network.module, network.params[seed])
    rng = np.random.default_rng([seed, 1])
    return stopping.evaluate_stopping(config, logits_fn, network.borders, real, rng)

  chains = score_seeds(context, "prior", on_prior)
  add_along(results, {"PFN": chains["PFN"]}, "context", config.contexts, task="prior")
  for steps in config.mcmc_steps:
    row = {"MCMC": chains[f"{steps}"]}
    add_along(results, row, "context", config.contexts, task="prior", steps=steps)
  scores = score_seeds(context, "lcdb/scores", on_real)
  chain = {"MCMC": scores.pop("MCMC")}
  results.add(scores, task="lcdb")
  results.add(chain, task="lcdb", steps=max(config.mcmc_steps))
  results.add(score_seeds(context, "stopping", stop), task="stopping")
  for group, curves in {"the prior": fresh(0, config.contexts[0]), "LCDB": split(0)[0]}.items():
    quantiles = prediction.predict(network, 0, curves)[1][:, :3]
    shown = {"values": curves.values[:3], "observed": curves.observed[:3], "quantiles": quantiles}
    results.extras |= {f"{group}/{name}": array for name, array in shown.items()}
  return results


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""

  def select(quantity, task, method, **where):
    return results.select(quantity, task=task, method=method, **where)

  average = dict(average=("context",))
  network = select("NLL", "prior", "PFN", **average)
  budgets = min(config.mcmc_steps), max(config.mcmc_steps)
  shortest, longest = (select("NLL", "prior", "MCMC", steps=n, **average) for n in budgets)
  text = "the longest chain is no worse than the shortest"
  converged = precondition(text, longest - shortest, at_most=0.0)
  statements = [
    compare(
      "prior curves: NLL of the last point below the longest MCMC's, a mean over contexts",
      network,
      longest,
      better="lower",
      headline=True,
      requires=(converged,),
      paper="better likelihood, more than 10,000 times faster",
    )
  ]
  for quantity, baseline in (
    ("NLL", "last value"),
    ("NLL", "power law"),
    ("absolute error", "last value"),
  ):
    text = f"LCDB: {quantity} of the last point below that of {baseline}"
    pair = (select(quantity, "lcdb", method) for method in ("PFN", baseline))
    statements.append(compare(text, *pair, better="lower"))
  fewer, regret = (select(q, "stopping", "PFN") for q in ("times fewer steps", "regret"))
  text, paper = "early stopping needs 1.5 times fewer steps", "2 to 6 times on 45 of 53 data sets"
  statements.append(compare(text, fewer, 1.5, paper=paper))
  text, paper = "early stopping loses less than .005 of accuracy", "virtually no loss"
  return [*statements, compare(text, regret, 0.005, better="lower", paper=paper)]


def figure(results: Results):
  """Extrapolated prior and real curves, and NLL by MCMC's budget."""
  groups = list(dict.fromkeys(name.partition("/")[0] for name in results.extras))
  contexts = results.distinct("context")
  picture, axes = plots.panels(3 * len(groups) + len(contexts), columns=3)
  panels = iter(axes)
  for group in groups:
    names = "values", "observed", "quantiles"
    values, observed, quantiles = (results.extras[f"{group}/{name}"] for name in names)
    for row, seen, bands in zip(values, observed, np.moveaxis(quantiles, 1, 0)):
      ax, steps = next(panels), np.arange(1, np.isfinite(row).sum() + 1)
      unseen = slice(seen, len(steps))
      plots.prediction(ax, steps[unseen], *bands[:, unseen], color="tab:blue", label="PFN, 80%")
      ax.plot(steps[:seen], row[:seen], "k.", label="seen")
      ax.plot(steps[unseen], row[unseen], ".", color="gray", label="unseen")
      ax.set(xlabel="step", ylabel="value", title=f"a curve of {group}")
  for seen, ax in zip(contexts, panels):
    where = dict(task="prior", context=seen)
    plots.curves(ax, results, "NLL", x="steps", method="MCMC", **where)
    network = results.select("NLL", method="PFN", **where).mean()
    ax.axhline(network, color="tab:orange", label="PFN")
    ax.set(xscale="log", xlabel="steps of MCMC", title=f"prior, {seen} steps seen")
  for ax in (axes[0], *axes[3 * len(groups) :]):
    ax.legend(fontsize=7)
  return picture


def abstract(config: Config, mesh):
  """One training step, for a dry run."""
  borders = np.linspace(0.0, 1.0, config.num_bars + 1, dtype=np.float32)
  return prediction.trainer(config, borders, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
