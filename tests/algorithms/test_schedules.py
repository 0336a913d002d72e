"""Weights that rise, and running means."""

import jax
import numpy as np
import pytest

from jaxlab import algorithms

STEPS = np.arange(12.0, dtype=np.float32)


def test_rampups_and_decays():
  ramps = jax.jit(
    lambda step: (
      algorithms.linear_rampup(step, 8),
      algorithms.exponential_rampup(step, 8),
      algorithms.warm_ema_decay(step, decay=0.9),
    )
  )(STEPS)
  linear, exponential, decay = jax.device_get(ramps)
  ramp = np.minimum(STEPS / 8, 1)
  np.testing.assert_allclose(linear, ramp, rtol=1e-6)
  np.testing.assert_allclose(exponential, np.exp(-5 * (1 - ramp) ** 2), rtol=1e-5)
  np.testing.assert_allclose(exponential[[0, 8, 11]], [np.exp(-5), 1, 1], rtol=1e-6)
  np.testing.assert_allclose(decay, np.minimum(1 - 1 / (STEPS + 1), 0.9), rtol=1e-6)
  assert decay[0] == 0


def test_the_mean_of_a_ratio_starts_with_its_first_value():
  move = jax.jit(algorithms.ratio_ema)
  assert move(np.float32(np.nan), np.float32(0.3)) == np.float32(0.3)
  np.testing.assert_allclose(move(np.float32(0.3), np.float32(0.5), decay=0.9), 0.32, rtol=1e-6)


def test_queue_is_the_mean_of_the_last_batches():
  queue = algorithms.distribution_queue(num_classes=3, history=4)
  batches = np.random.default_rng(0).dirichlet(np.ones(3), (10, 5)).astype(np.float32)
  update, state, means = jax.jit(queue.update), queue.init(), []
  for i, batch in enumerate(batches):
    state, mean = update(state, batch)
    means.append(batch.mean(0))
    np.testing.assert_allclose(mean, np.mean(means[-4:], axis=0), rtol=1e-5)
    assert state.count == i + 1
  slope = jax.jit(jax.grad(lambda p: queue.update(state, p)[1][0]))(batches[0])
  assert not np.any(slope)


def test_errors():
  with pytest.raises(ValueError, match=r"length must lie in \[1, inf\), got 0"):
    algorithms.linear_rampup(1, 0)
  with pytest.raises(ValueError, match="length"):
    algorithms.exponential_rampup(1, 0)
  for function in (algorithms.warm_ema_decay, lambda x, **y: algorithms.ratio_ema(x, 0.1, **y)):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
      function(1, decay=1)
  with pytest.raises(ValueError, match="history must be at least 1, got 0"):
    algorithms.distribution_queue(num_classes=3, history=0)
  queue = algorithms.distribution_queue(num_classes=3)
  with pytest.raises(ValueError, match=r"probs must have shape \[n, 3\], got \[2, 4\]"):
    queue.update(queue.init(), np.ones((2, 4), np.float32))
