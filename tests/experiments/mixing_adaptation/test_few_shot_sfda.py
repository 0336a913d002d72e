import json

import numpy as np
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


def test_counts_are_those_of_the_scenarios():
  config = few_shot_sfda.Config()
  for scenario in few_shot_sfda.SCENARIOS:
    source, target = few_shot_sfda.class_counts(config, scenario)
    assert source.sum() == config.num_source and target.sum() == config.num_target
    # One shot for validation and three for training leave some to judge on.
    assert target.min() > 4
  source, target = few_shot_sfda.class_counts(config, "open set")
  assert np.all(source[7:] == 0) and abs(target[7:].sum() - 800) <= 1
  source, target = few_shot_sfda.class_counts(config, "label shift")
  assert 90 < source[9] / source[0] < 110 and 90 < target[0] / target[9] < 110


def test_domains_are_disjoint_and_shifted():
  config = few_shot_sfda.PRESETS["smoke"]
  found = few_shot_sfda.make_domains(config, "closed", 0)
  assert found.inputs.shape == (1, 200, 40, 1) and found.labels.shape == (1, 200)
  np.testing.assert_allclose(found.source.inputs.mean(), 0.0, atol=1e-5)
  np.testing.assert_array_equal(np.bincount(found.source.labels), 12)
  near = np.abs(found.source.inputs[:, None] - found.inputs[0]).max((2, 3)).min()
  assert near > 0.1
  other = few_shot_sfda.make_domains(config, "closed", 1)
  assert np.any(other.source.inputs != found.source.inputs)


def test_a_pool_without_enough_rows_is_refused():
  labels = np.array([0, 0, 1])
  with pytest.raises(ValueError, match="class 1 has 1 rows, 2 are needed"):
    few_shot_sfda._take(np.random.default_rng(0), labels, np.array([1, 2]))
