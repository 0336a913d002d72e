from functools import partial

import jax
import numpy as np
import pytest

from experiments.mixing_adaptation.correctness_calibration import __main__ as experiment
from experiments.mixing_adaptation.correctness_calibration import calibrators
from jaxlab import losses


def test_every_corruption_keeps_shape_and_labels():
  config = experiment.PRESETS["smoke"]
  test = experiment.load(config, 0)[2]
  sets = experiment.corrupted(config, test, jax.random.key(0))
  assert len(sets) == len(config.corruptions) * len(config.severities)
  for split in jax.device_get(sets):
    assert split.inputs.shape == test.inputs.shape
    np.testing.assert_array_equal(np.bincount(split.labels), np.bincount(test.labels))


def test_transforms_keep_shapes():
  signal = np.arange(5, dtype=np.float32)[None, :, None]
  delayed, blurred, damped = jax.jit(calibrators.transforms)(signal)
  np.testing.assert_array_equal(np.asarray(delayed)[0, :, 0], [0, 0, 0, 1, 2])
  np.testing.assert_allclose(damped, 0.7 * signal)
  assert blurred.shape == signal.shape
  images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
  turned, gray, _ = jax.device_get(jax.jit(calibrators.transforms)(images))
  np.testing.assert_array_equal(turned[:, 0], images[:, :, -1])
  assert gray.shape == images.shape and np.all(gray[..., 0] == gray[..., 1])


def test_scores_are_those_of_the_methods_in_order():
  config = experiment.PRESETS["smoke"]
  module = experiment.network(config, "MLP")
  splits = experiment.load(config, 0)

  @jax.jit
  def scores(key, splits):
    fitted = calibrators.fit(config, module, key, splits[:2])
    return fitted["temperature"], calibrators.evaluate(config, module, fitted, splits[2])

  temperature, measured = jax.device_get(scores(jax.random.key(0), splits))
  assert measured["ECE"].shape == (len(calibrators.METHODS),)
  np.testing.assert_allclose(measured["mean temperature"][:2], [1.0, temperature], rtol=1e-6)
  # A temperature changes no prediction.
  np.testing.assert_allclose(measured["accuracy"], measured["accuracy"][0])


def test_balanced_rows_weigh_as_those_of_the_correctness_aware_loss():
  logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  labels = np.where(np.arange(20) < 15, logits.argmax(1), (logits.argmax(1) + 1) % 3)

  @jax.jit
  def both(logits, labels):
    plain = partial(losses.correctness_aware_loss, balanced=False)
    theirs = losses.correctness_aware_loss(logits, labels)
    return calibrators.balanced(plain)(logits, labels), theirs

  ours, theirs = jax.device_get(both(logits, labels))
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_paper_data_say_how_to_get_them(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="cifar10"):
    experiment.load(experiment.PRESETS["paper"], 0)
