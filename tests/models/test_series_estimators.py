import itertools

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxlab import algorithms, augment, models
from jaxlab.models import series_estimators

SIZES = {"num_features": 30, "max_dilation_log2": 2}


def series(num_rows, seed):
  """Three channels of noise; the second has one of three motifs somewhere."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(num_rows, 3, 40))
  labels = rng.integers(0, 3, num_rows)
  steps = np.arange(12)
  motifs = np.stack([np.sin(steps * np.pi / 6), np.sin(steps * np.pi / 3), np.sign(steps - 5.5)])
  for row, label, start in zip(values, labels, rng.integers(0, 28, num_rows)):
    row[1, start : start + 12] += 3 * motifs[label]
  return 7 + 2 * values, np.array(["sine", "fast sine", "step"])[labels]


def _numpy_features(values, kernels, num_levels):
  """Another transform of the same shape: a program for every size of data would take minutes."""
  c, k, j = np.asarray(kernels).T
  turned = np.asarray(values)[:, c] * np.cos(np.arange(values.shape[2]) * (k + j)[:, None] / 9)
  parts = [turned.mean(-1), turned.max(-1), np.abs(turned).mean(-1), turned.std(-1)]
  return np.stack(parts * num_levels, axis=-1).astype(np.float32)


def _first_kernels(transform_fn, kernels, labels, *, block_size, **_):
  transform_fn(kernels[:block_size])
  return algorithms.KernelSelection(kernels[:60], np.eye(60, 8, dtype=bool) | (np.arange(8) < 4))


@parametrize_with_checks([models.LightWaveSClassifier()])
def test_scikit_learn_conventions(estimator, check, monkeypatch):
  def scatter(values, kernels, *, max_dilation_log2, num_levels):
    return _numpy_features(values, kernels, num_levels)

  def scatter_all(values, *, max_dilation_log2):
    kernels = models.scattering_kernels(num_channels=values.shape[1])
    return _numpy_features(values, kernels, 2)

  monkeypatch.setattr(series_estimators, "scatter_features", scatter)
  monkeypatch.setattr(series_estimators, "scatter_all_features", scatter_all)
  monkeypatch.setattr(series_estimators, "select_kernel_features", _first_kernels)
  check(estimator)


def test_the_classifier_is_its_parts():
  (x, y), (other, truth) = series(120, 0), series(60, 1)
  model = models.LightWaveSClassifier(**SIZES).fit(x, y)
  assert np.mean(model.predict(other) == truth) > 0.8
  assert model.feature_mask_.sum() == 30 and set(model.channels_) <= {0, 1, 2}
  assert np.mean(np.repeat(model.kernels_[:, 0], model.feature_mask_.sum(1)) == 1) > 0.6

  statistics = augment.channel_statistics(np.float32(x))
  scaled = [augment.standardize_channels(np.float32(z), statistics=statistics) for z in (x, other)]
  features = [
    np.asarray(models.scatter_features(z, model.kernels_, max_dilation_log2=2)) for z in scaled
  ]
  features = [z[:, model.feature_mask_] for z in features]
  np.testing.assert_allclose(model.selected_features(other), features[1], atol=1e-5)
  penalties = 120 * np.logspace(-3, 3, 10)
  head = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=penalties)).fit(features[0], y)
  scores = head.decision_function(features[1])
  np.testing.assert_allclose(model.decision_function(other), scores, atol=1e-3)
  # Channels that are not read may hold anything.
  spoiled = other.copy()
  for c in set(range(3)) - set(model.channels_):
    spoiled[:, c] = 1e6
  np.testing.assert_array_equal(model.predict(spoiled), model.predict(other))
  assert clone(model).get_params() == model.get_params()


def test_aeons_arrays_and_two_axes_agree():
  x, y = series(120, 0)
  flat, cube = x[:, 1], x[:, 1:2]
  models_ = [models.LightWaveSClassifier(**SIZES, features="l1").fit(z, y) for z in (flat, cube)]
  np.testing.assert_array_equal(models_[0].kernels_, models_[1].kernels_)
  np.testing.assert_array_equal(models_[0].predict(flat), models_[1].predict(cube))
  assert not models_[0].feature_mask_[:, 4:].any()


def test_few_examples_select():
  x, y = series(120, 0)
  drawn = [
    models.LightWaveSClassifier(**SIZES, max_examples=60, random_state=seed).fit(x, y).kernels_
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert drawn[0].shape != drawn[2].shape or (drawn[0] != drawn[2]).any()


def test_bad_data_are_refused():
  (x, y), model = series(120, 0), models.LightWaveSClassifier(**SIZES)
  with pytest.raises(NotFittedError):
    model.predict(x)
  with pytest.raises(ValueError, match="y has one class, sine"):
    model.fit(x, ["sine"] * 120)
  with pytest.raises(ValueError, match="series of 1 time steps"):
    model.fit(x[..., :1], y)
  with pytest.raises(ValueError, match="two or three axes, got shape"):
    model.fit(x[..., None], y)
  with pytest.raises(ValueError, match="NaN"):
    model.fit(np.where(np.arange(40) == 3, np.nan, x), y)
  with pytest.raises(ValueError, match="all series are equal"):
    model.fit(np.ones_like(x), y)
  with pytest.raises(ValueError, match="features must be one of"):
    models.LightWaveSClassifier(features="l3").fit(x, y)
  model.fit(x, y)
  with pytest.raises(ValueError, match="X has 39 time steps, but 40 were fitted"):
    model.predict(x[..., 1:])
  for channels, steps in itertools.product((2, 4), (40,)):
    with pytest.raises(ValueError, match=f"{channels} features"):
      model.predict(np.ones((2, channels, steps)))
