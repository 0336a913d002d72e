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
