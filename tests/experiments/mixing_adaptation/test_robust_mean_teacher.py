"""Streams of corruptions, and what is measured on them."""

import jax
import numpy as np
import pytest

from experiments.kit.datasets import Split
from experiments.mixing_adaptation.robust_mean_teacher import __main__ as experiment
from experiments.mixing_adaptation.robust_mean_teacher import methods, streams
from jaxlab.experiment import Results

KEY = jax.random.key(0)
CONFIG = experiment.Config(num_gradual=2, batch_size=2, kinds=("a", "b"), severity=3, rounds=2)


def test_streams_come_in_their_orders(monkeypatch):
  def corrupted(key, config, test, severities, num_samples):
    levels = [[10 * k + s] * (num_samples // 2) for k in (0, 1) for s in severities]
    inputs = np.ones((1, 2, 8, 1)) * np.concatenate(levels)[:, None, None, None]
    return Split(inputs, np.zeros(inputs.shape[:2], np.int32))

  monkeypatch.setattr(streams, "corrupted", corrupted)
  made = streams.make_streams(KEY, CONFIG, Split(np.zeros((6, 8, 1)), np.zeros(6)))
  levels = {name: stream.inputs[:, 0, 0, 0].tolist() for name, stream in made.items()}
  assert levels["continual"] == [3, 3, 3, 13, 13, 13] * 2
  assert levels["gradual"] == [1, 2, 3, 2, 1, 11, 12, 13, 12, 11]


def test_errors_are_means_over_streams_and_rounds():
  continual = np.array([[0, 0, 1, 1, 0.5, 0.5, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
  scores = {"continual": continual, "gradual": continual[:, :2]}
  results = Results()
  experiment.add_scores(results, CONFIG, "TENT", scores, learning_rate=0.1)
  where = {"method": "TENT", "learning_rate": 0.1}
  np.testing.assert_allclose(
    results.select(experiment.ERROR, stream="continual", **where), [62.5, 50]
  )
  np.testing.assert_allclose(results.select(experiment.ERROR, stream="gradual", **where), [0, 50])
  np.testing.assert_allclose(results.select(experiment.ROUND_ERROR, round=2, **where), [75, 50])


def test_the_chosen_setting_is_one_of_equally_many():
  searched = [m for m in methods.SEARCH if m not in (methods.SOURCE, methods.NORM)]
  assert {len(methods.SEARCH[method]) for method in searched} == {6}
  pilot = Results()
  for method, tried in methods.SEARCH.items():
    for i, setting in enumerate(tried):
      errors = {methods.ERROR: [30.0 + (i - 1) ** 2, 31.0]}
      pilot.add({method: errors}, stream="continual", **setting)
      pilot.add({method: {methods.ERROR: [float(-i), 0.0]}}, stream="gradual", **setting)
  chosen = methods.chosen_settings("mnist1d", pilot)
  assert all(chosen[method] == methods.SEARCH[method][1] for method in searched)
  assert chosen[methods.SOURCE] == {}
  images = methods.chosen_settings("cifar10", pilot)
  assert images[methods.RMT] == {"learning_rate": 1e-3, "decay": 0.999}
  assert images[methods.TENT] == {"learning_rate": 1e-3}
  # Those that the stored result was measured with.
  chosen = experiment.chosen_settings(experiment.Config())
  assert chosen[methods.TENT] == {"learning_rate": 3e-4}
  assert chosen[methods.RMT] == chosen[methods.COTTA] == {"learning_rate": 3e-3, "decay": 0.99}


def test_the_paper_data_are_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    streams.load(experiment.PRESETS["paper"], 0)
