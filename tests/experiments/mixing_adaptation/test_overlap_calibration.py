import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from experiments.kit import datasets
from experiments.mixing_adaptation.overlap_calibration import __main__ as experiment
from experiments.mixing_adaptation.overlap_calibration import fitting, problems
from jaxlab import metrics


def test_parts_of_a_noisy_problem_are_disjoint_and_share_a_law():
  splits = datasets.describe("digits").splits(1200, 500)
  draw = jax.jit(partial(problems.noisy, 900, 10))
  problem = jax.device_get(draw(jax.random.key(1), splits, noise=np.float32(0.5)))
  rows = np.concatenate([problem.train.inputs, problem.held_out.inputs]).reshape(1200, -1)
  np.testing.assert_array_equal(np.sort(rows, 0), np.sort(splits[0].inputs.reshape(1200, -1), 0))
  labels, clean = problem.test.labels, problem.clean_labels
  np.testing.assert_array_equal(clean, splits[1].labels)
  assert abs(np.mean(labels != clean) - 0.5) < 0.1
  for own in range(10):
    assert len(set(labels[clean == own]) - {own}) == 1
  np.testing.assert_allclose(problem.bayes_nll, np.log(2), rtol=1e-6)


def test_training_ends_when_the_labels_are_fitted():
  config = dataclasses.replace(experiment.PRESETS["smoke"], max_steps=6)
  module = experiment.network(config, 3)

  @jax.jit
  def train(key):
    problem = problems.gaussians(3, (60, 40, 40), key, ())
    at_once, never = (
      fitting.fit(dataclasses.replace(config, fitted=fitted), module, None, problem, key)
      for fitted in (0.01, 2.0)
    )
    as_long = fitting.fit(config, module, None, problem, key, rounds=never.rounds)
    return at_once, never, as_long

  at_once, never, as_long = jax.device_get(train(jax.random.key(0)))
  assert (at_once.rounds, never.rounds, as_long.rounds) == (1, 3, 3)
  assert never.best_nll <= at_once.best_nll
  jax.tree.map(np.testing.assert_array_equal, at_once.last, at_once.best)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), never.last, as_long.last)


def test_an_uninformed_miss_is_the_scaled_interpolators():
  overlap = np.linspace(0, 1, 5)
  np.testing.assert_allclose(
    problems.uniform_miss_nll(overlap / 2, 7),
    jax.jit(metrics.interpolator_temperature_scaled_nll)(overlap, 7),
    rtol=1e-5,
  )


def test_paper_data_say_how_to_get_them(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    next(problems.families(experiment.PRESETS["paper"], 1))
