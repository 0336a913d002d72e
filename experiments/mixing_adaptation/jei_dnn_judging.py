"""What early exits are worth: accuracy for cost, honesty of confidence, prediction sets."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.mixing_adaptation.jei_dnn_exits import MAIN, METHODS, UNWEIGHTED
from jaxlab import losses, metrics, uncertainty

ORACLE = "oracle exit"
_MIN_EXITED = 20  # Below so many samples an exit is not judged.


class Point(NamedTuple):
  """One setting of one method: what its exits say, and where samples leave."""

  validation_probs: np.ndarray
  validation_levels: np.ndarray
  probs: np.ndarray
  levels: np.ndarray


def judge_seed(judge, config, labels, costs, key, own) -> dict:
  """The table of one seed, and what its figure needs."""
  warm, joint = jax.device_get(judge(key, own, labels, costs))
  curves = {
    method: [
      Point(*(part[i, j] for pair in joint for part in pair))
      for j in range(len(config.cost_weights))
    ]
    for i, method in enumerate(METHODS)
  }
  # Classifiers that are not weighted do not depend on the gates: any cost weight will do.
  longer = curves[UNWEIGHTED][0]
  classifiers = {
    "": (warm[0][0], warm[1][0]),
    ", more training": (longer.validation_probs, longer.probs),
  }
  for rule, sweep in (("thresholds", _one_threshold), ("thresholds by share", _by_share)):
    for suffix, (validation_probs, probs) in classifiers.items():
      curves[rule + suffix] = [
        Point(validation_probs, leave(validation_probs), probs, leave(probs))
        for leave in sweep(validation_probs)
      ]
  curves[ORACLE] = _oracle(*classifiers[""], labels[2], costs)
  return _summary(config, curves, labels, costs)


def _one_threshold(validation_probs):
  """Rules that leave at the first exit whose confidence reaches the same threshold."""
  confidence = validation_probs[:, :-1].max(-1)
  num_gates = confidence.shape[1]
  for threshold in np.quantile(confidence, np.linspace(0.0, 1.0, 60)):
    yield _threshold_rule(np.full(num_gates, threshold))
  yield _threshold_rule(np.full(num_gates, 2.0))


def _by_share(validation_probs):
  """Rules whose thresholds let shares q^l of the validation samples leave at exit l."""
  confidence = validation_probs[:, :-1].max(-1)
  num, num_gates = confidence.shape
  for ratio in np.geomspace(0.05, 20.0, 40):
    shares = ratio ** np.arange(num_gates + 1.0)
    shares /= shares.sum()
    stay, thresholds = np.ones(num, bool), []
    for gate in range(num_gates):
      ordered = np.sort(confidence[stay, gate])[::-1]
      leave = min(int(round(shares[gate] * num)), len(ordered))
      thresholds.append(ordered[leave - 1] if leave else 2.0)
      stay &= confidence[:, gate] < thresholds[-1]
    yield _threshold_rule(np.array(thresholds))


def _threshold_rule(thresholds):
  def leave(probs):
    confidence = probs[:, :-1].max(-1)
    return np.asarray(metrics.threshold_exits(confidence, thresholds=thresholds))

  return leave


def _oracle(validation_probs, probs, labels, costs) -> list[Point]:
  """Exits chosen knowing the labels: a bound on what any gate can do for these classifiers."""
  cross_entropies = -np.log(np.maximum(_true(probs, labels), 1e-12))
  stay = np.zeros(len(validation_probs), int)
  return [
    Point(
      validation_probs,
      stay,
      probs,
      np.asarray(losses.optimal_exit(cross_entropies, costs, cost_weight=weight)),
    )
    for weight in np.geomspace(1e-3, 10.0, 30)
  ]


def _true(probs, labels):
  """Probability of the true label at each exit."""
  return np.take_along_axis(probs, np.asarray(labels)[:, None, None], axis=-1)[..., 0]


def _summary(config, curves: dict[str, list[Point]], labels, costs) -> dict:
  """One row a method: accuracy over the costs that all reach, and the rest at the same costs."""
  measured = {
    method: _cost_and_accuracy(curve, labels[2], costs) for method, curve in curves.items()
  }
  low = max(cost.min() for cost, _ in measured.values())
  high = min(cost.max() for cost, _ in measured.values())
  grid = np.linspace(low, high, 50)
  middle = (grid >= 0.4) & (grid <= 0.7)
  rows, extras = {}, {}
  wanted = measured[MAIN][0]
  for method, (cost, accuracy) in measured.items():
    order = np.argsort(cost, kind="stable")
    on_grid = np.interp(grid, cost[order], accuracy[order])
    extras[f"points/{method}"] = np.stack([cost[order], accuracy[order]])
    rows[method] = {
      "curve/accuracy over common costs": float(metrics.area_under_cost_curve(grid, on_grid)),
      "curve/accuracy at costs .4 to .7": on_grid[middle].mean() if middle.any() else np.nan,
    }
    if method == ORACLE:
      continue
    # All are judged where they cost what the main method costs.
    chosen = np.abs(cost - wanted[:, None]).argmin(1)
    points = [_judge_point(config, curves[method][i], labels, len(costs)) for i in chosen]
    found = {name: np.stack([point[name] for point in points]) for name in points[0]}
    rows[method] |= {
      "exits/mean cost": np.mean(cost[chosen]),
      "exits/bias at exit 0": _mean(found["bias"][:, 0]),
      "exits/bias at exit 1": _mean(found["bias"][:, 1]),
      "exits/size of bias, exits 0 and 1": _mean(np.abs(found["bias"][:, :2])),
      "sets/coverage": found["coverage"].mean(),
      "sets/off the level": np.abs(found["coverage"] - (1 - config.alpha)).mean(),
      "sets/size": found["size"].mean(),
      "sets/off the level by exit": found["off by exit"].mean(),
      "sets/off the level by exit, one threshold": found["one, off by exit"].mean(),
    }
    extras[f"costs/{method}"] = cost[chosen]
    extras[f"share/{method}"] = found["share"]
  return {"rows": rows, "extras": extras}


def _cost_and_accuracy(curve: list[Point], labels, costs) -> tuple[np.ndarray, np.ndarray]:
  found = [
    metrics.cost_accuracy(point.levels, _correct(point, labels), costs)[:2] for point in curve
  ]
  cost, accuracy = np.array(found, np.float64).T
  return cost, accuracy


def _correct(point: Point, labels):
  return point.probs.argmax(-1) == np.asarray(labels)[:, None]


def _mean(values):
  """Mean over what could be judged, NaN if nothing could."""
  return np.nanmean(values) if np.isfinite(values).any() else np.nan


def _judge_point(config, point: Point, labels, num_exits: int) -> dict[str, np.ndarray]:
  """Confidence and prediction sets of one setting."""
  _, validation_labels, test_labels = labels
  count = np.bincount(point.levels, minlength=num_exits)
  judged = count >= _MIN_EXITED

  def by_exit(values):
    sums = np.bincount(point.levels, weights=values, minlength=num_exits)
    return np.where(judged, sums / np.maximum(count, 1), np.nan)

  probs = np.asarray(metrics.exited_values(point.probs, point.levels))
  right = np.asarray(metrics.exited_values(_correct(point, test_labels), point.levels))
  scores = 1 - _true(point.validation_probs, validation_labels)
  by_level = uncertainty.exit_conformal_thresholds(
    scores, point.validation_levels, alpha=config.alpha
  )
  one = uncertainty.conformal_quantile(
    metrics.exited_values(scores, point.validation_levels), alpha=config.alpha
  )
  found = {"share": count / count.sum(), "bias": by_exit(probs.max(-1) - right)}
  for name, threshold in (("", by_level[point.levels][:, None]), ("one, ", one)):
    sets = uncertainty.prediction_sets(1 - probs, threshold)
    statistics = uncertainty.set_statistics(sets, test_labels)
    covered = np.take_along_axis(np.asarray(sets), np.asarray(test_labels)[:, None], axis=1)
    off = np.abs(by_exit(covered[:, 0]) - (1 - config.alpha))
    found |= {
      f"{name}coverage": np.asarray(statistics.coverage),
      f"{name}size": np.asarray(statistics.size),
      f"{name}off by exit": np.nansum(off * count) / max(np.sum(count[judged]), 1),
    }
  return found
