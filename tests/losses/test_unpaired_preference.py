import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses

B = 6
RNG = np.random.default_rng(0)
POLICY, REFERENCE = (-20 + 5 * RNG.normal(size=(2, B))).astype(np.float32)
DESIRABLE = np.array([True, False, True, True, False, False])
kto = jax.jit(losses.kto_loss)
estimate = jax.jit(losses.kto_kl_estimate)


def slow_kto(policy, reference, desirable, baseline, beta, weights):
  values = []
  for p, r, good in zip(np.float64(policy), np.float64(reference), desirable):
    gain = beta * ((p - r) - baseline) if good else beta * (baseline - (p - r))
    values.append(weights[0 if good else 1] * (1 - 1 / (1 + np.exp(-gain))))
  return values


def test_kto_matches_a_loop():
  for baseline, beta, weights in ((0.0, 0.1, (1.0, 1.0)), (0.7, 0.4, (1.33, 0.5))):
    result = kto(
      POLICY,
      REFERENCE,
      DESIRABLE,
      baseline,
      beta=beta,
      desirable_weight=weights[0],
      undesirable_weight=weights[1],
    )
    expected = slow_kto(POLICY, REFERENCE, DESIRABLE, baseline, beta, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
  np.testing.assert_allclose(
    kto(POLICY, REFERENCE, DESIRABLE, 0.0),
    slow_kto(POLICY, REFERENCE, DESIRABLE, 0.0, 0.1, (1.0, 1.0)),
    rtol=1e-5,
  )


def test_kto_of_a_policy_equal_to_its_reference():
  np.testing.assert_array_equal(kto(POLICY, POLICY, DESIRABLE, 0.0), np.full(B, 0.5))


def test_descent_raises_desirable_and_lowers_undesirable_responses():
  policy, reference, baseline = jax.grad(
    lambda p, r, k: kto(p, r, DESIRABLE, k).sum(), argnums=(0, 1, 2)
  )(POLICY, REFERENCE, np.full(B, 0.3, np.float32))
  np.testing.assert_array_equal(np.sign(policy), np.where(DESIRABLE, -1, 1))
  np.testing.assert_array_equal(reference, np.zeros(B))
  np.testing.assert_array_equal(baseline, np.zeros(B))


def test_kl_estimate_is_the_mean_clipped_at_0():
  mean = float(np.mean(np.float64(POLICY) - REFERENCE))
  assert mean != 0
  np.testing.assert_allclose(estimate(POLICY, REFERENCE), max(0.0, mean), rtol=1e-5)
  np.testing.assert_allclose(estimate(REFERENCE, POLICY), max(0.0, -mean), rtol=1e-5)
  slope = jax.grad(lambda p: estimate(p, np.minimum(POLICY, REFERENCE) - 1.0))(POLICY)
  np.testing.assert_array_equal(slope, np.zeros(B))
  assert estimate(POLICY[:0], REFERENCE[:0]) == 0


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_ratios_are_finite(size):
  value, slope = jax.jit(
    jax.value_and_grad(lambda p: losses.kto_loss(p, POLICY * 0, DESIRABLE, 0.0).sum())
  )(np.full(B, size, np.float32))
  np.testing.assert_allclose(value, 3.0, rtol=1e-6)
  np.testing.assert_allclose(slope, np.zeros(B), atol=1e-6)


def test_half_precision_and_vmap():
  half = jnp.asarray(POLICY, jnp.bfloat16), jnp.asarray(REFERENCE, jnp.bfloat16)
  result = kto(*half, DESIRABLE, 0.1)
  assert result.dtype == jnp.float32
  wide = (x.astype(jnp.float32) for x in half)
  np.testing.assert_allclose(result, kto(*wide, DESIRABLE, 0.1), rtol=1e-6)
  mapped = jax.jit(jax.vmap(losses.kto_loss, (0, 0, 0, None)))(POLICY, REFERENCE, DESIRABLE, 0.1)
  np.testing.assert_allclose(mapped, kto(POLICY, REFERENCE, DESIRABLE, 0.1), rtol=1e-6)


def test_errors():
  for name, value in (("beta", 0.0), ("desirable_weight", -1.0), ("undesirable_weight", -1.0)):
    with pytest.raises(ValueError, match=f"{name} must lie .*{value}"):
      losses.kto_loss(POLICY, REFERENCE, DESIRABLE, 0.0, **{name: value})
  for name, call in (
    ("reference_log_probs", lambda: losses.kto_loss(POLICY, REFERENCE[:2], DESIRABLE, 0.0)),
    ("desirable", lambda: losses.kto_loss(POLICY, REFERENCE, DESIRABLE[:2], 0.0)),
    ("kl_estimate", lambda: losses.kto_loss(POLICY, REFERENCE, DESIRABLE, [0.0, 1.0])),
    ("reference_mismatched", lambda: losses.kto_kl_estimate(POLICY, REFERENCE[:2])),
    ("policy_mismatched", lambda: losses.kto_kl_estimate(POLICY[0], REFERENCE[0])),
  ):
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
      call()
  with pytest.raises(TypeError, match="desirable must be of type bool"):
    losses.kto_loss(POLICY, REFERENCE, DESIRABLE.astype(int), 0.0)
