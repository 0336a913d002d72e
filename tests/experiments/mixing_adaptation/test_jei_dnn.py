import numpy as np
import pytest

from experiments.mixing_adaptation.jei_dnn import evaluation
from jaxlab import metrics


@pytest.fixture(scope="module")
def probs():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(400, 4, 5)) * np.array([1.0, 2.0, 3.0, 4.0])[:, None]
  exp = np.exp(logits)
  return exp / exp.sum(-1, keepdims=True)


def leave(confidence, thresholds):
  """First exit whose confidence reaches its threshold."""
  reached = np.concatenate([confidence >= thresholds, np.ones((len(confidence), 1), bool)], axis=1)
  return reached.argmax(1)


def test_sweeps_go_from_the_first_exit_to_the_last(probs):
  confidence = probs[:, :-1].max(-1)
  for sweep in (evaluation.one_threshold, evaluation.by_share):
    levels = [leave(confidence, thresholds).mean() for thresholds in sweep(confidence)]
    assert min(levels) < 0.3 and max(levels) > 2.7


def test_shares_are_met_on_the_samples_they_are_set_on(probs):
  confidence = probs[:, :-1].max(-1)
  thresholds = list(evaluation.by_share(confidence))
  ratio = np.geomspace(0.05, 20.0, 40)
  for i in (5, 20, 35):
    want = ratio[i] ** np.arange(4.0)
    got = np.bincount(leave(confidence, thresholds[i]), minlength=4) / len(probs)
    np.testing.assert_allclose(got, want / want.sum(), atol=0.01)


def test_the_oracle_knows_the_labels(probs):
  labels = probs[:, 0].argmax(-1)
  levels = evaluation.oracle(probs, labels, np.array([0.1, 0.4, 0.7, 1.0]), 10.0)
  assert np.all(levels == 0)
  right = metrics.exited_values(probs.argmax(-1) == labels[:, None], levels)
  assert np.all(right)
