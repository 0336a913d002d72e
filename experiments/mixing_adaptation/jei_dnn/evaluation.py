"""What early exits are worth: accuracy for cost, confidence against accuracy, prediction sets."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mixing_adaptation.jei_dnn.exits import MAIN, METHODS, UNWEIGHTED
from jaxlab import losses, metrics, uncertainty

THRESHOLDS, ORACLE = "thresholds, more training", "oracle exit"
AREA, SIZE = "accuracy over common costs", "labels per prediction set"
BIAS = "|confidence - accuracy| at exits 0 and 1"
COSTS = tuple(i / 20 for i in range(2, 21))  # Where the curves of accuracy are recorded.
_ALPHA = 0.05  # Miscoverage of the prediction sets.
_MIN_EXITED = 20  # With fewer samples an exit is not evaluated.


def evaluate_seed(outputs, labels, costs, key, own) -> dict:
  """Method -> quantity -> a number, or values at every cost ("accuracy") or exit, of one seed.

  A setting of a method is a pair for validation and test rows: (probabilities, exits taken).
  `outputs` is `train_exits`, compiled; `labels` are those of training, validation and test rows.
  """
  warm, joint = jax.device_get(outputs(key, own, labels, costs))
  labels, num_weights = labels[1:], len(jax.tree.leaves(joint)[0][0])
  curves = {
    method: [jax.tree.map(lambda x, at=(i, j): x[at], joint) for j in range(num_weights)]
    for i, method in enumerate(METHODS)
  }
  first, *_ = curves[UNWEIGHTED]  # Unweighted classifiers depend on no gate, hence on no cost.
  for suffix, ((held_out, _), (test, _)) in (("", warm), (", more training", first)):
    for rule, sweep in (("thresholds", one_threshold), ("thresholds by share", by_share)):
      curves[rule + suffix] = [
        [(probs, _leave(probs, thresholds)) for probs in (held_out, test)]
        for thresholds in sweep(held_out[:, :-1].max(-1))
      ]
  curves[ORACLE] = [
    [(probs, oracle(probs, own, costs, weight)) for (probs, _), own in zip(warm, labels)]
    for weight in np.geomspace(1e-3, 10.0, 30)
  ]
  measured = {
    method: jax.tree.map(
      lambda *values: np.array(values, np.float64),
      *jax.device_get([_measure(setting, labels, costs) for setting in settings]),
    )
    for method, settings in curves.items()
  }
  return {method: _summary(method, measured) for method in measured}


def one_threshold(confidence):
  """The same threshold for every gate, from where all samples leave to where none does."""
  for threshold in (*np.quantile(confidence, np.linspace(0.0, 1.0, 60)), 2.0):
    yield np.full(confidence.shape[1], threshold)


def by_share(confidence):
  """Thresholds that let shares q^l of the validation samples leave at exit l."""
  num, num_gates = confidence.shape
  for ratio in np.geomspace(0.05, 20.0, 40):
    shares = ratio ** np.arange(num_gates + 1.0)
    shares /= shares.sum()
    stay, thresholds = np.ones(num, bool), []
    for gate in range(num_gates):
      ordered = np.sort(confidence[stay, gate])[::-1]
      count = min(int(round(shares[gate] * num)), len(ordered))
      thresholds.append(ordered[count - 1] if count else 2.0)
      stay &= confidence[:, gate] < thresholds[-1]
    yield np.array(thresholds)


@jax.jit
def oracle(probs, labels, costs, cost_weight):
  """Exits chosen knowing the labels: a bound on what any gate can do for these classifiers."""
  cross_entropies = -jnp.log(jnp.maximum(_true(probs, labels), 1e-12))
  return losses.optimal_exit(cross_entropies, costs, cost_weight=cost_weight)


@jax.jit
def _leave(probs, thresholds):
  return metrics.threshold_exits(probs[:, :-1].max(-1), thresholds=thresholds)


def _true(probs, labels):
  """Probability of the true label at each exit."""
  return jnp.take_along_axis(probs, labels[:, None, None], axis=-1)[..., 0]


@jax.jit
def _measure(setting, labels, costs) -> dict:
  """Cost, accuracy, confidence and prediction sets of one setting of a method."""
  (held_out, held_out_levels), (probs, levels) = setting
  correct = probs.argmax(-1) == labels[1][:, None]
  cost, accuracy, share = metrics.cost_accuracy(levels, correct, costs)
  probs, correct = (metrics.exited_values(values, levels) for values in (probs, correct))
  left = jax.nn.one_hot(levels, len(costs))
  count, bias = jnp.sum(left, axis=0), (probs.max(-1) - correct) @ left
  bias = jnp.where(count < _MIN_EXITED, jnp.nan, bias / jnp.maximum(count, 1))
  scores = 1 - _true(held_out, labels[0])
  thresholds = uncertainty.exit_conformal_thresholds(scores, held_out_levels, alpha=_ALPHA)
  sets = uncertainty.prediction_sets(1 - probs, thresholds[levels, None])
  coverage, size, _ = uncertainty.set_statistics(sets, labels[1])
  return {
    "mean cost": cost,
    "accuracy": accuracy,
    "share of samples": share,
    "confidence minus accuracy": bias,
    BIAS: jnp.abs(bias[:2]),
    "coverage": coverage,
    "coverage error": jnp.abs(coverage - (1 - _ALPHA)),
    SIZE: size,
  }


def _summary(method: str, measured) -> dict:
  """Accuracy over the costs that all methods reach, and the rest where they cost the same."""
  costs = {name: rows["mean cost"] for name, rows in measured.items()}
  order = np.argsort(costs[method], kind="stable")
  curve = costs[method][order], measured[method]["accuracy"][order]
  grid = np.linspace(max(map(np.min, costs.values())), min(map(np.max, costs.values())), 50)
  area = jax.jit(metrics.area_under_cost_curve)(grid, np.interp(grid, *curve))
  accuracy = np.interp(COSTS, *curve, left=np.nan, right=np.nan)
  summary = {AREA: float(area), "accuracy": accuracy}
  if method == ORACLE:
    return summary
  near = np.abs(costs[method] - costs[MAIN][:, None]).argmin(1)
  for name in measured[method].keys() - {"accuracy"}:
    values = np.ma.masked_invalid(measured[method][name][near])
    summary[name] = np.ma.filled(values.mean(None if name == BIAS else 0), np.nan)
  return summary
