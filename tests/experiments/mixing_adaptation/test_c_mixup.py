import dataclasses

import numpy as np
import pytest

from experiments.mixing_adaptation.c_mixup import __main__ as experiment
from experiments.mixing_adaptation.c_mixup import mixing, tables
from experiments.mixing_adaptation.c_mixup.__main__ import DIGITS, PRESETS, Config


def test_searches_are_of_equal_size():
  for config in PRESETS.values():
    for rate in (config.learning_rate, config.image_learning_rate):
      space = mixing.search_space(config, rate)
      assert len({len(settings) for settings in space.values()}) == 1
  with pytest.raises(ValueError, match="equal size"):
    mixing.search_space(dataclasses.replace(Config(), alphas=(1.0,)), 0.1)


def test_what_was_chosen_is_what_was_searched():
  config = Config()
  rates = dict.fromkeys(config.tables, config.learning_rate) | {DIGITS: config.image_learning_rate}
  for dataset, rate in rates.items():
    space, chosen = mixing.search_space(config, rate), experiment._space(config, dataset, rate)
    assert list(chosen) == list(space)
    for method, (setting,) in chosen.items():
      assert setting in space[method]
  # A cell of the record, to be read by eye.
  (setting,) = experiment._space(config, "diamonds", 1e-3)[mixing.MAIN]
  assert setting == mixing.Setting(1e-3, 1.5, 1.0, alpha=0.5, bandwidth=0.3)
  with pytest.raises(ValueError, match="no pilot chose settings for 'abalone'"):
    experiment._space(config, "abalone", 1e-3)


@pytest.mark.parametrize("name", ["computers", tables.FRIEDMAN])
def test_splits_are_standardized_by_training_rows(name):
  one, other = (tables.load_task(name, seed, sizes=(70, 10, 20), half=0) for seed in (0, 1))
  assert one.validation.labels.shape == (10, 1) and one.test.labels.shape == (20, 1)
  np.testing.assert_allclose(one.train.inputs.mean(0), 0.0, atol=1e-5)
  np.testing.assert_allclose(one.train.labels.std(0), 1.0, rtol=1e-5)
  assert np.any(one.train.inputs != other.train.inputs)


def test_a_pilot_sees_other_rows(monkeypatch):
  numbers = np.arange(100.0)
  table = numbers[:, None], numbers, ("row",)
  monkeypatch.setattr(tables.data, "load_regression_table", lambda name: table)

  def rows(half):
    task = tables.load_task("auto", 0, sizes=(30, 10, 10), half=half)
    targets = np.concatenate([part.labels[:, 0] for part in task[:3]])
    return set(np.round(task.mean + task.scale * targets).tolist())

  assert rows(0) | rows(1) == set(numbers.tolist())


def test_bandwidths_of_infinity_ignore_what_they_measure():
  rng = np.random.default_rng(0)
  inputs, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 1))
  near = mixing.similarity_features(inputs, targets, mixing.Setting(bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([targets / 0.5, 0 * inputs], axis=1), rtol=1e-6)
  near = mixing.similarity_features(inputs, targets, mixing.Setting(feature_bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([0 * targets, inputs], axis=1), rtol=1e-6)
