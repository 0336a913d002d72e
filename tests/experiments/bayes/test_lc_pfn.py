import json

import numpy as np
import pytest

from experiments import common
from experiments.bayes import lc_pfn
from experiments.bayes import lc_pfn_rivals as rivals


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  directory = tmp_path_factory.mktemp("lc_pfn") / "run"
  assert (
    common.execute(lc_pfn, ["lc_pfn", "--preset=smoke", "--mesh=data:2", f"--workdir={directory}"])
    == 0
  )
  return json.loads((directory / "results.json").read_text())


def test_smoke_measures_network_and_chain(smoke):
  assert set(smoke["quantities"]) == {"PFN", "MCMC 20"}
  for row in smoke["quantities"].values():
    assert all(np.isfinite(entry["mean"]) for entry in row.values())


def test_the_step_of_a_preset_compiles_from_shapes(capsys):
  assert common.execute(lc_pfn, ["lc_pfn", "--preset=laptop", "--dry_run", "--mesh=data:2"]) == 0
  assert "parameters" in capsys.readouterr().out


def test_power_law_finds_its_own():
  steps = np.arange(1, 31)
  curve = 0.9 - 0.4 * steps**-0.7
  np.testing.assert_allclose(rivals._power_law(curve[:12], 30), curve[-1], atol=1e-3)


def test_increments_are_those_of_the_seen_part():
  rng = np.random.default_rng(0)
  values = np.cumsum(rng.normal(0.1, 0.2, (400, 12)), axis=1)
  lengths = np.full(400, 8)
  values[:, 8:] = np.nan
  spread = rivals.increment_spread(values, lengths)
  np.testing.assert_allclose(spread["bias"][3], 0.3, atol=0.03)
  np.testing.assert_allclose(spread["std"][3], 0.2 * np.sqrt(3), atol=0.03)


def test_gaussian_rivals_use_other_curves_for_their_spread():
  rng = np.random.default_rng(0)
  steps = np.arange(1, 13)
  values = 0.8 - 0.3 / steps + rng.normal(0.0, 0.01, (80, 12))
  lengths, observed = np.full(80, 12), np.full(80, 5)
  rows = rivals.gaussian_rivals(
    values, lengths, observed, test=np.arange(40), rest=np.arange(40, 80)
  )
  gap = 0.3 / 5 - 0.3 / 12
  assert rows["last value"]["absolute error"] == pytest.approx(gap, abs=0.005)
  assert rows["last value, bias removed"]["absolute error"] < 0.015
  assert rows["last value, bias removed"]["NLL"] < rows["last value"]["NLL"]


def test_test_data_sets_are_apart():
  curves = {"dataset_ids": np.repeat(np.arange(20), 5)}
  test, rest = lc_pfn._split_data_sets(lc_pfn.Config(), curves, np.random.default_rng(0))
  assert not set(curves["dataset_ids"][test]) & set(curves["dataset_ids"][rest])
  assert len(test) == 25 and len(test) + len(rest) == 100


class _Oracle:
  """Knows every curve: logits that put all mass on the bar of the true value."""

  def __init__(self, borders):
    self.borders = borders

  def logits(self, values, observed):
    inside = (values[..., None] >= self.borders[:-1]) & (values[..., None] < self.borders[1:])
    return np.where(inside, 100.0, 0.0) if isinstance(values, np.ndarray) else 100.0 * inside


def test_an_oracle_stops_early_and_loses_nothing():
  import jax.numpy as jnp

  rng = np.random.default_rng(0)
  config = lc_pfn.Config(length=10, num_orders=4, test_share=0.5)
  steps = np.arange(1, 11)
  final = rng.uniform(0.3, 0.9, 24)
  values = (final[:, None] * (1 - 0.5 / steps)).astype(np.float32)
  values[:, 8:] = np.nan
  curves = {
    "values": values,
    "lengths": np.full(24, 8),
    "dataset_ids": np.repeat(np.arange(4), 6),
  }
  oracle = _Oracle(jnp.linspace(0.0, 1.0, 400))
  part = lc_pfn._judge_stopping(config, oracle, curves, rng)
  row = part["rows"]["PFN"]
  assert row["stopping/steps ratio"] > 1.5
  assert row["stopping/regret"] < 0.003  # The width of a bar.
