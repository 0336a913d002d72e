import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

B = 8
RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=B)).astype(np.float32)
WEAK = RNG.uniform(size=B).astype(np.float32)
TRUTH = np.array([0, 1, 1, 0, 1, 0, 0, 1])
conflict = jax.jit(losses.conflict_loss)
plain = jax.jit(losses.sigmoid_cross_entropy)
auxiliary = jax.jit(losses.confidence_auxiliary_loss)
conflict_slope = jax.jit(jax.grad(lambda z, *rest, **kw: conflict(z, *rest, **kw).sum()))
auxiliary_slopes = jax.jit(jax.grad(lambda z, w, **kw: auxiliary(z, w, **kw).sum(), argnums=(0, 1)))


def bce(z, w):
  z, w = np.float64(z), np.float64(w)
  return w * np.logaddexp(0, -z) + (1 - w) * np.logaddexp(0, z)


def sigmoid(z):
  return 1 / (1 + np.exp(-np.float64(z)))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_conflict_matches_a_loop(weight):
  expected = [
    bce(z, w) + weight * ((z >= 0) != (t == 1)) * bce(z, 1 - t)
    for z, w, t in zip(LOGITS, WEAK, TRUTH)
  ]
  for truth in (TRUTH, TRUTH.astype(bool), TRUTH.tolist()):
    result = conflict(LOGITS, WEAK, truth, conflict_weight=weight)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_conflict_is_cross_entropy_without_weight_or_errors():
  expected = plain(LOGITS, WEAK)
  np.testing.assert_allclose(conflict(LOGITS, WEAK, TRUTH, conflict_weight=0.0), expected)
  np.testing.assert_allclose(conflict(LOGITS, WEAK, LOGITS >= 0), expected, rtol=1e-6)


def test_slope_of_conflict():
  wrong = (LOGITS >= 0) != (TRUTH == 1)
  assert wrong.any() and not wrong.all()
  expected = sigmoid(LOGITS) - WEAK + 0.5 * wrong * (sigmoid(LOGITS) - (1 - TRUTH))
  np.testing.assert_allclose(conflict_slope(LOGITS, WEAK, TRUTH), expected, rtol=1e-5, atol=1e-6)


def test_a_logit_of_0_predicts_the_first():
  zeros = np.zeros(B, np.float32)
  expected = np.log(2) * (1 + 0.5 * (TRUTH == 0))
  np.testing.assert_allclose(conflict(zeros, WEAK, TRUTH), expected, rtol=1e-6)


def test_extreme_logits():
  logits = np.float32([1e4, -1e4] * (B // 2))
  for truth in (TRUTH, 1 - TRUTH):
    assert np.isfinite(conflict(logits, WEAK, truth)).all()
    assert np.isfinite(conflict_slope(logits, WEAK, truth)).all()
  assert np.isfinite(auxiliary(logits, WEAK, step_fraction=1.0)).all()
  assert np.isfinite(auxiliary_slopes(logits, WEAK, step_fraction=1.0)[0]).all()


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.0), (0.05, 0.25), (0.1, 0.5), (0.9, 0.5)])
def test_auxiliary_loss_matches_its_formula(fraction, share):
  hardened = sigmoid(LOGITS) >= np.quantile(sigmoid(LOGITS), 1 - WEAK.mean())
  assert hardened.any() and not hardened.all()
  target = (1 - share) * WEAK + share * hardened
  result = auxiliary(LOGITS, WEAK, step_fraction=fraction)
  np.testing.assert_allclose(result, bce(LOGITS, target), rtol=1e-5)
  of_logits, of_weak = auxiliary_slopes(LOGITS, WEAK, step_fraction=fraction)
  np.testing.assert_allclose(of_logits, sigmoid(LOGITS) - target, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(of_weak, np.zeros(B))


def test_auxiliary_weights():
  np.testing.assert_allclose(
    auxiliary(LOGITS, WEAK, step_fraction=0.3, weight=0.0), plain(LOGITS, WEAK), rtol=1e-6
  )
  slow = auxiliary(LOGITS, WEAK, step_fraction=0.3, weight=0.8, warmup_fraction=0.6)
  fast = auxiliary(LOGITS, WEAK, step_fraction=1.0, weight=0.4, warmup_fraction=0.6)
  np.testing.assert_allclose(slow, fast, rtol=1e-6)


def test_probabilities_near_1_are_told_apart():
  """As many predictions are hardened to yes as weak labels say, also of saturated ones."""
  logits = np.linspace(20, 60, B, dtype=np.float32)
  half = np.float32([1, 1, 1, 1, 0, 0, 0, 0])
  slope, _ = auxiliary_slopes(logits, half, step_fraction=1.0, weight=1.0)
  np.testing.assert_allclose(slope, np.arange(B) < B // 2, atol=1e-6)


def test_a_nan_stays_in_its_row():
  logits = np.where(np.arange(B) == 2, np.nan, LOGITS)
  result = auxiliary(logits, WEAK, step_fraction=1.0)
  np.testing.assert_array_equal(np.isnan(result), np.arange(B) == 2)
  result = conflict(logits, WEAK, TRUTH)
  np.testing.assert_array_equal(np.isnan(result), np.arange(B) == 2)


def test_half_precision():
  half = jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(WEAK, jnp.bfloat16)
  for result in (conflict(*half, TRUTH), auxiliary(*half, step_fraction=0.5)):
    assert result.dtype == jnp.float32


def test_errors():
  for keywords, message in (
    ({"conflict_weight": -0.1}, r"conflict_weight must lie in \[0, inf\)"),
    ({"true_labels": TRUTH + 1}, r"true_labels must lie in \[0, 1\]"),
    ({"weak_probs": WEAK + 1}, r"weak_probs must lie in \[0, 1\]"),
    ({"weak_probs": WEAK[1:]}, "weak_probs must have shape"),
  ):
    arguments = {"logits": LOGITS, "weak_probs": WEAK, "true_labels": TRUTH} | keywords
    with pytest.raises(ValueError, match=message):
      losses.conflict_loss(**arguments)
  for keywords, message in (
    ({"warmup_fraction": 0.0}, r"warmup_fraction must lie in \(0, inf\)"),
    ({"weight": 1.1}, r"weight must lie in \[0, 1\]"),
    ({"step_fraction": -0.1}, "step_fraction must lie"),
    ({"weak_probs": -WEAK}, "weak_probs must lie"),
    ({"logits": LOGITS[None]}, "logits must have shape"),
    ({"logits": LOGITS[:0], "weak_probs": WEAK[:0]}, "logits must not be empty"),
  ):
    arguments = {"logits": LOGITS, "weak_probs": WEAK, "step_fraction": 0.5} | keywords
    with pytest.raises(ValueError, match=message):
      losses.confidence_auxiliary_loss(**arguments)
