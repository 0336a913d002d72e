"""The learning-curve network on real curves: the last point of each, and early stopping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes.lc_pfn import baselines
from experiments.bayes.lc_pfn.prior import Predictor
from jaxlab import algorithms, data, uncertainty
from jaxlab.experiment import Context


class Curves(NamedTuple):
  """Real curves `[n, T]`, NaN behind the end of each; lengths, data sets and seen steps `[n]`."""

  values: np.ndarray
  lengths: np.ndarray
  dataset_ids: np.ndarray
  observed: np.ndarray


def real_curves(config) -> Curves:
  """LCDB accuracy curves with 10 to `length` anchors; the index of an anchor is the step."""
  curves = data.load_lcdb(metric="accuracy")
  kept = curves.lengths <= config.length
  values = np.full((kept.sum(), config.length), np.nan, np.float32)
  width = min(config.length, curves.values.shape[1])
  values[:, :width] = curves.values[kept, :width]
  lengths = curves.lengths[kept]
  observed = np.maximum(2, np.floor(config.observed_share * lengths)).astype(int)
  return Curves(values, lengths, curves.dataset_ids[kept], observed)


def evaluate_on_real(config, context: Context, predictor: Predictor, curves: Curves, key) -> dict:
  """NLL, error and coverage of the last point of real curves."""
  test, rest = test_curves(config, curves, key)
  values, lengths, _, observed = curves
  last = values[test, lengths[test] - 1]
  logits = np.asarray(predictor.logits_of_each(values[test], observed[test]))
  end = logits[np.arange(len(test)), lengths[test] - 1]
  low, median, high = predictor.quantiles(end)
  nll = predictor.nll(end, last)
  rows = {"PFN": baselines.scores(last, nll=nll, low=low, median=median, high=high)}
  rows |= baselines.gaussian_baselines(values, lengths, observed, test=test, rest=rest)
  rows["MCMC"] = baselines.mcmc_on_real(
    config, context.mesh, values[test], lengths[test], observed[test], key
  )
  return rows


def test_curves(config, curves: Curves, key) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the curves to test, at most `num_real`, and of those of the other data sets."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  test, rest = split_data_sets(config, curves.dataset_ids, rng)
  if len(test) > config.num_real:
    test = rng.choice(test, config.num_real, replace=False)
  return test, rest


def split_data_sets(config, dataset_ids: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the test curves and of the others; no data set is in both."""
  ids = np.unique(dataset_ids)
  test_ids = rng.choice(ids, max(1, round(config.test_share * len(ids))), replace=False)
  is_test = np.isin(dataset_ids, test_ids)
  return np.flatnonzero(is_test), np.flatnonzero(~is_test)


# ---------------------------------------------------------------------------------- early stopping


def evaluate_stopping(config, predictor: Predictor, curves: Curves, rng) -> dict:
  """What early stopping saves and loses over the learners of each test data set.

  Returns:
    method -> {"times fewer steps", "regret"}, means over random orders, `[data sets]`.
  """
  test, rest = split_data_sets(config, curves.dataset_ids, rng)
  values, lengths, ids, _ = curves
  spread = baselines.increment_spread(values[rest], lengths[rest])
  max_runs = max(np.sum(ids[test] == i) for i in np.unique(ids[test]))
  stop = _stopping_replay(config, predictor, spread)
  rows: dict[str, dict[str, list]] = {}
  for dataset in np.unique(ids[test]):
    members = test[ids[test] == dataset]
    # Runs that do not reach the data set's last anchor have no final value to compare.
    members = members[lengths[members] == lengths[members].max()]
    steps, runs = lengths[members[0]], len(members)
    padded = np.full((max_runs, config.length), -np.inf, np.float32)
    padded[:runs, :steps] = values[members, :steps]
    orders = [
      np.concatenate([rng.permutation(runs), np.arange(runs, max_runs)])
      for _ in range(config.num_orders)
    ]
    for method, result in stop(padded, np.stack(orders), jnp.int32(steps)).items():
      used = np.minimum(np.asarray(result.steps_used), steps)[:, :runs].sum(1)
      best = np.asarray(result.best_so_far)[:, runs - 1]
      row = rows.setdefault(method, {"times fewer steps": [], "regret": []})
      row["times fewer steps"].append(np.mean(runs * steps / used))
      row["regret"].append(np.mean(padded[:runs].max() - best))
  return rows


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
