import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bayes.lc_pfn import baselines, real
from experiments.bayes.lc_pfn.__main__ import Config


def test_test_data_sets_are_apart():
  ids = np.repeat(np.arange(20), 5)
  test, rest = real.split_data_sets(Config(), ids, np.random.default_rng(0))
  assert not set(ids[test]) & set(ids[rest])
  assert len(test) == 25 and len(test) + len(rest) == 100


class _Oracle:
  """Knows every curve: logits that put all mass on the bar of the true value."""

  def __init__(self, borders):
    self.borders = borders

  def logits(self, values, observed):
    return 100.0 * (
      (values[..., None] >= self.borders[:-1]) & (values[..., None] < self.borders[1:])
    )


def test_an_oracle_stops_early_and_loses_nothing():
  rng = np.random.default_rng(0)
  config = Config(length=10, num_orders=4, test_share=0.5)
  final = rng.uniform(0.3, 0.9, 24)
  values = (final[:, None] * (1 - 0.5 / np.arange(1, 11))).astype(np.float32)
  values[:, 8:] = np.nan
  curves = real.Curves(values, np.full(24, 8), np.repeat(np.arange(4), 6), np.full(24, 3))
  oracle = _Oracle(jnp.linspace(0.0, 1.0, 400))
  row = real.evaluate_stopping(config, oracle, curves, rng)["PFN"]
  assert np.mean(row["times fewer steps"]) > 1.5
  assert np.mean(row["regret"]) < 0.003  # The width of a bar.


def test_power_law_finds_its_own():
  steps = np.arange(1, 31)
  curve = 0.9 - 0.4 * steps**-0.7
  np.testing.assert_allclose(baselines.power_law(curve[:12], 30), curve[-1], atol=1e-3)


def test_increments_are_those_of_the_seen_part():
  rng = np.random.default_rng(0)
  values = np.cumsum(rng.normal(0.1, 0.2, (400, 12)), axis=1)
  lengths = np.full(400, 8)
  values[:, 8:] = np.nan
  spread = baselines.increment_spread(values, lengths)
  np.testing.assert_allclose(spread["bias"][3], 0.3, atol=0.03)
  np.testing.assert_allclose(spread["std"][3], 0.2 * np.sqrt(3), atol=0.03)


def test_gaussian_baselines_use_other_curves_for_their_spread():
  rng = np.random.default_rng(0)
  steps = np.arange(1, 13)
  values = 0.8 - 0.3 / steps + rng.normal(0.0, 0.01, (80, 12))
  lengths, observed = np.full(80, 12), np.full(80, 5)
  rows = baselines.gaussian_baselines(
    values, lengths, observed, test=np.arange(40), rest=np.arange(40, 80)
  )
  gap = 0.3 / 5 - 0.3 / 12
  assert rows["last value"]["absolute error"] == pytest.approx(gap, abs=0.005)
  assert rows["last value, bias removed"]["absolute error"] < 0.015
  assert rows["last value, bias removed"]["NLL"] < rows["last value"]["NLL"]
