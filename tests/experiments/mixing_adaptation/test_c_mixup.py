import dataclasses

import jax
import numpy as np
import pytest

from experiments.mixing_adaptation.c_mixup import mixing, tables
from experiments.mixing_adaptation.c_mixup.__main__ import PRESETS, Config
from experiments.mixing_adaptation.c_mixup.digits import image_settings


def test_searches_are_of_equal_size():
  for config in PRESETS.values():
    for settings in (tables.table_settings(config, 0.1), image_settings(config)):
      assert set(settings) == set(mixing.LAYERS)
      assert len({len(grid) for grid in settings.values()}) == 1
  with pytest.raises(ValueError, match="unequal"):
    tables.table_settings(dataclasses.replace(Config(), alphas=(1.0,)), 0.1)


def test_splits_are_standardized_by_training_rows():
  tasks = tables.load_tasks("diabetes", range(2), max_rows=100)
  assert tasks.train.inputs.shape == (2, 70, 10)
  assert tasks.validation.labels.shape == (2, 10, 1) and tasks.test.labels.shape == (2, 20, 1)
  np.testing.assert_allclose(tasks.train.inputs.mean(1), 0.0, atol=1e-5)
  np.testing.assert_allclose(tasks.train.labels.std(1), 1.0, rtol=1e-5)
  assert np.any(tasks.train.inputs[0] != tasks.train.inputs[1])


def test_bandwidths_of_infinity_ignore_what_they_measure():
  rng = np.random.default_rng(0)
  inputs, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 1))
  near = mixing.similarity_features(inputs, targets, mixing.Setting(bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([targets / 0.5, 0 * inputs], axis=1), rtol=1e-6)
  near = mixing.similarity_features(inputs, targets, mixing.Setting(feature_bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([0 * targets, inputs], axis=1), rtol=1e-6)


def test_dropout_keeps_the_mean():
  hidden = np.ones((1000, 30), np.float32)
  draw = jax.jit(mixing.dropout)
  for rate in (0.0, 0.25, 0.4):
    thinned = np.asarray(draw(jax.random.key(0), hidden, rate))
    dropped = np.mean(thinned == 0)
    np.testing.assert_allclose(dropped, round(256 * rate) / 256, atol=4 * 0.5 / hidden.size**0.5)
    np.testing.assert_allclose(thinned.max(), 1 / (1 - round(256 * rate) / 256), rtol=1e-5)
