import json

import pytest

from experiments import common
from experiments.mixing_adaptation import few_shot_sfda


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("few_shot_sfda") / "run"
  flags = ["few_shot_sfda", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(few_shot_sfda, flags) == 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  methods = {"source", "batch statistics", "Tent", "SHOT", "FT-1", "LP-FT-1"}
  assert set(smoke["quantities"]) == methods
  for row in smoke["quantities"].values():
    assert all(0.0 <= entry["mean"] <= 1.0 for entry in row.values())
  assert len(smoke["claims"]) == 8


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  flags = ["few_shot_sfda", "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(few_shot_sfda, flags) == 0
  assert "parameters" in capsys.readouterr().out
