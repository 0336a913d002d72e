"""Learning-curve extrapolation: a network fitted to a prior over curves against MCMC on that prior.

Evaluated on fresh curves of the prior, on real learning curves (LCDB: 20 learners on 248 data
sets), and by what predictive early stopping saves and loses with its predictions.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue
from experiments.bayes.lc_pfn import prior, real
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
  num_heads: int = 4  # Attention heads.
  dropout: float = 0.0  # Dropout of the network.
  num_bars: int = 200  # Bars of the predictive distribution.
  batch_size: int = 64  # Curves an update.
  group_size: int = 16  # Curves that one key draws together.
  learning_rate: float = 1e-3  # Peak of the schedule.
  num_steps: int = 8000  # Updates.
  steps_per_call: int = 100  # Updates in one compiled program.
  num_test: int = 200  # Fresh curves of the prior.
  contexts: tuple[int, ...] = (6, 12)  # Steps that are seen of them.
  mcmc_steps: tuple[int, ...] = (200, 1000, 3000)  # Budgets of MCMC; half is burnt.
  num_walkers: int = 50  # Walkers of its ensemble.
  num_starts: int = 5000  # Prior draws that its start is resampled from.
  num_real: int = 400  # Real test curves per seed; 0 leaves out the real half.
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


def run(config: Config, context: Context) -> Results:
  """Trains the network and evaluates it beside MCMC and the simple baselines."""
  borders = prior.curve_borders(config, context.key)
  trainer = prior.curve_trainer(config, borders, context.mesh)
  params = trainer.train(context, "PFN")
  predictors = [prior.Predictor(trainer.module, p, borders) for p in params]
  keys = [jax.random.fold_in(context.seed_key(seed), 1) for seed in range(context.seeds)]
  results = Results()

  def on_prior(seed):
    return prior.evaluate_on_prior(config, context, predictors[seed], keys[seed])

  scores = score_seeds(context, "prior", on_prior)
  chains = scores.pop("MCMC")["NLL"]
  add_along(results, scores, "context", config.contexts, task="prior")
  for j, num_steps in enumerate(config.mcmc_steps):
    of_budget = {"MCMC": {"NLL": chains[:, :, j]}}
    add_along(results, of_budget, "context", config.contexts, task="prior", steps=num_steps)
  shown = prior.test_curves(config, jax.random.split(keys[0])[0])[:3]
  examples = {"prior": prior.examples(predictors[0], shown, np.full(3, config.contexts[0]))}
  if config.num_real:
    curves = real.real_curves(config)

    def on_real(seed):
      return real.evaluate_on_real(config, context, predictors[seed], curves, keys[seed])

    def stopping(seed):
      rng = np.random.default_rng([seed, 1])
      return real.evaluate_stopping(config, predictors[seed], curves, rng)

    scores = score_seeds(context, "lcdb/scores", on_real)
    chain = {"MCMC": scores.pop("MCMC")}
    results.add(scores, task="lcdb")
    results.add(chain, task="lcdb", steps=max(config.mcmc_steps))
    scores = score_seeds(context, "stopping", stopping)
    over_sets = {m: {name: v.mean(1) for name, v in row.items()} for m, row in scores.items()}
    results.add(over_sets, task="stopping")
    rows = real.test_curves(config, curves, keys[0])[0][:3]
    examples["LCDB"] = prior.examples(predictors[0], curves.values[rows], curves.observed[rows])
  results.extras = {
    f"{g}/{name}": array for g, row in examples.items() for name, array in row.items()
  }
  return results


# ------------------------------------------------------------------------------- claims and figure


def claims(config: Config, results: Results) -> list[Claim]:
  """The paper's statements."""
  over_contexts = dict(task="prior", average=("context",))
  network = results.select("NLL", method="PFN", **over_contexts)
  shortest, longest = (
    results.select("NLL", method="MCMC", steps=steps, **over_contexts)
    for steps in (min(config.mcmc_steps), max(config.mcmc_steps))
  )
  statements = [
    compare(
      "prior curves: NLL of the last point below the longest MCMC's, a mean over contexts",
      network,
      longest,
      better="lower",
      headline=True,
      requires=(
        precondition(
          "the longest chain is no worse than the shortest", longest - shortest, at_most=0.0
        ),
      ),
      paper="better likelihood, more than 10,000 times faster",
    )
  ]
  if not config.num_real:
    return statements
  for quantity, baseline in (
    ("NLL", "last value"),
    ("NLL", "power law"),
    ("absolute error", "last value"),
  ):
    statements.append(
      compare(
        f"LCDB: {quantity} of the last point below that of {baseline}",
        results.select(quantity, task="lcdb", method="PFN"),
        results.select(quantity, task="lcdb", method=baseline),
        better="lower",
      )
    )
  return statements + [
    compare(
      "early stopping needs 1.5 times fewer steps",
      results.select("times fewer steps", task="stopping", method="PFN"),
      1.5,
      paper="2 to 6 times on 45 of 53 data sets",
    ),
    compare(
      "early stopping loses less than .005 of accuracy",
      results.select("regret", task="stopping", method="PFN"),
      0.005,
      better="lower",
      paper="virtually no loss",
    ),
  ]


def figure(results: Results):
  """Extrapolated prior and real curves, NLL by MCMC's budget, real curves, early stopping."""
  groups = list(dict.fromkeys(name.partition("/")[0] for name in results.extras))
  contexts = results.distinct("context")
  tasks = {"lcdb": "NLL", "stopping": "times fewer steps"}
  tasks = {task: tasks[task] for task in results.distinct("task") if task in tasks}
  figure, axes = plots.panels(3 * len(groups) + len(contexts) + len(tasks), columns=3)
  panels = iter(axes)
  for group in groups:
    values, observed, quantiles = (
      results.extras[f"{group}/{name}"] for name in ("values", "observed", "quantiles")
    )
    for i in range(3):
      ax = next(panels)
      _draw_curve(ax, values[i], observed[i], quantiles[:, i])
      ax.set_title(f"curve of {'the prior' if group == 'prior' else group}")
  if groups:
    axes[0].legend(fontsize=7)
  for observed in contexts:
    ax = next(panels)
    where = dict(task="prior", context=observed)
    plots.curves(ax, results, "NLL", x="steps", method="MCMC", **where)
    network = results.select("NLL", method="PFN", **where).mean()
    ax.axhline(network, color="tab:orange", label="PFN")
    ax.set(xscale="log", xlabel="steps of MCMC", title=f"prior, {observed} steps seen")
    ax.legend(fontsize=7)
  for task, quantity in tasks.items():
    ax = next(panels)
    plots.intervals(ax, results, quantity, by="method", color="task", task=task)
    ax.set_title({"lcdb": "LCDB", "stopping": "early stopping"}[task])
  return figure


def _draw_curve(ax, values, observed: int, quantiles) -> None:
  length = np.isfinite(values).sum()
  steps, values = np.arange(1, length + 1), values[:length]
  low, median, high = quantiles[:, observed:length]
  ax.fill_between(steps[observed:], low, high, alpha=0.3, label="80% interval")
  ax.plot(steps[observed:], median, label="median")
  ax.plot(steps[:observed], values[:observed], "k.", label="seen")
  ax.plot(steps[observed:], values[observed:], ".", color="gray", label="unseen")
  ax.set(xlabel="step", ylabel="value")


def abstract(config: Config, mesh):
  """One training step, for a dry run."""
  borders = jnp.linspace(0.0, 1.0, config.num_bars + 1)
  return prior.curve_trainer(config, borders, mesh).abstract()


if __name__ == "__main__":
  catalogue.run(sys.modules[__name__])
