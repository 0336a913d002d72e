"""Predictive early stopping of the networks of one table, replayed in many orders."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.lc_pfn.networks import Curves, logits_of
from experiments.kit.prior_fitting import Fitted
from jaxlab import algorithms

CONFIDENCES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
REGRET = 0.005  # At which predictors are compared.


def evaluate_stopping(network: Fitted, seed: int, curves: Curves, num_orders: int, rng) -> dict:
  """What early stopping costs and loses, in random orders of the runs of every table.

  The spread of the baseline is that of the other half of the tables.

  Returns:
    method -> "steps" (share of all epochs that is trained) and "regret", `[confidences]`, means
    over tables and orders, and "times fewer epochs" than in full at the regret `REGRET`.
  """
  halves = np.array_split(rng.permutation(np.unique(curves.groups)), 2)
  levels, rows = np.asarray(network.borders)[1:], {"PFN": [], "last value": []}
  for tested, others in (halves, halves[::-1]):
    known = curves.values[np.isin(curves.groups, others)]
    for table in tested:
      runs = curves.rows(curves.groups == table)
      orders = np.stack([rng.permutation(len(runs.values)) for _ in range(num_orders)])
      own = network_chances(network, seed, runs)
      for row, chances in zip(rows.values(), (own, last_value_chances(runs.values, known, levels))):
        row.append(_replay(runs.values, chances, levels, orders))
  return {method: _summary(*np.mean(row, axis=0)) for method, row in rows.items()}


def _summary(steps, regret) -> dict[str, np.ndarray]:
  # Regret falls with confidence; noise in it must not make the inverse ambiguous.
  rising = np.maximum.accumulate(regret[::-1])
  matched = np.exp(-np.interp(REGRET, rising, np.log(steps[::-1])))
  return {"steps": steps, "regret": regret, "times fewer epochs": matched}


@jax.jit
def _replay(values, chances, levels, orders) -> jax.Array:
  """Share of steps and regret, `[2, confidences]`, of runs `[r, T]` in orders `[m, r]`."""

  def exceedance(curve, observed, best):
    # The predictions of a run do not depend on the order: a run finds its row by its values.
    run = jnp.argmax(jnp.all(values == curve, axis=-1))
    return jnp.broadcast_to(jnp.interp(best, levels, chances[observed - 1, run]), curve.shape)

  def one(confidence, order):
    result = algorithms.run_with_early_stopping(
      values[order], exceedance, confidence=confidence, horizon="any"
    )
    return result.total_steps / values.size, values.max() - result.best_so_far[-1]

  by_order = jax.vmap(one, (None, 0))
  steps, regret = jax.lax.map(lambda c: by_order(c, orders), jnp.array(CONFIDENCES))
  return jnp.stack([steps.mean(1), regret.mean(1)])


def network_chances(network: Fitted, seed: int, runs: Curves) -> np.ndarray:
  """Largest probability that a later epoch exceeds a level, `[seen, r, levels]`, seen = 1, 2, ...

  The levels are the upper borders of the bars, between which the probability is linear.
  """
  count, length = runs.values.shape
  observed = np.repeat(np.arange(1, length), count)
  repeated = runs.rows(np.tile(np.arange(count), length - 1))._replace(observed=observed)
  chances = _later(logits_of(network, seed, repeated), observed)
  return np.asarray(chances).reshape(length - 1, count, -1)


@jax.jit
def _later(logits, observed):
  above = 1.0 - jnp.cumsum(jax.nn.softmax(logits), axis=-1)
  is_later = jnp.arange(logits.shape[1]) >= observed[:, None]
  return jnp.max(jnp.where(is_later[..., None], above, 0.0), axis=1)


def last_value_chances(values: np.ndarray, known: np.ndarray, levels) -> np.ndarray:
  """The same if values d epochs apart differ by a Gaussian, as those of known curves do."""
  length = values.shape[1]
  steps = [known[:, d:] - known[:, : length - d] for d in range(1, length)]
  later = np.stack([values[..., None] + step.mean() for step in steps])
  stds = np.array([step.std() + 1e-6 for step in steps])[:, None, None, None]
  above = stats.norm.sf(levels, later, stds)  # [d, r, seen, levels]
  return np.stack([above[: length - seen, :, seen - 1].max(0) for seen in range(1, length)])
