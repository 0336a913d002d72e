import dataclasses

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from experiments.kit.datasets import Split
from experiments.labels.label_errors import finding, noise, ranking
from experiments.labels.label_errors.__main__ import PRESETS
from jaxlab import data, metrics

CONFIG = PRESETS["smoke"]
RNG = np.random.default_rng(0)


def test_regions_are_both_ends_of_the_first_component_of_the_first_split():
  inputs = RNG.normal(size=(400, 3)).astype(np.float32) * [1, 5, 1] + [0, 7, 0]
  splits = [Split(inputs[::2], np.arange(200) % 2), Split(inputs[1::2], np.arange(200) % 2)]
  given = noise.in_tails(splits, [(1, 0)], fraction=0.3)
  middle = splits[0].inputs[1::2].mean(0)
  for (rows, labels), changed in zip(splits, given):
    members = np.flatnonzero(labels == 1)
    far = np.abs((rows - middle)[members, 1])
    expected = labels.copy()
    expected[members[np.argsort(-far)[:30]]] = 0
    assert (changed != expected).sum() <= 4  # The component is the second input up to chance.
    ends = (rows - middle)[changed != labels, 1]
    assert min((ends > 0).sum(), (ends < 0).sum()) >= 3 and np.abs(ends).min() > 3


def test_noise_matrices_and_their_labels():
  for name in (noise.PAIRED, noise.NEXT, noise.UNIFORM):
    matrix = noise.noise_matrix(CONFIG, name, num_classes=10)
    for true in range(10):
      rate, to = CONFIG.noise_rate, {(true + 1) % 10}
      if name == noise.PAIRED:
        rate, to = CONFIG.fraction, {dict(noise.PAIRS).get(true, true)}
      elif name == noise.UNIFORM:
        to = set(range(10)) - {true}
      for given in range(10):
        expected = (1 - rate) * (given == true) + rate * (given in to) / len(to)
        assert matrix[true, given] == pytest.approx(expected)
  splits = [Split(np.zeros((3000, 1), np.float32), np.arange(3000, dtype=np.int32) % 10)] * 2
  first, second = noise.plant(CONFIG, noise.NEXT, splits, 0)
  wrong = first.given != first.labels
  assert abs(wrong.mean() - CONFIG.noise_rate) < 0.02
  np.testing.assert_array_equal(first.given[wrong], (first.labels[wrong] + 1) % 10)
  assert (first.given != second.given).any()


def test_seeds_and_splits_differ_and_come_again():
  one, test, folds = ranking.problem(CONFIG, noise.REGIONS, 3)
  again, *_ = ranking.problem(CONFIG, noise.REGIONS, 3)
  other, *_ = ranking.problem(CONFIG, noise.REGIONS, 4)
  np.testing.assert_array_equal(one.inputs, again.inputs)
  assert (one.inputs != other.inputs).any() and len(test.given) == CONFIG.num_test
  assert one.inputs.shape == (CONFIG.num_train, 64)
  np.testing.assert_array_equal(np.sort(folds, axis=None), np.arange(CONFIG.num_train))
  counts = [np.bincount(one.given[fold], minlength=10) for fold in folds]
  assert (np.ptp(counts, axis=0) <= 1).all()


def test_measures_of_flags_match_a_loop():
  flagged, wrong = RNG.random(50) < 0.4, RNG.random(50) < 0.3
  hits = sum(1 for f, w in zip(flagged, wrong) if f and w)
  found = finding.against(flagged, wrong)
  precision, recall = hits / sum(flagged), hits / sum(wrong)
  assert found[finding.PRECISION] == pytest.approx(precision)
  assert found[finding.RECALL] == pytest.approx(recall)
  assert found[finding.F1] == pytest.approx(2 * precision * recall / (precision + recall))
  assert found[finding.COUNT_ERROR] == pytest.approx(abs(sum(flagged) / sum(wrong) - 1))
  assert finding.against(np.zeros(3, bool), np.ones(3, bool))[finding.PRECISION] == 0


def test_the_network_learns_from_given_labels_at_the_rate_that_folds_prefer():
  config = dataclasses.replace(CONFIG, num_steps=60, learning_rates=(0.0, 3e-2), widths=(32,))
  rows = ranking.problem(config, noise.UNIFORM, 0)
  fit = jax.jit(lambda key, rows: ranking.fit_network(config, key, rows))
  found = jax.device_get(fit(jax.random.key(0), rows))
  assert found["chosen/learning rate"] == np.float32(3e-2) and found["bad_step"] == [-1]
  scores = ranking.accuracies(rows[1], found)
  assert scores[ranking.CLEAN] > 0.5
  wrong = rows[1].labels != rows[1].given
  assert scores[ranking.MISLABELED] == pytest.approx(found["right"][wrong].mean())
  assert scores[ranking.GIVEN] == pytest.approx(found["given"].mean())


def test_a_flexible_model_follows_errors_in_regions_and_a_linear_one_does_not():
  """Where the effect is certain: two classes, a quarter of one wrong where |x| is largest."""
  labels = (np.arange(5000) % 2).astype(np.int32)
  x, z = RNG.uniform(-1, 1, 5000), 2 * labels - 1 + 0.1 * RNG.normal(size=5000)
  inputs = np.stack([3 * x, z], axis=1).astype(np.float32)
  (given,) = noise.in_tails([Split(inputs, labels)], [(0, 1)], fraction=0.25)
  wrong = given != labels
  assert wrong.sum() == 625
  probs = {
    model: data.cross_validated_probabilities(
      model.fit, lambda fitted, x: fitted.predict_proba(x), inputs, given
    )
    for model in (LogisticRegression(), KNeighborsClassifier(25))
  }
  linear, flexible = probs.values()
  assert np.mean(linear.argmax(1)[wrong] == labels[wrong]) >= 0.9
  assert np.mean(flexible.argmax(1)[wrong] == labels[wrong]) <= 0.1
  # Rows of one class are equally probable, right or wrong, and half of them miss their mean.
  pruned = metrics.find_label_issues(linear, given, method=finding.PRUNE)
  assert wrong[np.asarray(pruned)].mean() >= 0.95 and np.asarray(pruned)[wrong].mean() >= 0.5
  issues = metrics.find_label_issues(linear, given, method=finding.NOT_PREDICTED)
  assert wrong[np.asarray(issues)].mean() >= 0.95 and np.asarray(issues)[wrong].mean() >= 0.9
