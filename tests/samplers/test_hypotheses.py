"""Hypotheses that fit the training data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import samplers

N, M, D, K, S = 7, 4, 2, 2, 5
RNG = np.random.default_rng(0)
X, TEST_X = (RNG.normal(size=(n, D)).astype(np.float32) for n in (N, M))
Y = RNG.normal(size=(N, K)).astype(np.float32)


@jax.jit
def from_noise(test_inputs, noise, lengthscale=0.8, jitter=1e-4):
  return samplers.kernel_interpolants_from_noise(
    X, Y, test_inputs, noise, lengthscale=lengthscale, jitter=jitter
  )


def slow(lengthscale=0.8, jitter=1e-4):
  """Mean and covariance at the test inputs."""

  def kernel(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([[np.exp(-np.sum((p - q) ** 2) / 2 / lengthscale**2) for q in b] for p in a])

  inverse = np.linalg.inv(kernel(X, X) + jitter * np.eye(N))
  cross = kernel(TEST_X, X)
  return cross @ inverse @ Y, kernel(TEST_X, TEST_X) - cross @ inverse @ cross.T


def test_they_match_the_posterior_with_a_symmetric_root():
  noise = RNG.normal(size=(M, K, S)).astype(np.float32)
  mean, covariance = slow()
  np.testing.assert_allclose(from_noise(TEST_X, 0 * noise)[:, :, 0], mean, rtol=1e-3, atol=1e-4)
  values, vectors = np.linalg.eigh(covariance)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  expected = mean[:, :, None] + np.einsum("ab,bks->aks", root, noise)
  np.testing.assert_allclose(from_noise(TEST_X, noise), expected, atol=2e-3)


def test_they_pass_through_the_training_points():
  noise = RNG.normal(size=(M, K, S)).astype(np.float32)
  values = from_noise(X[:M], noise, 0.3, 0.0)
  np.testing.assert_allclose(values, np.repeat(Y[:M, :, None], S, axis=2), atol=5e-3)


def test_nearly_singular_kernels_stay_finite():
  noise = RNG.normal(size=(M, K, S)).astype(np.float32)
  for lengthscale in (3.0, 30.0, 1e4):
    assert np.isfinite(from_noise(TEST_X, noise, lengthscale, 0.0)).all()


def test_draws_have_the_covariance():
  draw = jax.jit(
    lambda key: samplers.kernel_interpolants(
      key, X, Y, TEST_X, num_samples=100_000, lengthscale=0.8, jitter=1e-4
    )
  )
  values = np.asarray(draw(jax.random.key(0)))
  assert values.shape == (M, K, 100_000) and values.dtype == np.float32
  mean, covariance = slow()
  np.testing.assert_allclose(values.mean(2), mean, atol=0.02)
  for k in range(K):
    np.testing.assert_allclose(np.cov(values[:, k]), covariance, atol=0.02)
  np.testing.assert_allclose(np.cov(values[:, 0], values[:, 1])[:M, M:], 0, atol=0.02)


def init(key):
  return {"w": jax.random.normal(key, (D,)), "seen": jnp.zeros(N)}


def loss(params, rows):
  """Least squares, with a counter of the rows that each batch had."""
  x, y = jnp.asarray(X)[rows], jnp.asarray(Y)[rows, 0]
  error = jnp.mean((x @ params["w"] - y) ** 2)
  return error - jnp.sum(params["seen"][rows])


@functools.partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def train(key, **sizes):
  return samplers.trained_hypotheses(
    key, init, loss, optax.sgd(0.125), num_samples=3, num_examples=N, **sizes
  )


@jax.jit
def starts(key):
  return jax.vmap(lambda key: init(jax.random.split(key)[0])["w"])(jax.random.split(key, 3))


def test_full_batches_match_a_loop():
  params = train(jax.random.key(0), num_steps=4)
  assert params["w"].shape == (3, D)
  for w, trained in zip(np.asarray(starts(jax.random.key(0)), np.float64), np.asarray(params["w"])):
    for _ in range(4):
      w -= 0.125 * 2 / N * X.T @ (X @ w - Y[:, 0])
    np.testing.assert_allclose(trained, w, rtol=1e-4)
  np.testing.assert_allclose(params["seen"], 4 * 0.125)


def test_batches_are_drawn_without_replacement_and_the_rest_is_dropped():
  one, two, three = (
    np.asarray(train(jax.random.key(1), num_steps=n, batch_size=2)["seen"]) / 0.125
    for n in (3, 4, 6)
  )
  # Three batches of two are an epoch: six of seven rows, once each, others in each network.
  np.testing.assert_array_equal(np.sort(one, axis=1), [[0] + [1] * 6] * 3)
  np.testing.assert_array_equal(np.sort(three - one, axis=1), [[0] + [1] * 6] * 3)
  assert ((two - one).sum(1) == 2).all() and (two >= one).all()
  orders = [
    np.asarray(train(jax.random.key(s), num_steps=3, batch_size=2)["seen"]) for s in range(4)
  ]
  assert len({x.tobytes() for x in orders}) == 4
  assert len({x.tobytes() for order in orders for x in order}) > 3


def test_errors():
  key = jax.random.key(0)
  noise = np.zeros((M, K, S))
  with pytest.raises(ValueError, match=r"lengthscale must lie in \(0, inf\), got 0.0"):
    samplers.kernel_interpolants(key, X, Y, TEST_X, lengthscale=0.0)
  with pytest.raises(ValueError, match=r"jitter must lie in \[0, inf\), got -1.0"):
    samplers.kernel_interpolants_from_noise(X, Y, TEST_X, noise, jitter=-1.0)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    samplers.kernel_interpolants(key, X, Y, TEST_X, num_samples=0)
  with pytest.raises(ValueError, match="noise must have shape"):
    samplers.kernel_interpolants_from_noise(X, Y, TEST_X, noise[:, :1])
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    train(key, num_steps=0)
  with pytest.raises(ValueError, match="batch_size must be at most num_examples, got 8 > 7"):
    train(key, num_steps=1, batch_size=8)
