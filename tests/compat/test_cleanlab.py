"""Counts, masks and scores beside cleanlab's."""

from fractions import Fraction

import numpy as np
import pytest

from jaxlab import metrics

cleanlab = pytest.importorskip("cleanlab")

from cleanlab import count, filter, rank  # noqa: E402

METHODS = (
  "prune_by_noise_rate",
  "prune_by_class",
  "both",
  "confident_learning",
  "predicted_neq_given",
)
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def draw(seed, classes, num=500):
  rng = np.random.default_rng(seed)
  true = rng.integers(0, classes, num)
  labels = np.where(rng.random(num) < 0.2, rng.integers(0, classes, num), true).astype(np.int32)
  logits = 1.5 * rng.normal(size=(num, classes))
  logits[np.arange(num), true] += 2
  probs = np.exp(logits)
  return (probs / probs.sum(1, keepdims=True)).astype(np.float32), labels


def has_ties(joint, labels):
  """Whether calibrating rounds entries by equal amounts, whose order in cleanlab is not fixed."""
  for row, size in zip(joint.tolist(), np.bincount(labels, minlength=len(joint)).tolist()):
    exact = [Fraction(x * size, max(sum(row), 1)) for x in row]
    rests = [x - round(x) for x in exact if x]
    if len({*rests}) < len(rests) or any(abs(x) == Fraction(1, 2) for x in rests):
      return True
  return False


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("seed", range(8))
def test_counts_and_issues(seed, classes):
  probs, labels = draw(seed, classes)
  theirs = count.compute_confident_joint(labels, probs, calibrate=False)
  ours = np.asarray(metrics.confident_joint(probs, labels, calibrate=False))
  np.testing.assert_array_equal(ours, theirs)
  thresholds = count.get_confident_thresholds(labels, probs)
  np.testing.assert_allclose(metrics.confident_thresholds(probs, labels), thresholds, rtol=1e-5)
  tied = has_ties(ours, labels)
  if not tied:
    theirs = count.compute_confident_joint(labels, probs, calibrate=True)
    np.testing.assert_array_equal(metrics.confident_joint(probs, labels), theirs)
  for method in METHODS[3 if tied else 0 :]:
    theirs = filter.find_label_issues(labels, probs, filter_by=method, n_jobs=1)
    ours = metrics.find_label_issues(probs, labels, method=method)
    np.testing.assert_array_equal(ours, theirs, method)
  theirs = count.num_label_issues(labels, probs)
  assert metrics.num_label_issues(probs, labels) == theirs


@pytest.mark.parametrize("method", SCORES)
def test_scores(method):
  probs, labels = draw(0, 7)
  theirs = rank.get_label_quality_scores(labels, probs, method=method, adjust_pred_probs=False)
  ours = metrics.label_quality(probs, labels, method=method)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
