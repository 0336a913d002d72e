"""What early exits are worth: accuracy for cost, confidence against accuracy, prediction sets."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.train import agrees
from experiments.mixing_adaptation.jei_dnn.exits import METHODS, UNWEIGHTED
from jaxlab import losses, metrics, uncertainty

THRESHOLDS, BY_SHARE, ORACLE = "one threshold", "thresholds by share", "oracle exit"
AREA, SIZE = "accuracy over all costs", "labels per prediction set"
BIAS = "|confidence - accuracy| at exits 0 and 1"
COSTS = tuple(i / 20 for i in range(4, 20))  # Where the curves of accuracy are recorded.
_NEAR = (0.4, 0.5, 0.6, 0.7)  # Costs at which what is not accuracy is compared.
_ALPHA = 0.05  # Miscoverage of the prediction sets.
_MIN_EXITED = 20  # With fewer samples an exit is not evaluated.


def evaluate_seed(outputs, costs, settings, key, own, labels) -> dict:
  """Method -> quantity -> values of one seed, `[settings, ...]`.

  `outputs` is `train_exits`, compiled; `labels` are those of all four splits.
  """
  measured = []
  for setting in settings:
    warm, joint = jax.device_get(outputs(key, own, labels, costs, setting))
    num_points = joint[0][0].shape[1]  # Every rule has as many as there are weights of the cost.
    curves = {
      method: [jax.tree.map(lambda x, at=(i, j): x[at], joint) for j in range(num_points)]
      for i, method in enumerate(METHODS)
    }
    first, *_ = curves[UNWEIGHTED]  # Unweighted classifiers depend on no gate, hence on no cost.
    for suffix, ((held_out, _), (test, _)) in ((", warm-up alone", warm), ("", first)):
      for rule, sweep in ((THRESHOLDS, one_threshold), (BY_SHARE, by_share)):
        curves[rule + suffix] = [
          [(probs, _leave(probs, thresholds)) for probs in (held_out, test)]
          for thresholds in sweep(held_out[:, :-1].max(-1), num_points)
        ]
    curves[ORACLE] = [
      [(probs, oracle(probs, own, costs, weight)) for (probs, _), own in zip(warm, labels[2:])]
      for weight in np.geomspace(1e-3, 10.0, num_points)
    ]
    ends = [_ends(probs, own) for (probs, _), own in zip(warm, labels[2:])]
    measured.append(
      {method: _summary(curve, ends, labels[2:], costs) for method, curve in curves.items()}
    )
  return jax.tree.map(lambda *values: np.stack(values), *measured)


def one_threshold(confidence, num_points: int):
  """The same threshold for every gate, from where all samples leave to where none does."""
  for threshold in (*np.quantile(confidence, np.linspace(0.0, 1.0, num_points - 1)), 2.0):
    yield np.full(confidence.shape[1], threshold)


def by_share(confidence, num_points: int):
  """Thresholds that let shares q^l of the validation samples leave at exit l, for several q."""
  num, num_gates = confidence.shape
  for ratio in np.geomspace(0.05, 20.0, num_points):
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


def _ends(probs, labels):
  """Accuracy where all samples leave at the first exit, and where all leave at the last."""
  ends = probs[:, [0, -1]]
  right = (ends.argmax(-1) == labels[:, None]) + 0.0 * ends.max(-1)  # NaN stays NaN.
  return right.mean(0, np.float64)


@jax.jit
def _measure(setting, labels, costs) -> dict:
  """Cost, accuracy, confidence and prediction sets of one setting of a method."""
  (held_out, held_out_levels), (probs, levels) = setting
  own = metrics.cost_accuracy(held_out_levels, agrees(held_out, labels[0][:, None]), costs)
  correct = agrees(probs, labels[1][:, None])
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
    "curves": ((own.cost, own.accuracy), (cost, accuracy)),
    "mean cost": cost,
    "share of samples": share,
    "confidence minus accuracy": bias,
    BIAS: jnp.abs(bias[:2]),
    "coverage": coverage,
    "coverage error": jnp.abs(coverage - (1 - _ALPHA)),
    SIZE: size,
  }


def _summary(curve, ends, labels, costs) -> dict:
  """Accuracy over the costs from the first exit's to the last's, the rest near `_NEAR`."""
  rows = jax.device_get([_measure(setting, labels, costs) for setting in curve])
  measured = jax.tree.map(lambda *values: np.array(values, np.float64), *rows)
  (held_out, test), grid = measured.pop("curves"), np.linspace(costs[0], 1.0, 100)
  summary = {}
  for name, (cost, accuracy), end in zip(("validation/", ""), (held_out, test), ends):
    order = np.argsort(cost, kind="stable")
    xs = np.concatenate([costs[:1], cost[order], [1.0]])
    ys = np.concatenate([end[:1], accuracy[order], end[1:]])
    summary[name + AREA] = np.interp(grid, xs, ys).mean()
  summary["accuracy"] = np.interp(COSTS, xs, ys)
  near = np.abs(measured["mean cost"] - np.array(_NEAR)[:, None]).argmin(1)
  for name, values in measured.items():
    values = np.ma.masked_invalid(values[near])
    summary[name] = np.ma.filled(values.mean(None if name == BIAS else 0), np.nan)
  return summary
