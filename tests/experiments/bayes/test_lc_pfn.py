import jax
import numpy as np
import pytest
from scipy import stats

from experiments.bayes.lc_pfn import networks, prediction, stopping
from experiments.kit.prior_fitting import Fitted


def curves_of(values, groups=None):
  values = np.asarray(values, np.float32)
  return networks.curves_by_epoch(values, np.arange(len(values)) if groups is None else groups)


def test_calibration_removes_what_all_other_data_sets_share():
  rng = np.random.default_rng(0)
  last = rng.uniform(0.4, 0.8, (120, 1))
  curves = curves_of(np.repeat(last, 3, axis=1), np.repeat(np.arange(6), 20))
  # Too low by .1 and four times too confident.
  means = last - 0.1 + rng.normal(0.0, 0.04, last.shape)
  rows = prediction.scores({"m": [prediction.gaussians(means, np.full_like(means, 0.01))]}, curves)
  ideal = -stats.norm(0, 0.04).logpdf(last - means - 0.1).mean()
  assert rows["m"]["calibrated NLL"] == pytest.approx(ideal, abs=0.1)
  assert rows["m"]["zero-shot NLL"] > ideal + 5


def test_calibration_never_sees_the_data_set_that_is_scored():
  rng = np.random.default_rng(0)
  last = rng.uniform(0.4, 0.8, (40, 1))
  groups = np.repeat([0, 1], 20)
  curves = curves_of(np.repeat(last, 3, axis=1), groups)
  bias = np.where(groups == 0, 0.1, 0.0)[:, None]
  spread = np.full_like(last, 0.02)
  shifted = prediction.scores({"m": [prediction.gaussians(last - bias, spread)]}, curves)["m"]
  # Each data set teaches the other one the wrong bias.
  assert shifted["calibrated NLL"] > shifted["zero-shot NLL"] - 8
  assert shifted["calibrated NLL"] > -stats.norm(0, 0.02).logpdf(0) + 2


def test_calibration_chooses_among_variants():
  last = np.random.default_rng(0).uniform(0.4, 0.8, (40, 1))
  curves = curves_of(np.repeat(last, 3, axis=1), np.repeat(np.arange(4), 10))
  spread = np.full_like(last, 0.05)
  variants = [prediction.gaussians(1 - last, spread), prediction.gaussians(last, spread)]
  both, good = (
    prediction.scores({"m": chosen}, curves)["m"] for chosen in (variants, variants[1:])
  )
  assert both["calibrated NLL"] == good["calibrated NLL"]
  assert both["zero-shot NLL"] > good["zero-shot NLL"]


def test_power_law_finds_its_own():
  values = 0.9 - 0.4 * np.arange(1, 31) ** np.array([[-0.7], [-1.5]])
  found = prediction.power_law(curves_of(values).seen(12))[0]
  np.testing.assert_allclose(found.center, values[:, -1], atol=3e-3)


def test_last_value_spreads_like_a_random_walk():
  rng = np.random.default_rng(0)
  values = 0.5 + np.cumsum(rng.normal(0.0, 0.05, (2, 401)), axis=1)
  walk, common = prediction.last_value(curves_of(values).seen(385))
  np.testing.assert_allclose(walk.center, values[:, 384], rtol=1e-6)
  expected = stats.norm(values[:, 384], 0.05 * 4).logpdf(values[:, 384])
  np.testing.assert_allclose(walk.log_prob(np.float32(values[:, 384])), expected, atol=0.1)
  assert np.ptp(common.log_prob(np.float32(values[:, 384]))) < 1e-3


def test_curves_over_size_come_with_their_settings():
  drawn = jax.jit(lambda key: networks.draw_by_size(key, batch_size=64))(jax.random.key(0))
  x, y = np.asarray(drawn.x), np.asarray(drawn.y)
  assert x.shape == (64, 20, 3) and y.shape == (64, 20)
  np.testing.assert_allclose(x[:, :12, 0], np.tile(np.arange(12) / 31, (64, 1)), rtol=1e-6)
  assert (x >= 0).all() and (x <= 1).all() and set(x[..., 1].ravel()) == {0.0, 1.0}
  # One setting per curve.
  assert np.ptp(x[..., 1:], axis=1).max() == 0 and np.isfinite(y).all()


def test_an_oracle_stops_early_and_loses_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  borders = np.linspace(0.0, 1.0, 401, dtype=np.float32)
  final = rng.uniform(0.3, 0.9, 48)
  curves = curves_of(final[:, None] * (1 - 0.5 / np.arange(1, 9)), np.repeat(np.arange(8), 6))

  def oracle(network, seed, curves):  # All mass on the bar of the true value.
    values = curves.values[..., None]
    return 100.0 * ((values >= borders[:-1]) & (values < borders[1:]))

  monkeypatch.setattr(stopping, "logits_of", oracle)
  row = stopping.evaluate_stopping(Fitted(None, [], borders), 0, curves, 4, rng)["PFN"]
  assert row["steps"].max() < 0.7
  assert row["regret"].max() < 0.003  # The width of a bar.
  assert row["times fewer epochs"] == pytest.approx(1 / row["steps"].min(), rel=0.3)


def test_chances_of_last_value_are_those_of_known_increments():
  rng = np.random.default_rng(0)
  known = np.cumsum(rng.normal(0.1, 0.2, (400, 6)), axis=1)
  values, levels = np.array([[0.1, 0.3, 0.2, 0.4, 0.5, 0.6]]), np.array([0.2, 0.9])
  chances = stopping.last_value_chances(values, known, levels)
  assert chances.shape == (5, 1, 2)
  steps = [known[:, d:] - known[:, : 6 - d] for d in (1, 2, 3)]
  for level, chance in zip(levels, chances[2, 0]):  # Three values are seen, three are to come.
    expected = max(stats.norm.sf(level, 0.2 + s.mean(), s.std()) for s in steps)
    assert chance == pytest.approx(expected, rel=1e-3)
