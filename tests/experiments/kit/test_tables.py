import numpy as np
import pytest
from sklearn import linear_model

from experiments.kit import tables

NAMES = ("iris", "wine", "breast_cancer", "pima", "heart", "australian", "bupa", "haberman")


def test_a_split_is_balanced_and_whole():
  y = np.repeat([0, 1], [40, 160])
  train, test = tables.balanced_split(y, num_train=20, rng=np.random.default_rng(0))
  assert y[train].sum() == 10 and len(train) == 20
  assert sorted(np.concatenate([train, test])) == list(range(200))


def test_calibration_error_of_a_calibrated_and_of_a_boastful_forecast():
  rng = np.random.default_rng(0)
  probs = rng.uniform(size=20_000)
  labels = (rng.uniform(size=20_000) < probs).astype(int)
  assert tables.calibration_error(probs, labels) < 0.02
  assert tables.calibration_error(np.full(100, 0.9), np.tile([0, 1], 50)) == pytest.approx(0.4)


def test_gaussian_scores():
  rng = np.random.default_rng(0)
  y = rng.normal(3.0, 2.0, 50_000)
  scores = tables.score_gaussian(np.full_like(y, 3.0), np.full_like(y, 2.0), y)
  entropy = 0.5 * np.log(2 * np.pi * np.e * 4.0)
  np.testing.assert_allclose(scores["NLL"], entropy, atol=0.02)
  np.testing.assert_allclose(scores["RMSE"], 2.0, atol=0.02)
  np.testing.assert_allclose(scores["90% coverage"], 0.9, atol=0.01)


def test_a_regressor_without_a_spread_gets_its_held_out_one():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 2))
  y = x @ [1.0, -1.0] + rng.normal(0.0, 0.5, 200)
  ridge = tables.regressors(0, num_features=2)["ridge"]
  mean, std = tables.gaussian_prediction(ridge, (x, y), x[:5], seed=0)
  reference = linear_model.LinearRegression().fit(x, y).predict(x[:5])
  np.testing.assert_allclose(mean, reference, atol=0.05)
  np.testing.assert_allclose(std, 0.5, atol=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_binary_finite_and_narrow(name):
  x, y = tables.binary_table(name)
  assert np.isfinite(x).all() and x.shape[1] <= 16
  assert set(np.unique(y)) == {0, 1} and np.bincount(y).min() > 30
