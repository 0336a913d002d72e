import dataclasses
import json

import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import c_mixup
from experiments.mixing_adaptation import c_mixup_tables as tables
from experiments.mixing_adaptation.c_mixup_digits import image_settings


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("c_mixup") / "run"
  flags = ["c_mixup", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(c_mixup, flags) == 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  assert set(tables.METHODS) <= set(smoke["quantities"])
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert smoke["quantities"]["no mixing"]["tables/relative RMSE"]["mean"] == 1.0
  assert len(smoke["claims"]) == 5


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  assert common.execute(c_mixup, ["c_mixup", "--preset=paper", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out


def test_searches_are_of_equal_size():
  for config in c_mixup.PRESETS.values():
    for settings in (tables.table_settings(config), image_settings(config)):
      assert set(settings) == set(tables.METHODS)
      assert len({len(grid) for grid in settings.values()}) == 1
  with pytest.raises(ValueError, match="unequal"):
    tables.table_settings(dataclasses.replace(c_mixup.Config(), alphas=(1.0,)))


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
