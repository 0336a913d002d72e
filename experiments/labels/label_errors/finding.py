"""Methods that find wrong labels, held against those that were planted."""

import functools

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.kit.datasets import Split
from experiments.labels.label_errors.noise import Noisy, draw, plant
from jaxlab import data, metrics

PRUNE, CONFIDENT = "prune_by_noise_rate", "confident_learning"
NOT_PREDICTED = "predicted_neq_given"
FILTERS = (PRUNE, "prune_by_class", "both", CONFIDENT, NOT_PREDICTED)
MARGIN = "normalized_margin"
SCORES = ("self_confidence", MARGIN, "confidence_weighted_entropy")
IDEAL = "prune_by_noise_rate, ideal model"
ROWS = "all rows"
PRECISION, RECALL, F1, COUNT_ERROR = "precision", "recall", "F1", "error of the number"


def rows_of(config, dataset: str, noise: str, seed: int) -> Noisy:
  """All rows of a set, with planted errors."""
  if dataset == config.dataset:
    return draw(config, noise, (config.num_rows,), seed)[0]
  arrays = data.as_arrays(data.load_source(dataset, split="all"))
  split = Split(arrays["features"].astype(np.float32), arrays["label"].astype(np.int32))
  return plant(config, noise, [split], seed)[0]


def probabilities(config, inputs, labels, *, standardize: bool, seed: int) -> np.ndarray:
  """Cross-validated probabilities `[n, k]` of a logistic regression."""
  linear = LogisticRegression(C=config.finder_strength, max_iter=2000)
  model = make_pipeline(*[StandardScaler()] * standardize, linear)
  predict = lambda fitted, inputs: fitted.predict_proba(inputs)  # noqa: E731
  options = {"num_folds": config.num_folds, "seed": seed}
  return data.cross_validated_probabilities(model.fit, predict, inputs, labels, **options)


def score(config, dataset: str, noise: str, seed: int) -> dict[str, dict[str, float]]:
  """Finds the wrong labels of a seed in all ways.

  Args:
    config: of the experiment.
    dataset: name of the set.
    noise: how its labels are made wrong.
    seed: of split, noise and folds.

  Returns:
    method -> quantity -> value. Scores flag as many rows as `prune_by_noise_rate`.
  """
  rows = rows_of(config, dataset, noise, seed)
  options = {"standardize": dataset != config.dataset, "seed": seed}
  estimate = functools.partial(probabilities, config, rows.inputs, **options)
  probs, wrong = estimate(rows.given), rows.labels != rows.given
  masks, scores = jax.device_get(_find(probs, rows.given))
  flagged = dict(masks)
  for name, values in scores.items():
    flagged[name] = np.zeros(len(wrong), bool)
    flagged[name][np.argsort(values, kind="stable")[: masks[PRUNE].sum()]] = True
  # What probabilities would be, did the model know the noise: those of true classes, and its rates.
  rates = np.zeros((probs.shape[1],) * 2, np.float32)
  np.add.at(rates, (rows.labels, rows.given), 1)
  rates /= rates.sum(axis=1, keepdims=True)
  flagged[IDEAL] = np.asarray(_find(estimate(rows.labels) @ rates, rows.given)[0][PRUNE])
  found = {method: against(mask, wrong) for method, mask in flagged.items()}
  right = np.mean(probs.argmax(axis=1) == rows.labels)
  found[ROWS] = {"mislabeled": wrong.sum(), "accuracy on true labels": right}
  return found


@jax.jit
def _find(probs, labels):
  masks = {m: metrics.find_label_issues(probs, labels, method=m) for m in FILTERS}
  return masks, {m: metrics.label_quality(probs, labels, method=m) for m in SCORES}


def against(flagged: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
  """How well flagged rows are those that are wrong; the last is that of their number alone."""
  hits, num_flagged, num_wrong = (flagged & wrong).sum(), flagged.sum(), wrong.sum()
  return {
    PRECISION: hits / max(num_flagged, 1),
    RECALL: hits / max(num_wrong, 1),
    F1: 2 * hits / max(num_flagged + num_wrong, 1),
    COUNT_ERROR: abs(num_flagged - num_wrong) / max(num_wrong, 1),
  }
