import functools

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxlab import models
from jaxlab.models import series_imputer

RNG = np.random.default_rng(0)
# Two sines in two channels of noise, whose phases say what is missing.
PHASES = RNG.uniform(0, 2 * np.pi, (200, 1, 1))
COMPLETE = np.sin(PHASES + np.arange(10) * np.pi / 5 + np.array([[0.0], [1.0]]))
COMPLETE = 20 + 4 * (COMPLETE + 0.1 * RNG.normal(size=COMPLETE.shape))
MISSING = RNG.random(COMPLETE.shape) < 0.3
MISSING[5] = True
INCOMPLETE = np.where(MISSING, np.nan, COMPLETE)
SIZES = {"latent_dim": 3, "width": 16, "num_steps": 200, "batch_size": 16, "learning_rate": 1e-2}


@functools.cache
def fitted():
  return models.SeriesImputer(**SIZES).fit(INCOMPLETE)


def _train(model, key, values, mask, lengthscale, learning_rate, **sizes):
  return {"mean": values.mean((0, 1))}, np.zeros(sizes["num_steps"])


def _complete(model, params, key, values, mask, lengthscale, num_draws, num_samples):
  means = np.broadcast_to(params["mean"], values.shape)
  return means, np.broadcast_to(means, (num_samples, *values.shape))


@parametrize_with_checks([models.SeriesImputer()])
def test_scikit_learn_conventions(estimator, check, monkeypatch):
  # The checks are about conventions; a program for every size of data would take minutes.
  monkeypatch.setattr(series_imputer, "_train", _train)
  monkeypatch.setattr(series_imputer, "_complete", _complete)
  check(estimator)


def test_imputations_are_better_than_means_and_observations_stay():
  model = fitted()
  means, draws = model.transform(INCOMPLETE), model.sample(INCOMPLETE, 7)
  assert means.shape == COMPLETE.shape and draws.shape == (7, *COMPLETE.shape)
  np.testing.assert_array_equal(means[~MISSING], COMPLETE[~MISSING])
  np.testing.assert_array_equal(
    draws[:, ~MISSING], np.broadcast_to(COMPLETE, draws.shape)[:, ~MISSING]
  )
  assert np.isfinite(draws).all()
  judged = MISSING.copy()
  judged[5] = False
  error = np.abs(means - COMPLETE)[judged].mean()
  plain = np.abs(np.nanmean(INCOMPLETE, (0, 2))[:, None] - COMPLETE)[judged].mean()
  assert error < 0.8 * plain
  assert model.losses_.shape == (200,) and model.losses_[-50:].mean() < model.losses_[:50].mean()
  # Where nothing is observed, draws differ most.
  spread = draws.std(0)
  assert spread[5].mean() > spread[judged].mean()


def test_draws_follow_their_seed():
  model = fitted()
  first, again, other = (model.sample(INCOMPLETE[:9], 7, random_state=seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  assert clone(model).get_params() == model.get_params()


def test_bad_data_are_refused():
  model = models.SeriesImputer(**SIZES)
  with pytest.raises(NotFittedError):
    model.transform(INCOMPLETE)
  with pytest.raises(ValueError, match="X has no observed value"):
    model.fit(np.full((3, 2, 4), np.nan))
  with pytest.raises(ValueError, match="infinity"):
    model.fit(np.where(MISSING, np.inf, COMPLETE))
  with pytest.raises(ValueError, match="two or three axes, got shape"):
    model.fit(INCOMPLETE[None])
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    models.SeriesImputer(num_steps=0).fit(INCOMPLETE)
  with pytest.raises(ValueError, match="X has 9 time steps, but 10 were fitted"):
    fitted().transform(INCOMPLETE[..., 1:])
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    fitted().sample(INCOMPLETE, 0)
