"""Contrastive losses of two views."""

import jax
import numpy as np
import pytest

from jaxlab import losses

nt_xent = jax.jit(losses.nt_xent_loss)
small = jax.jit(lambda a, b: losses.nt_xent_loss(a, b, temperature=0.04))
A, B = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)


def slow(a, b, temperature, epsilon):
  z = np.concatenate([a, b]).astype(np.float64)
  z /= np.linalg.norm(z, axis=1, keepdims=True) + 1e-8
  values = []
  for i in range(10):
    others = sum(np.exp(z[i] @ z[j] / temperature) for j in range(10) if j != i)
    share = np.exp(z[i] @ z[(i + 5) % 10] / temperature) / (others + epsilon)
    values.append(-np.log(share + epsilon))
  return np.array(values)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 0.1])
def test_nt_xent_matches_a_loop(temperature):
  values = nt_xent(A, B, temperature=temperature)
  np.testing.assert_allclose(values, slow(A, B, temperature, 1e-8), rtol=1e-5)


def test_it_is_a_log_softmax_over_the_other_views():
  np.testing.assert_allclose(nt_xent(A, B), slow(A, B, 0.5, 0.0), atol=1e-4)
  np.testing.assert_allclose(small(A, B), slow(A, B, 0.04, 0.0), rtol=1e-4, atol=1e-5)
  # Traced, a small temperature keeps epsilon, which caps the loss, and stays finite.
  capped = nt_xent(A, B, temperature=0.02)
  np.testing.assert_allclose(capped, slow(A, B, 0.02, 1e-8), rtol=1e-4, atol=1e-5)
  assert np.max(capped) <= 18.43


def test_views_may_be_swapped_and_scaled():
  values = np.asarray(nt_xent(A, B))
  np.testing.assert_allclose(nt_xent(B, A), np.roll(values, 5), rtol=1e-5)
  np.testing.assert_allclose(nt_xent(100 * A, 0.1 * B), values, rtol=1e-4)


def test_perfect_pairs_among_orthogonal_others():
  z = np.eye(5, dtype=np.float32)
  expected = np.log(1 + 8 * np.exp(-2.0))
  np.testing.assert_allclose(nt_xent(z[:, :], z), np.full(10, expected), rtol=1e-5)


def test_gradients_are_finite_and_errors_name_the_argument():
  slope = jax.jit(jax.grad(lambda a, b: nt_xent(a, b).sum(), argnums=(0, 1)))
  for scale in (1.0, 0.0, 1e20):
    assert all(np.isfinite(x).all() for x in slope(scale * A, B))
  with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\), got 0.0"):
    losses.nt_xent_loss(A, B, temperature=0.0)
  with pytest.raises(ValueError, match="views_b must have shape"):
    losses.nt_xent_loss(A, B[:, :3])


pair_loss = jax.jit(losses.pair_logistic_loss)
TOGETHER = np.array([1, 0, 1, 0, 1])


def test_pair_loss_is_that_of_a_logistic_regression():
  logits = np.sum(A.astype(np.float64) * B, axis=1)
  expected = np.log1p(np.exp(-(2 * TOGETHER - 1) * logits))
  np.testing.assert_allclose(pair_loss(A, B, TOGETHER), expected, rtol=1e-5)
  np.testing.assert_allclose(pair_loss(B, A, TOGETHER), expected, rtol=1e-5)
  # The probabilities of both labels sum to 1.
  total = np.exp(-pair_loss(A, B, TOGETHER)) + np.exp(-pair_loss(A, B, 1 - TOGETHER))
  np.testing.assert_allclose(total, 1, rtol=1e-5)
  np.testing.assert_allclose(pair_loss(0 * A, B, TOGETHER), np.log(2), rtol=1e-6)


def test_pair_loss_at_the_edges():
  slope = jax.jit(jax.grad(lambda a, b: losses.pair_logistic_loss(a, b, TOGETHER).sum()))
  assert np.isfinite(pair_loss(1e4 * A, 1e4 * B, TOGETHER)).all()
  assert np.isfinite(slope(1e4 * A, 1e4 * B)).all()
  unknown = np.array([1, 0, 2, -1, 1])
  np.testing.assert_array_equal(
    np.isnan(pair_loss(A, B, unknown)), [False, False, True, True, False]
  )
  with pytest.raises(ValueError, match="is_positive must be 0 or 1, got the values"):
    losses.pair_logistic_loss(A, B, unknown)
  with pytest.raises(ValueError, match="other_features must have shape"):
    losses.pair_logistic_loss(A, B[:, :3], TOGETHER)
