import json

import numpy as np
import pytest

from experiments import common
from experiments.bayes import pfn, pfn_tasks


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("pfn") / "run"
  arguments = ["pfn", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"]
  assert common.execute(pfn, arguments) == 0
  return directory, arguments


def test_smoke_measures_every_task(smoke):
  directory, _ = smoke
  stored = json.loads((directory / "results.json").read_text())
  names = {name.split("/")[0] for row in stored["quantities"].values() for name in row}
  assert names == {"gp", "series", "optimize", "gp_hyper", "tabular", "regression"}
  values = [e["mean"] for row in stored["quantities"].values() for e in row.values()]
  assert np.isfinite(values).all()
  assert {claim["holds"] for claim in stored["claims"]} == {None}
  assert (directory / "figure.png").stat().st_size > 10_000


def test_a_finished_run_is_shown_not_repeated(smoke, capsys):
  directory, arguments = smoke
  before = (directory / "results.json").read_bytes()
  assert common.execute(pfn, arguments) == 0
  assert (directory / "results.json").read_bytes() == before
  assert "exact GP" in capsys.readouterr().out


def test_the_exact_posterior_is_not_beaten_by_a_wrong_one(smoke):
  directory, _ = smoke
  rows = json.loads((directory / "results.json").read_text())["quantities"]
  assert rows["exact GP"]["gp/mean gap"]["mean"] == 0.0
  assert rows[pfn_tasks.WRONG_GP]["gp/mean gap"]["mean"] > 0.0
  # With no context every Gaussian process of the prior's variance says the same.
  np.testing.assert_allclose(
    rows["prior"]["gp/NLL c=0"]["mean"], rows["exact GP"]["gp/NLL c=0"]["mean"], rtol=1e-4
  )


@pytest.mark.parametrize("preset", ["laptop", "demo"])
def test_the_step_of_a_preset_compiles_from_shapes(preset, capsys):
  assert common.execute(pfn, ["pfn", f"--preset={preset}", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out
