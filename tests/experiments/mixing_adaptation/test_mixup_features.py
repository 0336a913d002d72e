import json

import jax
import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import mixup_features
from jaxlab import data

_NAME = "mixup_features"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp(_NAME) / "run"
  argv = [_NAME, "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(mixup_features, argv) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  config = mixup_features.PRESETS["smoke"]
  methods = {*mixup_features._descents(config), *mixup_features._mixings(config)}
  assert set(smoke["quantities"]) == methods
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert len(smoke["claims"]) >= 12
  assert all(claim["holds"] is None for claim in smoke["claims"])


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  argv = [_NAME, "--preset=laptop", "--dry_run", "--mesh=data:2"]
  assert common.execute(mixup_features, argv) == 0
  assert "parameters" in capsys.readouterr().out


def test_aligned_patches_are_the_same_ones_in_order():
  drawn = data.sample_patches(jax.random.key(0), num_samples=6, dim=8)
  aligned = mixup_features._aligned(drawn)
  strength = np.abs(aligned.patches[..., :4]).max(-1)
  np.testing.assert_allclose(strength, np.tile([1.0, 0.05, 0.0, 0.0], (6, 1)), atol=1e-6)
  for before, after in zip(drawn.patches, aligned.patches):
    np.testing.assert_allclose(np.sort(before, axis=0), np.sort(after, axis=0))


def test_equal_alignment_is_where_the_reference_is_first_reached():
  measured = {
    name: np.zeros((2, 3))
    for name in ("training error", "common error", "common alignment", "rare alignment")
  }
  measured["rare alignment"] = np.array([[1.0, 2.0, 4.0], [1.0, 5.0, 6.0]])
  measured["rare error"] = np.array([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2]])
  row = mixup_features._patch_row(measured, np.array([3.0, 3.0]))
  np.testing.assert_array_equal(row["rare error at equal alignment"], [0.1, 0.3])
  np.testing.assert_array_equal(row["rare alignment, growth"], [4.0, 6.0])
  row = mixup_features._patch_row(measured, np.array([3.0, 7.0]))
  assert "rare error at equal alignment" not in row
