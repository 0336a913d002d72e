"""Learning-curve extrapolation: a network fitted to a prior over curves against MCMC on that prior.

Judged on fresh curves of the prior, on real learning curves (LCDB: 20 learners on 248 data sets),
and by what predictive early stopping saves and loses with its predictions.
"""

import dataclasses
import functools
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.bayes import lc_pfn_rivals as rivals
from experiments.bayes.prior_training import PriorTrainer, prior_trainer
from jaxlab import algorithms, data, losses, models, training, uncertainty

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
    length=12,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    num_bars=10,
    batch_size=16,
    group_size=8,
    num_steps=4,
    steps_per_call=2,
    save_every=4,
    num_test=4,
    contexts=(4,),
    mcmc_steps=(20,),
    num_walkers=26,
    num_starts=100,
    num_real=0,
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


class Predictor(NamedTuple):
  """A trained network as a function of partial curves."""

  module: models.PFN
  params: dict
  borders: jax.Array

  def logits(self, values: jax.Array, observed: jax.Array) -> jax.Array:
    """Bar logits `[b, T, K]` of every step, given the first `observed` values of `[b, T]`."""
    steps = jnp.arange(1, values.shape[-1] + 1, dtype=jnp.float32)
    x = jnp.broadcast_to(steps[:, None], (*values.shape, 1))
    return self.module.apply({"params": self.params}, x, values, observed)


def trainer(config: Config, borders, mesh) -> PriorTrainer:
  """The network and its training on prior curves; step t and value y come standardised."""
  module = models.PFN(
    config.num_bars,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    dropout_rate=config.dropout,
    input_shift=0.5 * (config.length + 1),
    input_scale=(config.length + 1) / np.sqrt(12.0),
    target_shift=0.5,
    target_scale=1 / np.sqrt(12.0),
  )
  return prior_trainer(
    module,
    functools.partial(
      data.sample_learning_curves, batch_size=config.group_size, length=config.length
    ),
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    group_size=config.group_size,
    num_points=config.length,
    num_features=1,
    min_context=1,
    max_context=config.length,
    learning_rate=config.learning_rate,
    steps_per_call=config.steps_per_call,
    mesh=mesh,
  )


def run(config: Config, context: common.Context) -> common.Results:
  """Trains the network and judges it beside MCMC and the simple rivals."""
  prior = jax.jit(
    functools.partial(data.sample_learning_curves, batch_size=10_000, length=config.length)
  )
  borders = uncertainty.bar_borders(prior(context.key).y, config.num_bars)
  trained = trainer(config, borders, context.mesh)
  curves = context.cached("lcdb", _real_curves, config) if config.num_real else None
  rows: dict[str, dict[str, list]] = {}
  extras: dict[str, np.ndarray] = {}
  for seed in range(context.seeds):
    params = trained.train(context, f"seed{seed}", seed, save_every=config.save_every)
    predictor = Predictor(trained.module, params, borders)
    key = jax.random.fold_in(context.seed_key(seed), 1)
    parts = [context.cached(f"prior/seed{seed}", _judge_on_prior, config, context, predictor, key)]
    if curves:
      rng = np.random.default_rng([seed, 1])
      parts.append(
        context.cached(f"real/seed{seed}", _judge_on_real, config, context, predictor, curves, key)
      )
      parts.append(
        context.cached(f"stopping/seed{seed}", _judge_stopping, config, predictor, curves, rng)
      )
    for method, row in ((m, r) for part in parts for m, r in part["rows"].items()):
      for name, value in row.items():
        rows.setdefault(method, {}).setdefault(name, []).append(float(value))
    if seed == 0:
      extras = {name: array for part in parts for name, array in part["extras"].items()}
  return common.Results(rows, extras)


# ------------------------------------------------------------------------------------ prior curves


def _judge_on_prior(config, context, predictor, key) -> dict:
  """NLL of the last step and seconds a curve, at every context and MCMC budget."""
  curve_key, chain_key = jax.random.split(key)
  sample = functools.partial(
    data.sample_learning_curves, batch_size=config.num_test, length=config.length
  )
  values = jax.jit(sample)(curve_key).y
  rows: dict[str, dict] = {"PFN": {}}
  extras = {"prior/values": np.asarray(values[:6])}
  network = jax.jit(predictor.logits)
  seconds = []
  for observed in config.contexts:
    logits, elapsed = _timed(network, values, jnp.int32(observed))
    seconds.append(elapsed / config.num_test)
    nll = losses.bar_nll(logits[:, -1], values[:, -1], predictor.borders)
    rows["PFN"][f"prior/NLL c={observed}"] = nll.mean()
    for q in (0.1, 0.5, 0.9):
      extras[f"prior/pfn c={observed} q={q}"] = np.asarray(
        uncertainty.bar_quantile(logits[:6], predictor.borders, q)
      )
  rows["PFN"]["prior/seconds"] = np.mean(seconds)
  starts = rivals.starts(config, chain_key)
  for num_steps in config.mcmc_steps:
    row, seconds = rows.setdefault(f"MCMC {num_steps}", {}), []
    for observed in config.contexts:
      sampler = rivals.mcmc_sampler(config, observed, num_steps)
      seen = np.asarray(values[:, :observed])
      keys = jax.random.split(chain_key, config.num_test)
      shares = training.shard_batch((keys, seen), context.mesh)
      samples, elapsed = _timed(sampler, *shares, starts)
      seconds.append(elapsed / config.num_test)
      log_probs = jax.jit(jax.vmap(rivals.last_step_log_prob))(samples, values)
      row[f"prior/NLL c={observed}"] = -log_probs.mean()
    row["prior/seconds"] = np.mean(seconds)
  return {"rows": rows, "extras": extras}


def _timed(fn, *arguments):
  """The result of a compiled call, and its seconds without the compilation."""
  jax.block_until_ready(fn(*arguments))
  start = time.perf_counter()
  result = jax.block_until_ready(fn(*arguments))
  return result, time.perf_counter() - start


# ------------------------------------------------------------------------------------- real curves


def _real_curves(config: Config) -> dict:
  """LCDB accuracy curves with 10 to `length` anchors; the index of an anchor is the step."""
  curves = data.load_lcdb(metric="accuracy")
  kept = curves.lengths <= config.length
  values = np.full((kept.sum(), config.length), np.nan, np.float32)
  width = min(config.length, curves.values.shape[1])
  values[:, :width] = curves.values[kept, :width]
  return {
    "values": values,
    "lengths": curves.lengths[kept],
    "dataset_ids": curves.dataset_ids[kept],
  }


def _split_data_sets(config, curves, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the test curves and of the others; no data set is in both."""
  ids = np.unique(curves["dataset_ids"])
  test_ids = rng.choice(ids, max(1, round(config.test_share * len(ids))), replace=False)
  is_test = np.isin(curves["dataset_ids"], test_ids)
  return np.flatnonzero(is_test), np.flatnonzero(~is_test)


def _judge_on_real(config, context, predictor, curves, key) -> dict:
  """NLL, error and coverage of the last point of real curves."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  test, rest = _split_data_sets(config, curves, rng)
  if len(test) > config.num_real:
    test = rng.choice(test, config.num_real, replace=False)
  values, lengths = curves["values"], curves["lengths"]
  observed = np.maximum(2, np.floor(config.observed_share * lengths)).astype(int)
  last = values[np.arange(len(values)), lengths - 1]
  rows = {}

  filled = jnp.asarray(np.nan_to_num(values[test]))
  one = jax.jit(jax.vmap(lambda row, c: predictor.logits(row[None], c)[0]))
  logits, seconds = _timed(one, filled, jnp.asarray(observed[test], jnp.int32))
  end = logits[np.arange(len(test)), lengths[test] - 1]
  quantiles = {
    q: np.asarray(uncertainty.bar_quantile(end, predictor.borders, q)) for q in (0.1, 0.5, 0.9)
  }
  rows["PFN"] = rivals.scores(
    last[test],
    nll=losses.bar_nll(end, jnp.asarray(last[test]), predictor.borders),
    median=quantiles[0.5],
    low=quantiles[0.1],
    high=quantiles[0.9],
    seconds=seconds / len(test),
  )
  rows |= rivals.gaussian_rivals(values, lengths, observed, test=test, rest=rest)
  rows |= rivals.mcmc_on_real(config, context, values[test], lengths[test], observed[test], key)
  rows = {
    method: {f"lcdb/{name}": value for name, value in row.items()} for method, row in rows.items()
  }
  shown = test[:6]
  extras = {"lcdb/values": values[shown], "lcdb/observed": observed[shown]}
  for q in (0.1, 0.5, 0.9):
    extras[f"lcdb/pfn q={q}"] = np.asarray(
      uncertainty.bar_quantile(logits[:6], predictor.borders, q)
    )
  return {"rows": rows, "extras": extras}


# ---------------------------------------------------------------------------------- early stopping


def _judge_stopping(config, predictor, curves, rng) -> dict:
  """Steps saved and accuracy lost over the learners of each test data set, in random orders."""
  test, rest = _split_data_sets(config, curves, rng)
  values, lengths, ids = curves["values"], curves["lengths"], curves["dataset_ids"]
  spread = rivals.increment_spread(values[rest], lengths[rest])
  max_runs = max(np.sum(ids[test] == i) for i in np.unique(ids[test]))
  stop = _stopping_replay(config, predictor, spread)
  ratios: dict[str, list] = {}
  regrets: dict[str, list] = {}
  for dataset in np.unique(ids[test]):
    members = test[ids[test] == dataset]
    # Runs that do not reach the data set's last anchor have no final value to compare.
    members = members[lengths[members] == lengths[members].max()]
    steps, runs = lengths[members[0]], len(members)
    padded = np.full((max_runs, config.length), -np.inf, np.float32)
    padded[:runs, :steps] = values[members, :steps]
    orders = np.stack(
      [
        np.concatenate([rng.permutation(runs), np.arange(runs, max_runs)])
        for _ in range(config.num_orders)
      ]
    )
    for method, result in stop(padded, orders, jnp.int32(steps)).items():
      used = np.minimum(np.asarray(result.steps_used), steps)[:, :runs].sum(1)
      best = np.asarray(result.best_so_far)[:, runs - 1]
      ratios.setdefault(method, []).append(runs * steps / used)
      regrets.setdefault(method, []).append(padded[:runs].max() - best)
  rows = {
    method: {
      "stopping/steps ratio": np.mean(ratios[method]),
      "stopping/regret": np.mean(regrets[method]),
    }
    for method in ratios
  }
  extras = {f"stopping/ratios {m}": np.mean(r, 1) for m, r in ratios.items()}
  return {"rows": rows, "extras": extras}


def _stopping_replay(config, predictor, spread):
  """Replays one data set's runs in many orders, with each predictor's exceedance."""
  steps = jnp.arange(config.length)

  @jax.jit
  def replay(values, orders, num_steps):
    # The predictions of a run do not depend on the order: one table serves all orders, and a run
    # finds its row by its values (equal runs have equal predictions).
    filled = jnp.where(jnp.isfinite(values), values, 0.0)
    seen = jnp.arange(config.length)
    table = jax.lax.map(lambda c: predictor.logits(filled, c), seen)  # [seen, runs, T, K]

    def network(curve, observed, best):
      run = jnp.argmax(jnp.all(values == curve, axis=-1))
      cdf = uncertainty.bar_cdf(table[observed, run], predictor.borders, best[None])[..., 0]
      return jnp.where(steps < num_steps, 1.0 - cdf, 0.0)

    def last_value(curve, observed, best):
      ahead = jnp.clip(steps + 1 - observed, 0, config.length - 1)
      z = (curve[observed - 1] + spread["bias"][ahead] - best) / spread["std"][ahead]
      return jnp.where(steps < num_steps, jax.scipy.special.ndtr(z), 0.0)

    # Steps past the end cannot exceed anything, so a run that is kept ends there by itself.
    return {
      name: jax.vmap(
        lambda order, fn=fn: algorithms.run_with_early_stopping(
          values[order], fn, confidence=config.confidence, horizon="any"
        )
      )(orders)
      for name, fn in (("PFN", network), ("last value", last_value))
    }

  return replay


# ------------------------------------------------------------------------------- claims and figure


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
  trained = trainer(dataclasses.replace(config, steps_per_call=1), borders, mesh)
  state = jax.eval_shape(trained.init, jax.random.key(0))
  num_keys = config.batch_size // config.group_size
  batch = {
    "key": jax.ShapeDtypeStruct((num_keys, 2), jnp.uint32),
    "num_context": jax.ShapeDtypeStruct((num_keys,), jnp.int32),
  }
  return trained.update, state, batch


if __name__ == "__main__":
  common.main(sys.modules[__name__])
