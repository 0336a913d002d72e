import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.algorithms.large_batch import (
  adapt_regime,
  gradient_noise_weights,
  scaled_learning_rate,
)


def test_learning_rate_rules():
  scaled = functools.partial(scaled_learning_rate, 0.1, batch_size=2048, base_batch_size=128)
  assert scaled() == scaled(rule="sqrt") == pytest.approx(0.4)
  assert scaled(rule="linear") == pytest.approx(1.6)
  assert scaled(rule="none") == 0.1
  assert isinstance(scaled(), float)


def test_regime_keeps_the_updates_of_each_phase():
  assert adapt_regime([81, 122], 164, batch_size=128, base_batch_size=128) == ((81, 122), 164)
  assert adapt_regime([81, 122], 164, batch_size=129, base_batch_size=128) == ((162, 244), 328)
  regime = adapt_regime((12, 22), 30, batch_size=2048, base_batch_size=64)
  samples = 16_384
  for small, large in zip((12, 22, 30), (*regime.boundaries, regime.num_epochs)):
    assert abs(small * (samples // 64) - large * (samples // 2048)) <= samples // 2048
  assert adapt_regime([], 3, batch_size=4, base_batch_size=2) == ((), 6)


def test_noise_weights_have_the_moments_of_the_paper():
  draw = functools.partial(gradient_noise_weights, batch_size=4096, base_batch_size=512)
  weights = np.asarray(draw(jax.random.key(0)), np.float64)
  assert weights.shape == (4096,)
  variance = 4096 / 512 - 1
  assert abs(weights.mean() - 1) < 4 * np.sqrt(variance / 4096)
  assert abs(weights.var() - variance) < 4 * variance * np.sqrt(2 / 4096)
  half = np.asarray(draw(jax.random.key(0), scale=0.5))
  np.testing.assert_allclose(half - 1, (weights - 1) / 2, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(draw(jax.random.key(0), scale=0.0), 1.0)
  same = gradient_noise_weights(jax.random.key(0), batch_size=8, base_batch_size=8)
  np.testing.assert_array_equal(same, 1.0)
  assert same.dtype == jnp.float32


def test_noise_weights_under_transformations():
  draw = functools.partial(gradient_noise_weights, batch_size=6, base_batch_size=2)
  keys = jax.random.split(jax.random.key(0), 2)
  scales = jnp.array([0.5, 1.0])
  mapped = jax.jit(jax.vmap(lambda k, s: draw(k, scale=s)))(keys, scales)
  for i in range(2):
    np.testing.assert_allclose(mapped[i], draw(keys[i], scale=float(scales[i])), rtol=1e-5)
  assert not np.array_equal(mapped[0], mapped[1])


def test_errors():
  sizes = {"batch_size": 4, "base_batch_size": 8}
  with pytest.raises(ValueError, match="rule must be .* got 'cube'"):
    scaled_learning_rate(0.1, **sizes, rule="cube")
  with pytest.raises(ValueError, match="batch_size must be at least base_batch_size 8, got 4"):
    gradient_noise_weights(jax.random.key(0), **sizes)
  with pytest.raises(ValueError, match="scale must lie in"):
    gradient_noise_weights(jax.random.key(0), batch_size=8, base_batch_size=4, scale=-1.0)
  with pytest.raises(ValueError, match="learning_rate .* got -0.1"):
    scaled_learning_rate(-0.1, **sizes)
  for boundaries in ([3, 2], [2, 2], [-1, 2]):
    with pytest.raises(ValueError, match="boundaries must increase"):
      adapt_regime(boundaries, 5, **sizes)
  for name in sizes:
    bad = sizes | {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
      scaled_learning_rate(0.1, **bad)
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
      adapt_regime([1], 2, **bad)
