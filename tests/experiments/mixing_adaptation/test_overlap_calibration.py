import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from experiments.mixing_adaptation.overlap_calibration import __main__ as experiment
from experiments.mixing_adaptation.overlap_calibration import problems
from jaxlab import metrics

SMOKE = experiment.PRESETS["smoke"]


def test_all_splits_share_the_law_of_their_labels():
  splits = problems.gaussians(dataclasses.replace(SMOKE, num_test=400), 5, 0)
  noisy = jax.device_get(jax.jit(partial(problems.flip, jax.random.key(1), 5, noise=0.5))(splits))
  for (inputs, labels), (same, clean) in zip(noisy, splits, strict=True):
    np.testing.assert_array_equal(inputs, same)
    assert abs(np.mean(labels != clean) - 0.5) < 0.2
  labels, clean = (np.concatenate([split.labels for split in part]) for part in (noisy, splits))
  for own in range(5):
    assert len(set(labels[clean == own]) - {own}) == 1


def test_gaussians_are_drawn_by_seed_and_do_not_overlap():
  train, _, test = problems.gaussians(SMOKE, 3, 0)
  assert train.inputs.shape[0] == 3 * SMOKE.rows_per_class
  np.testing.assert_array_equal(test.labels, np.argmax(test.inputs[:, :3], axis=1))
  assert not np.array_equal(test.inputs, problems.gaussians(SMOKE, 3, 1)[2].inputs)


def test_variables_are_those_of_the_end_and_of_the_least_held_out_loss():
  task = list(problems.tasks(SMOKE))[-1]
  config = dataclasses.replace(SMOKE, num_evals=4)

  @jax.jit
  def run(key, splits):
    noisy = problems.flip(key, task.num_classes, splits, noise=0.5)
    variables = experiment.fit(config, task, None, noisy, key)
    score = partial(experiment.score, task.module, noisy, splits[2].labels, key)
    return jax.lax.map(score, variables)

  scores = jax.device_get(run(jax.random.key(0), task.draw(0)))
  last, best = scores["held-out NLL"][:, 1]
  assert best <= last
  # A temperature changes no prediction, and is the best one of the held-out rows.
  np.testing.assert_array_equal(scores["error"][:, 0], scores["error"][:, 1])
  assert np.all(scores["held-out NLL"][:, 1] <= scores["held-out NLL"][:, 0] + 1e-6)
  np.testing.assert_array_equal(scores["temperature"][:, 0], 1)


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
    next(problems.tasks(experiment.PRESETS["paper"])).draw(0)
