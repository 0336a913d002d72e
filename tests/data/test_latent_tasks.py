"""Tasks with hidden variables have the moments that they state."""

import jax
import numpy as np
import pytest

from jaxlab import data

N = 40_000
LOADINGS = np.array([[1, 0], [2, -1], [0, 0.5]], np.float32)
COEFFICIENTS = np.array([0.6, -0.8], np.float32)
CENTERS = np.array([[4, 0], [-4, 0], [0, 4]], np.float32)


@jax.jit
def draw_factors(key):
  return data.sample_factor_task(key, LOADINGS, COEFFICIENTS, num_samples=N, noise_std=0.3)


@jax.jit
def draw_mixture(key, labels, label_noise):
  return data.sample_mixture_task(key, CENTERS, labels, num_samples=N, label_noise=label_noise)


def test_factor_task():
  task = draw_factors(jax.random.key(0))
  inputs, targets, latents = map(np.asarray, task)
  np.testing.assert_allclose(np.cov(inputs.T), LOADINGS @ LOADINGS.T + np.eye(3), atol=0.1)
  np.testing.assert_allclose(np.cov(latents.T), np.eye(2), atol=0.03)
  np.testing.assert_allclose(inputs.mean(0), 0, atol=0.05)
  noise = targets - latents @ COEFFICIENTS
  np.testing.assert_allclose(noise.std(), 0.3, rtol=0.02)
  np.testing.assert_allclose(np.cov((inputs - latents @ LOADINGS.T).T), np.eye(3), atol=0.03)
  np.testing.assert_allclose(np.corrcoef(noise, inputs.T)[0, 1:], 0, atol=0.02)


@pytest.mark.parametrize("label_noise", [0.0, 0.25])
def test_mixture_task(label_noise):
  labels = np.array([0, 1, 1])
  task = draw_mixture(jax.random.key(1), labels, label_noise)
  inputs, drawn, components = map(np.asarray, task)
  assert drawn.dtype == components.dtype == np.int32
  np.testing.assert_allclose(np.bincount(components) / N, 1 / 3, atol=0.01)
  np.testing.assert_allclose((drawn != labels[components]).mean(), label_noise, atol=0.01)
  for k in range(3):
    own = inputs[components == k]
    np.testing.assert_allclose(own.mean(0), CENTERS[k], atol=0.05)
    np.testing.assert_allclose(np.cov(own.T), np.eye(2), atol=0.05)


def test_errors():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r"noise_std must lie in \[0, inf\), got -0.5"):
    data.sample_factor_task(key, LOADINGS, COEFFICIENTS, num_samples=2, noise_std=-0.5)
  with pytest.raises(ValueError, match="coefficients must have shape"):
    data.sample_factor_task(key, LOADINGS, COEFFICIENTS[:1], num_samples=2)
  with pytest.raises(ValueError, match=r"label_noise must lie in \[0, 0.5\], got 0.6"):
    data.sample_mixture_task(key, CENTERS, np.zeros(3, int), num_samples=2, label_noise=0.6)
  with pytest.raises(ValueError, match="component_labels must lie in"):
    data.sample_mixture_task(key, CENTERS, np.array([0, 1, 2]), num_samples=2)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    data.sample_mixture_task(key, CENTERS, np.zeros(3, int), num_samples=0)
