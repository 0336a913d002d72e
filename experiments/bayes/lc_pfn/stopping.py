"""Predictive early stopping of the learners of real data sets, replayed in many orders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes.lc_pfn.prediction import Curves, split_data_sets
from jaxlab import algorithms, uncertainty

CONFIDENCE = 0.95


def evaluate_stopping(config, logits_fn, borders, curves: Curves, rng) -> dict:
  """What early stopping saves and loses over the learners of each test data set.

  Args:
    config: of the experiment.
    logits_fn: `(values[b, T], observed) -> [b, T, K]`, traceable.
    borders: of the bars.
    curves: real curves.
    rng: draws the test data sets and the orders of the learners.

  Returns:
    method -> {"times fewer steps", "regret"}, means over orders and data sets.
  """
  test, rest = (curves.rows(rows) for rows in split_data_sets(curves.dataset_ids, rng))
  datasets, sizes = np.unique(test.dataset_ids, return_counts=True)
  max_runs = sizes.max()
  stop = _replay(logits_fn, borders, increment_spread(rest.values, rest.lengths))
  rows: dict[str, list] = {}
  for dataset in datasets:
    runs = test.rows(test.dataset_ids == dataset)
    # Runs that do not reach the data set's last anchor have no final value to compare.
    runs = runs.rows(runs.lengths == runs.lengths.max())
    steps, count = runs.lengths[0], len(runs.lengths)
    padded = np.full((max_runs, config.length), -np.inf, np.float32)
    padded[:count, :steps] = runs.values[:, :steps]
    orders = [
      np.concatenate([rng.permutation(count), np.arange(count, max_runs)])
      for _ in range(config.num_orders)
    ]
    for method, result in jax.device_get(stop(padded, np.stack(orders), np.int32(steps))).items():
      used = np.minimum(result.steps_used, steps)[:, :count].sum(1)
      regret = padded[:count].max() - result.best_so_far[:, count - 1]
      rows.setdefault(method, []).append((np.mean(count * steps / used), np.mean(regret)))
  names = "times fewer steps", "regret"
  return {method: dict(zip(names, np.mean(row, axis=0))) for method, row in rows.items()}


def _replay(logits_fn, borders, spread):
  """Replays one data set's runs in many orders, with each predictor's exceedance."""
  bias, std = spread

  @jax.jit
  def replay(values, orders, num_steps):
    # The predictions of a run do not depend on the order: one table serves all orders, and a run
    # finds its row by its values (equal runs have equal predictions).
    steps = jnp.arange(values.shape[1])
    filled = jnp.where(jnp.isfinite(values), values, 0.0)
    table = jax.lax.map(lambda c: logits_fn(filled, c), steps)  # [seen, runs, T, K]

    def network(curve, observed, best):
      run = jnp.argmax(jnp.all(values == curve, axis=-1))
      return 1.0 - uncertainty.bar_cdf(table[observed, run], borders, best[None])[..., 0]

    def last_value(curve, observed, best):
      ahead = jnp.clip(steps + 1 - observed, 0, len(steps) - 1)
      return jax.scipy.special.ndtr((curve[observed - 1] + bias[ahead] - best) / std[ahead])

    def run(exceedance, order):
      # Steps past the end cannot exceed anything, so a run that is kept ends there by itself.
      def within(*args):
        return jnp.where(steps < num_steps, exceedance(*args), 0.0)

      return algorithms.run_with_early_stopping(
        values[order], within, confidence=CONFIDENCE, horizon="any"
      )

    methods = {"PFN": network, "last value": last_value}
    return {name: jax.vmap(functools.partial(run, fn))(orders) for name, fn in methods.items()}

  return replay


def increment_spread(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and std of y[t + d] - y[t] over real curves, by distance d; what last value assumes."""
  length = values.shape[1]
  bias, std = np.zeros(length, np.float32), np.ones(length, np.float32)
  for ahead in range(1, length):
    steps = values[:, ahead:] - values[:, :-ahead]
    inside = np.arange(length - ahead)[None] + ahead < lengths[:, None]
    if inside.sum() > 1:
      bias[ahead], std[ahead] = steps[inside].mean(), steps[inside].std() + 1e-6
  return jnp.asarray(bias), jnp.asarray(std)
