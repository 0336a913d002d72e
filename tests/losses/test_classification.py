import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import losses


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return rng.normal(size=(4, 3, 5)).astype(np.float32), rng.integers(0, 5, (4, 3))


def test_label_smoothing_matches_a_loop(batch):
  logits, labels = batch
  slow = np.zeros((4, 3))
  for i in range(4):
    for j in range(3):
      row = logits[i, j].astype(np.float64)
      log_probs = row - np.log(np.sum(np.exp(row)))
      for c in range(5):
        slow[i, j] -= (0.8 * (labels[i, j] == c) + 0.2 / 5) * log_probs[c]
  loss = jax.jit(losses.label_smoothed_cross_entropy)
  np.testing.assert_allclose(loss(logits, labels, label_smoothing=0.2), slow, rtol=1e-5)
  mapped = jax.vmap(lambda e: losses.label_smoothed_cross_entropy(*batch, label_smoothing=e))
  np.testing.assert_allclose(mapped(jnp.array([0.2]))[0], slow, rtol=1e-5)


def test_without_smoothing_it_is_the_cross_entropy(batch):
  np.testing.assert_allclose(
    losses.label_smoothed_cross_entropy(*batch, label_smoothing=0.0),
    optax.softmax_cross_entropy_with_integer_labels(*batch),
    rtol=1e-6,
  )


def test_the_smoothed_target_is_optimal():
  target = 0.9 * np.eye(4)[2] + 0.1 / 4
  gradient = jax.grad(losses.label_smoothed_cross_entropy)(jnp.log(target), jnp.int32(2))
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_extreme_logits():
  logits, labels = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]), jnp.array([1, 0])
  loss, gradient = jax.jit(
    jax.value_and_grad(lambda z: jnp.sum(losses.label_smoothed_cross_entropy(z, labels)))
  )(logits)
  assert np.isfinite(loss) and np.all(np.isfinite(gradient))


def test_half_precision(batch):
  logits, labels = batch
  result = losses.label_smoothed_cross_entropy(jnp.asarray(logits, jnp.bfloat16), labels)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, losses.label_smoothed_cross_entropy(*batch), atol=0.05)


def test_errors(batch):
  logits, labels = batch
  for value in (-0.1, 1.0, np.nan):
    with pytest.raises(ValueError, match="label_smoothing"):
      losses.label_smoothed_cross_entropy(*batch, label_smoothing=value)
  for value in (-1, 5):
    with pytest.raises(ValueError, match="labels"):
      losses.label_smoothed_cross_entropy(logits, np.full((4, 3), value))
  with pytest.raises(ValueError, match="labels must have shape"):
    losses.label_smoothed_cross_entropy(logits, labels[:, :2])
  with pytest.raises(TypeError, match="labels must be of type int, got float32"):
    losses.label_smoothed_cross_entropy(logits, labels.astype(np.float32))
