"""What early exits are worth: accuracy for cost, confidence against accuracy, prediction sets."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from experiments.mixing_adaptation.jei_dnn.exits import MAIN, METHODS, UNWEIGHTED
from jaxlab import losses, metrics, uncertainty

THRESHOLDS, ORACLE = "thresholds, more training", "oracle exit"
AREA, SIZE = "accuracy over common costs", "labels per prediction set"
BIAS = "|confidence - accuracy| at exits 0 and 1"
COSTS = tuple(i / 20 for i in range(2, 21))  # Where the curves of accuracy are recorded.
_MIN_EXITED = 20  # With fewer samples an exit is not evaluated.

_exited = jax.jit(metrics.exited_values)
_quantile = jax.jit(uncertainty.conformal_quantile, static_argnames="alpha")
_thresholds = jax.jit(uncertainty.exit_conformal_thresholds, static_argnames="alpha")


class Point(NamedTuple):
  """One setting of one method: what its exits say, and where samples leave."""

  validation_probs: np.ndarray
  validation_levels: np.ndarray | None
  probs: np.ndarray
  levels: np.ndarray


def evaluate_seed(outputs, config, labels, costs, key, own) -> dict:
  """Of one seed, `numbers` and curves along `cost` and `exit`: method -> quantity -> values.

  `outputs` is `train_exits`, compiled; `labels` are those of training, validation and test rows.
  """
  warm, joint = jax.device_get(outputs(key, own, labels, costs))
  curves = {
    method: [Point(*parts) for parts in zip(*(part[i] for pair in joint for part in pair))]
    for i, method in enumerate(METHODS)
  }
  # Classifiers that are not weighted do not depend on the gates: any cost weight will do.
  longer = curves[UNWEIGHTED][0]
  warm_up = warm[0][0], warm[1][0]
  for suffix, both in (("", warm_up), (", more training", (longer.validation_probs, longer.probs))):
    confidences = [probs[:, :-1].max(-1) for probs in both]
    for rule, sweep in (("thresholds", one_threshold), ("thresholds by share", by_share)):
      curves[rule + suffix] = []
      for thresholds in sweep(confidences[0]):
        leave = functools.partial(jax.jit(metrics.threshold_exits), thresholds=thresholds)
        levels = [np.asarray(leave(confidence)) for confidence in confidences]
        curves[rule + suffix].append(Point(both[0], levels[0], both[1], levels[1]))
  known = oracle(warm_up[1], labels[2], costs)
  curves[ORACLE] = [Point(warm_up[0], None, warm_up[1], levels) for levels in known]
  return _summary(config, curves, labels, costs)


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


def oracle(probs, labels, costs):
  """Exits chosen knowing the labels: a bound on what any gate can do for these classifiers."""
  cross_entropies = -np.log(np.maximum(_true(probs, labels), 1e-12))
  for weight in np.geomspace(1e-3, 10.0, 30):
    yield np.asarray(jax.jit(losses.optimal_exit)(cross_entropies, costs, cost_weight=weight))


def _true(probs, labels):
  """Probability of the true label at each exit."""
  return np.take_along_axis(probs, np.asarray(labels)[:, None, None], axis=-1)[..., 0]


def _summary(config, curves: dict[str, list[Point]], labels, costs) -> dict:
  """Accuracy over the costs that all methods reach, and the rest where they cost the same."""

  def cost_and_accuracy(curve):
    point = jax.jit(metrics.cost_accuracy)
    pairs = [point(p.levels, _correct(p, labels[2]), costs)[:2] for p in curve]
    return np.array(pairs, np.float64).T

  measured = {method: cost_and_accuracy(curve) for method, curve in curves.items()}
  costs_of = [cost for cost, _ in measured.values()]
  grid = np.linspace(max(map(np.min, costs_of)), min(map(np.max, costs_of)), 50)
  numbers, by_cost, by_exit = {}, {}, {}
  for method, (cost, accuracy) in measured.items():
    curve = np.stack([cost, accuracy])[:, np.argsort(cost, kind="stable")]
    area = jax.jit(metrics.area_under_cost_curve)(grid, np.interp(grid, *curve))
    numbers[method] = {AREA: float(area)}
    by_cost[method] = {"accuracy": np.interp(COSTS, *curve, left=np.nan, right=np.nan)}
    if method == ORACLE:
      continue
    # All are evaluated where they cost what the main method costs.
    chosen = np.abs(cost - measured[MAIN][0][:, None]).argmin(1)
    points = [_evaluate_point(config, curves[method][i], labels, len(costs)) for i in chosen]
    at = {name: np.stack([point[name] for point in points]) for name in points[0]}
    along = ("share of samples", "confidence minus accuracy")
    by_exit[method] = {name: np.array([_mean(v) for v in at.pop(name).T]) for name in along}
    numbers[method] |= {name: _mean(values) for name, values in at.items()}
    numbers[method]["mean cost"] = np.mean(cost[chosen])
  return {"numbers": numbers, "cost": by_cost, "exit": by_exit}


def _correct(point: Point, labels):
  return point.probs.argmax(-1) == np.asarray(labels)[:, None]


def _mean(values):
  """Mean over what could be evaluated, NaN if nothing could."""
  return np.nanmean(values) if np.isfinite(values).any() else np.nan


def _evaluate_point(config, point: Point, labels, num_exits: int) -> dict[str, np.ndarray]:
  """Confidence and prediction sets of one setting."""
  _, validation_labels, test_labels = labels
  count = np.bincount(point.levels, minlength=num_exits)
  evaluated = count >= _MIN_EXITED

  def by_exit(values):
    sums = np.bincount(point.levels, weights=values, minlength=num_exits)
    return np.where(evaluated, sums / np.maximum(count, 1), np.nan)

  probs = np.asarray(_exited(point.probs, point.levels))
  right = np.asarray(_exited(_correct(point, test_labels), point.levels))
  scores = 1 - _true(point.validation_probs, validation_labels)
  levels, alpha = point.validation_levels, config.alpha
  by_level = np.asarray(_thresholds(scores, levels, alpha=alpha))[point.levels]
  one = _quantile(_exited(scores, levels), alpha=alpha)
  bias = by_exit(probs.max(-1) - right)
  row = {"share of samples": count / count.sum(), "confidence minus accuracy": bias}
  row[BIAS] = np.abs(bias[:2])
  for suffix, threshold in (("", by_level[:, None]), (", one threshold", one)):
    sets = jax.jit(uncertainty.prediction_sets)(1 - probs, threshold)
    statistics = jax.device_get(jax.jit(uncertainty.set_statistics)(sets, test_labels))
    covered = np.take_along_axis(np.asarray(sets), np.asarray(test_labels)[:, None], axis=1)
    off = np.abs(by_exit(covered[:, 0]) - (1 - alpha))
    row |= {
      f"coverage{suffix}": statistics.coverage,
      f"coverage error{suffix}": np.abs(statistics.coverage - (1 - alpha)),
      f"{SIZE}{suffix}": statistics.size,
      f"coverage error by exit{suffix}": np.nansum(off * count) / max(count[evaluated].sum(), 1),
    }
  return row
