import json

import numpy as np
import pytest

from experiments import common
from experiments.bayes import lc_pfn


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("lc_pfn") / "run"
  assert (
    common.execute(lc_pfn, ["lc_pfn", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"])
    == 0
  )
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_network_and_chain(smoke):
  quantities = smoke["quantities"]
  simple = {"last value", "last value, bias removed", "power law", "power law, bias removed"}
  assert set(quantities) == {"PFN", "MCMC 20"} | simple
  for row in quantities.values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())
  families = {name.split("/")[0] for name in quantities["PFN"]}
  assert families == {"prior", "lcdb", "stopping"}
  assert all("lcdb/NLL" in row for row in quantities.values())


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  assert common.execute(lc_pfn, ["lc_pfn", "--preset=laptop", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out
