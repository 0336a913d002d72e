"""Augmentation and loss of source models, and how adapters run them."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import source_model
from experiments.kit.datasets import Split
from jaxlab import augment, models

_KEY = jax.random.key(0)


def test_signals_are_jittered_and_images_mirrored():
  rng = np.random.default_rng(0)
  signals = rng.normal(size=(4, 40, 1)).astype(np.float32)
  images = rng.normal(size=(20, 3, 4, 1)).astype(np.float32)
  augmented = jax.jit(source_model.augmented)
  expected = jax.jit(augment.jitter_signals)(_KEY, signals)
  np.testing.assert_allclose(augmented(_KEY, signals), expected, atol=1e-6)
  mirrored = np.asarray(augmented(_KEY, images))
  kinds = {
    (np.array_equal(new, old), np.array_equal(new, old[:, ::-1]))
    for new, old in zip(mirrored, images)
  }
  assert kinds == {(True, False), (False, True)}


def test_the_loss_smooths_labels_and_the_forward_pass_chooses_statistics():
  module = models.ConvNet(3, widths=(4,), strides=(2,))
  inputs = jax.random.normal(_KEY, (6, 40, 1))
  batch = Split(inputs, jnp.arange(6) % 3)

  @jax.jit
  def run():
    variables = dict(module.init(_KEY, inputs))
    params = variables.pop("params")
    loss = source_model.smoothed_loss(module, label_smoothing=0.1)(params, variables, batch, _KEY)
    forward = source_model.forward_fn(module, variables)
    stored = source_model.forward_fn(module, variables, train=False)
    seen = source_model.augmented(_KEY, inputs)
    return (
      loss.values,
      forward(params, seen).logits,
      stored(params, seen).logits,
      module.apply({"params": params, **variables}, seen).logits,
    )

  values, by_batch, stored, plain = map(np.asarray, run())
  log_probs = by_batch - np.log(np.exp(by_batch).sum(-1, keepdims=True))
  targets = 0.9 * np.eye(3)[np.arange(6) % 3] + 0.1 / 3
  np.testing.assert_allclose(values, -(targets * log_probs).sum(-1), rtol=1e-5)
  np.testing.assert_allclose(stored, plain, rtol=1e-6)
  assert np.abs(stored - by_batch).max() > 0.01
