import numpy as np
import pytest

from experiments.bayes.lc_pfn import prediction, stopping
from experiments.bayes.lc_pfn.__main__ import Config


def test_test_data_sets_are_apart():
  ids = np.repeat(np.arange(20), 5)
  test, rest = prediction.split_data_sets(ids, np.random.default_rng(0))
  assert not set(ids[test]) & set(ids[rest])
  assert len(test) == 25 and len(test) + len(rest) == 100


def test_an_oracle_stops_early_and_loses_nothing():
  rng = np.random.default_rng(0)
  config, borders = Config(length=10, num_orders=4), np.linspace(0.0, 1.0, 401, dtype=np.float32)

  def oracle(values, observed):  # All mass on the bar of the true value.
    return 100.0 * ((values[..., None] >= borders[:-1]) & (values[..., None] < borders[1:]))

  final = rng.uniform(0.3, 0.9, 48)
  values = (final[:, None] * (1 - 0.5 / np.arange(1, 11))).astype(np.float32)
  values[:, 8:] = np.nan
  curves = prediction.Curves(values, np.full(48, 8), np.full(48, 3), np.repeat(np.arange(8), 6))
  row = stopping.evaluate_stopping(config, oracle, borders, curves, rng)["PFN"]
  assert row["times fewer steps"] > 1.5
  assert row["regret"] < 0.003  # The width of a bar.


def test_power_law_finds_its_own():
  steps = np.arange(1, 31)
  curve = 0.9 - 0.4 * steps**-0.7
  np.testing.assert_allclose(prediction.power_law(curve[:12], 30), curve[-1], atol=1e-3)


def test_increments_are_those_of_the_seen_part():
  rng = np.random.default_rng(0)
  values = np.cumsum(rng.normal(0.1, 0.2, (400, 12)), axis=1)
  lengths = np.full(400, 8)
  values[:, 8:] = np.nan
  bias, std = stopping.increment_spread(values, lengths)
  np.testing.assert_allclose(bias[3], 0.3, atol=0.03)
  np.testing.assert_allclose(std[3], 0.2 * np.sqrt(3), atol=0.03)


def test_gaussian_baselines_use_other_curves_for_their_spread():
  rng = np.random.default_rng(0)
  steps = np.arange(1, 13)
  values = 0.8 - 0.3 / steps + rng.normal(0.0, 0.01, (80, 12))
  curves = prediction.Curves(values, np.full(80, 12), np.full(80, 5))
  rows = prediction.gaussian_baselines(curves.rows(slice(40)), curves.rows(slice(40, None)))
  gap = 0.3 / 5 - 0.3 / 12
  assert rows["last value"]["absolute error"] == pytest.approx(gap, abs=0.005)
  assert rows["last value, bias removed"]["absolute error"] < 0.015
  assert rows["last value, bias removed"]["NLL"] < rows["last value"]["NLL"]
