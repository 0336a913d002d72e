import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import brier_score_loss

from jaxlab import losses

RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=(40, 5))).astype(np.float32)
LABELS = np.where(RNG.random(40) < 0.6, LOGITS.argmax(1), RNG.integers(0, 5, 40))
CORRECT = LOGITS.argmax(1) == LABELS
loss = jax.jit(losses.correctness_aware_loss, static_argnames="balanced")
brier = jax.jit(losses.brier_loss)


def confidence(logits):
  scores = np.exp(np.asarray(logits, np.float64) - logits.max(1, keepdims=True))
  return scores.max(1) / scores.sum(1)


def test_unbalanced_loss_is_the_squared_distance_from_correctness():
  plain = loss(LOGITS, LABELS, balanced=False)
  np.testing.assert_allclose(plain, (confidence(LOGITS) - CORRECT) ** 2, atol=1e-6)
  margins = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
  np.testing.assert_array_equal(loss(margins, np.array([0, 1]), balanced=False), [0, 1])


def test_balanced_right_and_wrong_rows_have_equal_weight():
  plain = np.asarray(loss(LOGITS, LABELS, balanced=False))
  balanced = np.asarray(loss(LOGITS, LABELS))
  weights = balanced / plain
  np.testing.assert_allclose(weights[CORRECT].sum(), weights[~CORRECT].sum(), rtol=1e-4)
  groups = (plain[CORRECT].mean() + plain[~CORRECT].mean()) / 2
  np.testing.assert_allclose(balanced.mean(), groups, rtol=1e-5)


@pytest.mark.parametrize("rows", [CORRECT, ~CORRECT, np.arange(40) == 3])
def test_a_batch_of_one_kind_is_not_weighted(rows):
  np.testing.assert_allclose(
    loss(LOGITS[rows], LABELS[rows]), loss(LOGITS[rows], LABELS[rows], balanced=False), rtol=1e-6
  )


def test_given_correctness_replaces_the_argmax():
  np.testing.assert_array_equal(loss(LOGITS, LABELS, correct=CORRECT), loss(LOGITS, LABELS))
  right = loss(LOGITS, LABELS, balanced=False, correct=np.ones(40))
  np.testing.assert_allclose(right, (confidence(LOGITS) - 1) ** 2, atol=1e-6)
  grad = jax.jit(jax.grad(lambda c: loss(LOGITS, LABELS, correct=c).sum()))
  np.testing.assert_array_equal(grad(jnp.float32(CORRECT)), 0)


@pytest.mark.parametrize("balanced", [False, True])
def test_descent_lowers_temperature_of_right_rows_and_raises_it_of_wrong_ones(balanced):
  def objective(log_temperature):
    scaled = LOGITS / jnp.exp(log_temperature)[:, None]
    return losses.correctness_aware_loss(scaled, LABELS, balanced=balanced).sum()

  slope = jax.jit(jax.grad(objective))(jnp.zeros(40))
  assert np.all(slope[~CORRECT] < 0) and np.all(slope[CORRECT] > 0)


def test_cross_entropy_sharpens_a_narrow_miss():
  logits = np.array([[2.0, 1.9, -3.0, -3.0]], np.float32)

  def slope(fn):
    return jax.jit(jax.grad(lambda t: fn(logits / jnp.exp(t), np.array([1])).sum()))(0.3)

  probs = np.asarray(jax.nn.softmax(logits / np.exp(0.3)))
  expected = -(np.sum(probs * logits) - logits[0, 1]) / np.exp(0.3)
  cross_entropy = slope(optax.softmax_cross_entropy_with_integer_labels)
  np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5)
  assert cross_entropy > 0 > slope(losses.correctness_aware_loss)


def test_brier_loss_matches_a_loop_and_scikit_learn():
  probs = np.asarray(jax.nn.softmax(LOGITS))
  expected = [sum((p[j] - (j == y)) ** 2 for j in range(5)) for p, y in zip(probs, LABELS)]
  np.testing.assert_allclose(brier(LOGITS, LABELS), expected, rtol=1e-5)
  np.testing.assert_allclose(
    np.mean(expected),
    brier_score_loss(LABELS, probs, labels=np.arange(5), scale_by_half=False),
    rtol=1e-5,
  )


@pytest.mark.parametrize("fn", [loss, brier])
def test_extreme_logits_and_half_precision(fn):
  extreme = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], np.float32)
  labels = np.array([1, 0])
  assert np.isfinite(fn(extreme, labels)).all()
  assert np.isfinite(jax.grad(lambda z: fn(z, labels).sum())(extreme)).all()
  halves = jnp.asarray(LOGITS, jnp.bfloat16)
  values = fn(halves, LABELS)
  assert values.dtype == jnp.float32
  np.testing.assert_allclose(values, fn(jnp.float32(halves), LABELS), rtol=1e-6)
  mapped = jax.vmap(fn)(LOGITS.reshape(2, 20, 5), LABELS.reshape(2, 20))
  np.testing.assert_allclose(mapped[1], fn(LOGITS[20:], LABELS[20:]), rtol=1e-5)
  assert np.isnan(fn(np.full((1, 3), np.nan), labels[:1])).all()


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_outside_the_classes_is_nan_in_its_row_only(label):
  row = np.arange(40) == 3
  labels = np.where(row, label, LABELS)
  for fn in (loss, brier):
    values = np.asarray(fn(LOGITS, labels))
    np.testing.assert_array_equal(np.isnan(values), row)
  # The balance is that of the other rows.
  values, others = np.asarray(loss(LOGITS, labels)), np.asarray(loss(LOGITS[~row], LABELS[~row]))
  np.testing.assert_allclose(values[~row], others * 40 / 39, rtol=1e-5)
  missing = np.where(row, np.nan, CORRECT)
  np.testing.assert_array_equal(loss(LOGITS, labels, correct=missing), values)


@pytest.mark.parametrize("fn", [losses.correctness_aware_loss, losses.brier_loss])
def test_errors(fn):
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
    fn(LOGITS, LABELS - 5)
  with pytest.raises(ValueError, match="labels must have shape"):
    fn(LOGITS, LABELS[:-1])
  with pytest.raises(TypeError, match="labels must be of type int, got float32"):
    fn(LOGITS, LABELS.astype(np.float32))
