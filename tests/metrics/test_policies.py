import jax
import numpy as np
import pytest

from jaxlab import metrics

X, Y = 3, 4
RNG = np.random.default_rng(0)
POLICY, REFERENCE = np.log(RNG.dirichlet(np.ones(Y), (2, X))).astype(np.float32)
PROMPTS = np.array([0.5, 0.3, 0.2], np.float32)
SUPPORTED = RNG.random((X, Y)) < 0.5

divergence = jax.jit(metrics.policy_divergence)
outside = jax.jit(metrics.unsupported_mass)


def slow_divergence(policy, reference):
  total = 0.0
  for x in range(X):
    for y in range(Y):
      if policy[x, y] > -np.inf:
        total += PROMPTS[x] * np.exp(policy[x, y]) * (policy[x, y] - reference[x, y])
  return total


def test_divergence_matches_a_loop():
  expected = slow_divergence(POLICY, REFERENCE)
  np.testing.assert_allclose(divergence(POLICY, REFERENCE, PROMPTS), expected, rtol=1e-5)
  assert divergence(POLICY, POLICY, PROMPTS) == 0


def test_impossible_responses():
  gone = np.where(np.arange(Y) == 1, -np.inf, POLICY).astype(np.float32)
  slope = jax.jit(jax.grad(metrics.policy_divergence))
  for reference in (REFERENCE, np.where(np.arange(Y) == 1, -np.inf, REFERENCE)):
    value = divergence(gone, reference, PROMPTS)
    np.testing.assert_allclose(value, slow_divergence(gone, reference), rtol=1e-5)
    assert np.isfinite(slope(gone, reference, PROMPTS)).all()
  assert divergence(POLICY, reference, PROMPTS) == np.inf
  # So unlikely that its probability is 0 in float32.
  tiny = np.where(np.arange(Y) == 1, -1e4, POLICY).astype(np.float32)
  assert np.isfinite(divergence(tiny, reference, PROMPTS))
  # A prompt that never comes.
  assert np.isfinite(divergence(POLICY, reference, np.zeros(X)))


def test_unsupported_mass_matches_a_loop():
  cells = [(x, y) for x in range(X) for y in range(Y) if not SUPPORTED[x, y]]
  expected = sum(PROMPTS[x] * np.exp(POLICY[x, y]) for x, y in cells)
  np.testing.assert_allclose(outside(POLICY, SUPPORTED, PROMPTS), expected, rtol=1e-5)
  assert outside(POLICY, np.ones((X, Y)), PROMPTS) == 0
  np.testing.assert_allclose(outside(POLICY, np.zeros((X, Y)), PROMPTS), 1.0, rtol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match="^reference_log_probs must have shape"):
    metrics.policy_divergence(POLICY, REFERENCE[:2], PROMPTS)
  with pytest.raises(ValueError, match="^prompt_probs must have shape"):
    metrics.policy_divergence(POLICY, REFERENCE, PROMPTS[:2])
  with pytest.raises(ValueError, match="^supported must have shape"):
    metrics.unsupported_mass(POLICY, SUPPORTED[:2], PROMPTS)
