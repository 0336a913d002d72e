import numpy as np
import pytest

from experiments.bayes import lc_pfn_rivals as rivals


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
