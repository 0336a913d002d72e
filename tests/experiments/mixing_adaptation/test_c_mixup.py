import dataclasses
import json

import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import c_mixup
from experiments.mixing_adaptation import c_mixup_tables as tables


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("c_mixup") / "run"
  flags = ["c_mixup", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(c_mixup, flags) == 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  assert set(c_mixup.METHODS) <= set(smoke["quantities"])
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert smoke["quantities"]["no mixing"]["tables/relative RMSE"]["mean"] == 1.0
  assert len(smoke["claims"]) == 5


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  assert common.execute(c_mixup, ["c_mixup", "--preset=paper", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out


def test_searches_are_of_equal_size():
  for config in c_mixup.PRESETS.values():
    for settings in (c_mixup.table_settings(config), c_mixup.image_settings(config)):
      assert set(settings) == set(c_mixup.METHODS)
      assert len({len(grid) for grid in settings.values()}) == 1
  with pytest.raises(ValueError, match="unequal"):
    c_mixup.table_settings(dataclasses.replace(c_mixup.Config(), alphas=(1.0,)))


def test_settings_are_chosen_on_validation_over_the_splits_of_a_seed():
  found = {
    "a": {
      "validation": np.array([[1.0, 2.0], [9.0, 3.0], [1.0, 2.0], [1.0, 2.0]]),
      "rmse": np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]),
    }
  }
  chosen = c_mixup._chosen(found, 2)["a"]
  np.testing.assert_allclose(chosen["rmse"], [0.3, 0.6])
  np.testing.assert_allclose(chosen["validation"], [2.5, 1.0])


def test_splits_are_standardised_by_training_rows():
  tasks = tables.load_tasks("diabetes", range(2), max_rows=100)
  assert tasks.train.inputs.shape == (2, 70, 10)
  assert tasks.validation.labels.shape == (2, 10, 1) and tasks.test.labels.shape == (2, 20, 1)
  np.testing.assert_allclose(tasks.train.inputs.mean(1), 0.0, atol=1e-5)
  np.testing.assert_allclose(tasks.train.labels.std(1), 1.0, rtol=1e-5)
  assert np.any(tasks.train.inputs[0] != tasks.train.inputs[1])


def test_bandwidths_of_infinity_ignore_what_they_measure():
  rng = np.random.default_rng(0)
  inputs, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 1))
  near = tables.similarity_features(inputs, targets, tables.Setting(bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([targets / 0.5, 0 * inputs], axis=1), rtol=1e-6)
  near = tables.similarity_features(inputs, targets, tables.Setting(feature_bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([0 * targets, inputs], axis=1), rtol=1e-6)


def test_dropout_keeps_the_mean():
  noise = np.arange(256, dtype=np.uint8)
  for rate in (0.0, 0.25, 0.4):
    found = np.asarray(tables.dropped(noise, rate, np.ones(256, np.float32)))
    np.testing.assert_allclose(found.mean(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.mean(found == 0), rate, atol=1 / 256)
