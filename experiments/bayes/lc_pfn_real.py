"""The learning-curve network on real curves: the last point of each, and early stopping."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes import lc_pfn_rivals as rivals
from jaxlab import algorithms, data, losses, uncertainty


def real_curves(config) -> dict:
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


def judge_on_real(config, context, predictor, curves, key) -> dict:
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
  logits, seconds = rivals.timed(one, filled, jnp.asarray(observed[test], jnp.int32))
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


def _split_data_sets(config, curves, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the test curves and of the others; no data set is in both."""
  ids = np.unique(curves["dataset_ids"])
  test_ids = rng.choice(ids, max(1, round(config.test_share * len(ids))), replace=False)
  is_test = np.isin(curves["dataset_ids"], test_ids)
  return np.flatnonzero(is_test), np.flatnonzero(~is_test)


# ---------------------------------------------------------------------------------- early stopping


def judge_stopping(config, predictor, curves, rng) -> dict:
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
