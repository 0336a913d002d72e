"""Adversarial inputs."""

import jax
import numpy as np
import pytest

from jaxlab import augment, losses

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
INPUTS = np.random.default_rng(1).uniform(size=(5, 3)).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]


def loss_fn(inputs, targets):
  return losses.soft_cross_entropy(inputs @ WEIGHTS, targets)


def test_one_step_along_the_sign_of_the_gradient():
  attack = jax.jit(lambda x, e: augment.fgsm(loss_fn, x, TARGETS, epsilon=e, bounds=None))
  probs = np.exp(INPUTS @ WEIGHTS)
  probs /= probs.sum(-1, keepdims=True)
  slope = (probs - TARGETS) @ WEIGHTS.T
  np.testing.assert_allclose(attack(INPUTS, 0.1), INPUTS + 0.1 * np.sign(slope), rtol=1e-6)
  np.testing.assert_array_equal(attack(INPUTS, 0.0), INPUTS)


def test_bounds_gradients_and_errors():
  bounded = jax.jit(lambda x: augment.fgsm(loss_fn, x, TARGETS, epsilon=2.0))
  views = np.asarray(bounded(INPUTS))
  assert set(np.unique(views)) <= {0.0, 1.0}
  assert not np.any(jax.jit(jax.grad(lambda x: bounded(x).sum()))(INPUTS))
  with pytest.raises(ValueError, match=r"epsilon must lie in \[0, inf\), got -1"):
    augment.fgsm(loss_fn, INPUTS, TARGETS, epsilon=-1.0)
