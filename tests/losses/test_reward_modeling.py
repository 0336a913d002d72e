import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

B, A = 6, 5
RNG = np.random.default_rng(0)
CHOSEN, REJECTED = RNG.normal(size=(2, B)).astype(np.float32)
MAGNITUDE = np.array([1, 2, 3, 1, 3, 2])
PREDICTIONS, TARGETS = RNG.normal(size=(2, B, A)).astype(np.float32)
MASK = RNG.random((B, A)) < 0.6
MASK[2] = False
WEIGHTS = np.array([0.65, 0.8, 0.45, 0.55, 0.4], np.float32)

scaled = jax.jit(losses.scaled_bradley_terry_loss)
regular = jax.jit(losses.bradley_terry_loss)
regression = jax.jit(losses.attribute_regression_loss)
slopes = jax.jit(jax.grad(lambda *args: losses.scaled_bradley_terry_loss(*args).sum(), (0, 1)))


def test_the_scaled_loss_is_the_regular_one_times_the_strength():
  ones = np.ones(B)
  np.testing.assert_allclose(scaled(CHOSEN, REJECTED, ones), regular(CHOSEN, REJECTED), rtol=1e-6)
  expected = MAGNITUDE * np.log1p(np.exp(REJECTED - CHOSEN))
  np.testing.assert_allclose(scaled(CHOSEN, REJECTED, MAGNITUDE), expected, rtol=1e-5)
  # A margin of 0 is none.
  result = regular(CHOSEN, REJECTED, margin=np.zeros(B))
  np.testing.assert_allclose(result, regular(CHOSEN, REJECTED), rtol=1e-6)


def test_a_strength_counts_as_that_many_pairs():
  @jax.jit
  @jax.value_and_grad
  def repeated(chosen):
    pairs = (np.repeat(np.arange(B), MAGNITUDE),)
    return losses.bradley_terry_loss(chosen[pairs], REJECTED[pairs]).sum()

  value, slope = repeated(CHOSEN)
  np.testing.assert_allclose(scaled(CHOSEN, REJECTED, MAGNITUDE).sum(), value, rtol=1e-6)
  chosen, rejected = slopes(CHOSEN, REJECTED, MAGNITUDE)
  np.testing.assert_allclose(chosen, slope, rtol=1e-5, atol=1e-6)
  expected = -MAGNITUDE / (1 + np.exp(CHOSEN - REJECTED))
  np.testing.assert_allclose(chosen, expected, rtol=1e-5)
  np.testing.assert_array_equal(rejected, -chosen)


def test_the_scaled_loss_at_the_edges():
  far = np.float32([1e4, -1e4])
  np.testing.assert_array_equal(scaled(far, -far, np.array([2, 3])), [0, 6e4])
  assert np.isfinite(slopes(far, -far, np.array([2.0, 3.0]))).all()
  # A pair of strength 0, and what is below, is none, even if it is impossible.
  result = scaled(np.float32([-np.inf, 1.0]), np.zeros(2, np.float32), np.array([0, -2]))
  np.testing.assert_array_equal(result, [0, 0])
  half = scaled(jnp.asarray(CHOSEN, jnp.bfloat16), jnp.asarray(REJECTED, jnp.bfloat16), MAGNITUDE)
  assert half.dtype == jnp.float32
  with pytest.raises(ValueError, match=r"magnitude must lie in \[0, inf\), got \[-1\]"):
    losses.scaled_bradley_terry_loss(CHOSEN[:1], REJECTED[:1], np.array([-1]))
  with pytest.raises(ValueError, match="^magnitude must have shape"):
    losses.scaled_bradley_terry_loss(CHOSEN, REJECTED, MAGNITUDE[:2])


def test_regression_matches_a_loop():
  expected = np.zeros(B)
  for i in range(B):
    rated = [a for a in range(A) if MASK[i, a]]
    errors = [WEIGHTS[a] * (PREDICTIONS[i, a] - TARGETS[i, a]) ** 2 for a in rated]
    expected[i] = sum(errors) / max(len(rated), 1)
  result = regression(PREDICTIONS, TARGETS, mask=MASK, weights=WEIGHTS)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  assert result[2] == 0
  plain = regression(PREDICTIONS, TARGETS)
  np.testing.assert_allclose(plain, ((PREDICTIONS - TARGETS) ** 2).mean(1), rtol=1e-5)
  one = regression(PREDICTIONS[:, :1], TARGETS[:, :1])
  np.testing.assert_allclose(one, (PREDICTIONS - TARGETS)[:, 0] ** 2, rtol=1e-5)


def test_missing_ratings_reach_neither_value_nor_gradient():
  missing = np.where(MASK, TARGETS, np.nan).astype(np.float32)
  slope = jax.jit(
    jax.grad(lambda p, t: losses.attribute_regression_loss(p, t, mask=MASK).sum(), (0, 1))
  )
  for gradient in slope(PREDICTIONS, missing):
    assert np.isfinite(gradient).all() and not np.any(np.where(MASK, 0, gradient))
    assert np.any(gradient) and not np.any(gradient[2])
  result = regression(PREDICTIONS, missing, mask=MASK, weights=WEIGHTS)
  expected = regression(PREDICTIONS, TARGETS, mask=MASK, weights=WEIGHTS)
  np.testing.assert_array_equal(result, expected)


def test_the_weighted_reward():
  weights = np.array([0.65, 0.8, 0.0, 0.55, -0.4], np.float32)
  reward = jax.jit(losses.weighted_reward)
  expected = [sum(w * y for w, y in zip(weights, row)) for row in PREDICTIONS]
  np.testing.assert_allclose(reward(PREDICTIONS, weights), expected, rtol=1e-5)
  hidden = PREDICTIONS.copy()
  hidden[:, 2] = -np.inf
  np.testing.assert_allclose(reward(hidden, weights), expected, rtol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match=r"^weights must have shape \[a\] with a = 5, got \[4\]"):
    losses.weighted_reward(PREDICTIONS, WEIGHTS[:4])
  with pytest.raises(ValueError, match="weights must lie in"):
    losses.weighted_reward(PREDICTIONS, WEIGHTS * np.nan)
  regression = losses.attribute_regression_loss
  with pytest.raises(ValueError, match="^weights must have shape"):
    regression(PREDICTIONS, TARGETS, weights=WEIGHTS[:4])
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\)"):
    regression(PREDICTIONS, TARGETS, weights=-WEIGHTS)
  with pytest.raises(ValueError, match="^targets must have shape"):
    regression(PREDICTIONS, TARGETS[:, :4])
  with pytest.raises(ValueError, match="^mask must have shape"):
    regression(PREDICTIONS, TARGETS, mask=MASK[0])
