import json

import numpy as np
import pytest

from experiments import common
from experiments.mixing_adaptation import self_ensembled_icl as icl

_NAME = "self_ensembled_icl"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp(_NAME) / "run"
  argv = [_NAME, "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(icl, argv) == 0
  assert (directory / "figure.png").stat().st_size > 0
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_every_method(smoke):
  quantities = smoke["quantities"]
  pooled = {f"{rule} over {kind}" for rule in icl.RULES for kind in ("demonstrations", "both")}
  for method in ("ICL", "SupICL"):
    assert {f"{method}, {name}" for name in pooled} <= set(quantities)
  assert "FT, mean over templates" in quantities and "FT, mean over both" not in quantities
  for row in quantities.values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  assert len(smoke["claims"]) == 16
  assert all(claim["holds"] is None for claim in smoke["claims"])


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  assert common.execute(icl, [_NAME, "--preset=laptop", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out


def test_single_runs_are_averaged_and_ensembles_pool_them():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 4, 2, 6, 4)).astype(np.float32)
  labels = rng.integers(0, 4, (2, 6))
  row = icl._measure(icl.PRESETS["smoke"], logits, labels)
  np.testing.assert_allclose(
    row["single run"]["accuracy"], np.mean(logits.argmax(-1) == labels), rtol=1e-6
  )
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  for name, axes in (("both", (0, 1)), ("demonstrations", 0), ("templates", 1)):
    right = probs.mean(axes).argmax(-1) == labels
    np.testing.assert_allclose(row[f"mean over {name}"]["accuracy"], right.mean(), rtol=1e-6)
