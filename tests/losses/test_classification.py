import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import losses

loss = jax.jit(losses.label_smoothed_cross_entropy)


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
  np.testing.assert_allclose(loss(logits, labels, label_smoothing=0.2), slow, rtol=1e-5)
  mapped = jax.jit(jax.vmap(lambda e: loss(*batch, label_smoothing=e)))
  np.testing.assert_allclose(mapped(np.float32([0.2])), slow[None], rtol=1e-5)


def test_without_smoothing_it_is_the_cross_entropy(batch):
  np.testing.assert_allclose(
    loss(*batch, label_smoothing=0.0),
    jax.jit(optax.softmax_cross_entropy_with_integer_labels)(*batch),
    rtol=1e-6,
  )


def test_the_smoothed_target_is_optimal():
  target = 0.9 * np.eye(4)[2] + 0.1 / 4
  slope = jax.jit(jax.grad(losses.label_smoothed_cross_entropy))
  gradient = slope(np.log(target).astype(np.float32), np.int32(2))
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_extreme_logits():
  logits, labels = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]), jnp.array([1, 0])
  value, gradient = jax.jit(jax.value_and_grad(lambda z: jnp.sum(loss(z, labels))))(logits)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_masked_classes_and_labels_outside_the_classes(batch):
  logits, labels = batch
  masked = np.where(np.arange(5) == (labels[..., None] + 1) % 5, -np.inf, logits)
  plain = loss(masked, labels, label_smoothing=0.0)
  others = np.log(np.sum(np.exp(masked), axis=-1))
  picked = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(plain, others - picked, rtol=1e-5)
  slope = jax.jit(jax.grad(lambda z, e: loss(z, labels, label_smoothing=e).sum()))
  assert np.isfinite(slope(masked, 0.0)).all()
  for label in (-1, 5):
    outside = np.isnan(loss(logits, np.where(labels == 2, label, labels), label_smoothing=0.0))
    np.testing.assert_array_equal(outside, labels == 2)


def test_half_precision(batch):
  logits, labels = batch
  result = loss(jnp.asarray(logits, jnp.bfloat16), labels)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, loss(*batch), atol=0.05)


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


binary = jax.jit(losses.sigmoid_cross_entropy)
binary_slopes = jax.jit(
  jax.value_and_grad(lambda z, w: losses.sigmoid_cross_entropy(z, w).sum(), argnums=(0, 1))
)
LOGITS = np.float32([[-3.0, -0.5, 0.0], [0.2, 4.0, 30.0]])
TARGETS = np.float32([[0.0, 0.3, 1.0], [0.75, 0.5, 1e-3]])


def test_sigmoid_cross_entropy_matches_double_precision():
  z, w = np.float64(LOGITS), np.float64(TARGETS)
  p = 1 / (1 + np.exp(-z))
  expected = w * np.logaddexp(0, -z) + (1 - w) * np.logaddexp(0, z)
  np.testing.assert_allclose(binary(LOGITS, TARGETS), expected, rtol=1e-5)
  _, (of_logits, of_targets) = binary_slopes(LOGITS, TARGETS)
  np.testing.assert_allclose(of_logits, p - w, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(of_targets, -z, rtol=1e-5)
  assert binary(jnp.asarray(LOGITS, jnp.bfloat16), TARGETS).dtype == jnp.float32


def test_sigmoid_cross_entropy_of_extreme_logits():
  logits = np.float32([[1e4, -1e4, 1e4], [-1e4, -np.inf, np.inf]])
  targets = np.float32([[1.0, 0.0, 0.25], [0.25, 0.0, 1.0]])
  np.testing.assert_allclose(binary(logits, targets), [[0, 0, 7500], [2500, 0, 0]], rtol=1e-6)
  _, (slope, _) = binary_slopes(logits, targets)
  np.testing.assert_allclose(slope, [[0, 0, 0.75], [-0.25, 0, 0]], atol=1e-6)
  with_nan = binary(np.where(LOGITS == 0, np.nan, LOGITS), TARGETS)
  np.testing.assert_array_equal(np.isnan(with_nan), LOGITS == 0)


def test_sigmoid_cross_entropy_errors():
  with pytest.raises(ValueError, match=r"targets must lie in \[0, 1\]"):
    losses.sigmoid_cross_entropy(LOGITS, TARGETS + 0.1)
  with pytest.raises(ValueError, match="targets must have shape"):
    losses.sigmoid_cross_entropy(LOGITS, TARGETS[0])


soft_cross_entropy = jax.jit(losses.soft_cross_entropy)


def test_soft_targets_match_a_sum_and_one_hot_ones_the_hard_loss(batch):
  logits, labels = batch
  hard = loss(logits, labels, label_smoothing=0.0)
  np.testing.assert_allclose(soft_cross_entropy(logits, np.eye(5)[labels]), hard, rtol=1e-6)
  targets = np.random.default_rng(1).dirichlet(np.ones(5), (4, 3)).astype(np.float32)
  log_probs = logits - np.log(np.sum(np.exp(np.float64(logits)), axis=-1, keepdims=True))
  np.testing.assert_allclose(
    soft_cross_entropy(logits, targets), -np.sum(targets * log_probs, axis=-1), rtol=1e-5
  )
  slope = jax.jit(jax.grad(lambda *x: soft_cross_entropy(*x).sum(), argnums=(0, 1)))
  of_logits, of_targets = slope(logits, targets)
  np.testing.assert_allclose(of_logits, np.exp(log_probs) - targets, atol=1e-5)
  np.testing.assert_allclose(of_targets, -log_probs, rtol=1e-5)
  masked = np.where(np.arange(5) == 0, -np.inf, logits).astype(np.float32)
  free = np.where(np.arange(5) == 0, 0, targets).astype(np.float32)
  assert np.isfinite(soft_cross_entropy(masked, free)).all()
  assert all(np.isfinite(x).all() for x in slope(1e4 * logits, targets))
