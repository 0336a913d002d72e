"""Augmentation and smoothing of signals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from jaxlab import augment

KEY = jax.random.key(0)
BLUR = jax.jit(augment.blur_signals)


@pytest.fixture(scope="module")
def signals():
  return np.random.default_rng(0).standard_normal((4, 20, 2)).astype(np.float32)


@pytest.mark.parametrize("std", [0.001, 0.5, 2.0])
def test_blur_matches_scipy(signals, std):
  expected = gaussian_filter1d(signals.astype(np.float64), std, axis=1, mode="nearest", radius=6)
  np.testing.assert_allclose(BLUR(signals, std), expected, atol=1e-5)


def test_blur_takes_one_std_per_row(signals):
  stds = np.array([0.1, 0.5, 1.0, 2.0], np.float32)
  together = BLUR(signals, stds)
  for i, std in enumerate(stds):
    np.testing.assert_allclose(together[i], BLUR(signals, std)[i], atol=1e-6)


def test_jitter_is_an_affine_map_of_a_shifted_signal():
  """A straight line shows gain, shift and offset: y = g (t - s) + o away from the edges."""
  line = jnp.tile(jnp.arange(40.0)[None, :, None], (2000, 1, 1))
  out = np.asarray(jax.jit(augment.jitter_signals)(KEY, line))[:, 8:-8, 0]
  slope, level = np.polyfit(np.arange(8, 32), out.T, 1)
  assert 0.69 < slope.min() < 0.72 and 1.28 < slope.max() < 1.31
  shift = -level / slope
  assert -2.4 < shift.min() < -1.8 and 1.8 < shift.max() < 2.4
  assert abs(shift.mean()) < 0.1 and 1.3 < shift.std() < 1.5
  residual = out - (slope * np.arange(8, 32)[:, None] + level).T
  # The blur of half of the rows removes some of the noise.
  assert 0.04 < residual.std() < 0.05


def test_jitter_blurs_half_of_the_rows():
  spike = jnp.zeros((2000, 41, 1)).at[:, 20].set(1000.0)
  out = np.asarray(jax.jit(augment.jitter_signals)(KEY, spike))[..., 0]
  share = out.max(1) / np.abs(out).sum(1)
  # 1 / (1 + 2 exp(-1 / (2 std^2))): .98 at a standard deviation of .33, .79 at .5.
  assert 0.14 < np.mean(share < 0.98) < 0.21
  assert 0.78 < share.min() < 0.81


def test_jitter_keeps_shape_and_dtype(signals):
  half = jnp.asarray(signals, jnp.bfloat16)
  out = jax.jit(augment.jitter_signals)(KEY, half)
  assert out.shape == half.shape and out.dtype == jnp.bfloat16
  assert jax.eval_shape(augment.jitter_signals, KEY, signals[:1]).shape == (1, 20, 2)
  grads = jax.jit(jax.grad(lambda x: augment.jitter_signals(KEY, x).sum()))(signals)
  assert np.isfinite(grads).all()


def test_errors(signals):
  with pytest.raises(ValueError, match="std must lie in"):
    augment.blur_signals(signals, 0.0)
  with pytest.raises(ValueError, match="std must have shape"):
    augment.blur_signals(signals, np.ones(3))
  with pytest.raises(ValueError, match="signals must have shape"):
    augment.jitter_signals(KEY, signals[0])
  with pytest.raises(TypeError, match="signals must be of type float"):
    augment.jitter_signals(KEY, jnp.zeros((2, 20, 1), jnp.int32))
