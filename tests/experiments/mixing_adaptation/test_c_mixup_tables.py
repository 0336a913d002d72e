import numpy as np

from experiments.mixing_adaptation import c_mixup_tables as tables


def test_splits_are_standardised_by_training_rows():
  tasks = tables.load_tasks("diabetes", range(2), max_rows=100)
  assert tasks.train.inputs.shape == (2, 70, 10)
  assert tasks.validation.labels.shape == (2, 10, 1) and tasks.test.labels.shape == (2, 20, 1)
  np.testing.assert_allclose(tasks.train.inputs.mean(1), 0.0, atol=1e-5)
  np.testing.assert_allclose(tasks.train.labels.std(1), 1.0, rtol=1e-5)
  assert np.any(tasks.train.inputs[0] != tasks.train.inputs[1])


def test_bandwidths_of_infinity_ignore_what_they_measure():
  rng = np.random.default_rng(0)
  inputs, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 1))
  near = tables.similarity_features(inputs, targets, tables.Setting(bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([targets / 0.5, 0 * inputs], axis=1), rtol=1e-6)
  near = tables.similarity_features(inputs, targets, tables.Setting(feature_bandwidth=0.5))
  np.testing.assert_allclose(near, np.concatenate([0 * targets, inputs], axis=1), rtol=1e-6)


def test_dropout_keeps_the_mean():
  noise = np.arange(256, dtype=np.uint8)
  for rate in (0.0, 0.25, 0.4):
    found = np.asarray(tables.dropped(noise, rate, np.ones(256, np.float32)))
    np.testing.assert_allclose(found.mean(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.mean(found == 0), rate, atol=1 / 256)
