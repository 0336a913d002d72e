"""Factor models: what inputs determine, and heads of few labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import algorithms, data

M, D, R = 24, 6, 2
RNG = np.random.default_rng(0)
LOADINGS = RNG.normal(size=(D, R)).astype(np.float32)
ROTATION = np.linalg.qr(RNG.normal(size=(R, R)))[0].astype(np.float32)


def compiled(function):
  """One program, with results that NumPy may take apart."""
  function = jax.jit(function)
  return lambda *args: jax.tree.map(np.asarray, function(*args))


@compiled
def estimate(inputs):
  return algorithms.factor_mle(inputs, rank=R), algorithms.factor_mle_gram(inputs, rank=R)


@compiled
def posterior(inputs, loadings):
  mean = algorithms.factor_posterior_mean(inputs, loadings)
  return mean, algorithms.factor_posterior_covariance(loadings)


@compiled
def fit(inputs, targets, loadings):
  heads = [
    algorithms.factor_regression(inputs, targets, loadings, posterior_loss=flag)
    for flag in (True, False)
  ]
  mean = algorithms.factor_posterior_mean(inputs, loadings)
  return heads, [jnp.matmul(mean, head) for head in heads]


def slow_gram(inputs):
  values, vectors = np.linalg.eigh(inputs.T.astype(np.float64) @ inputs / len(inputs))
  largest = np.argsort(values)[::-1][:R]
  return sum(max(values[i] - 1, 0) * np.outer(vectors[:, i], vectors[:, i]) for i in largest)


def test_estimate_matches_numpy():
  inputs = RNG.normal(size=(M, R)) @ LOADINGS.T + RNG.normal(size=(M, D))
  inputs = inputs.astype(np.float32)
  loadings, gram = estimate(inputs)
  np.testing.assert_allclose(gram, slow_gram(inputs), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(loadings @ loadings.T, gram, rtol=1e-4, atol=1e-4)
  norms = np.linalg.norm(loadings, axis=0)
  assert norms[0] > norms[1] > 0
  np.testing.assert_allclose(loadings[:, 0] @ loadings[:, 1], 0, atol=1e-4)
  assert (loadings[np.abs(loadings).argmax(0), range(R)] > 0).all()


def test_the_true_covariance_gives_the_true_loadings():
  values, vectors = np.linalg.eigh(LOADINGS @ LOADINGS.T + np.eye(D))
  # M rows whose average outer product is exactly the covariance.
  root = np.sqrt(D) * vectors * np.sqrt(values) @ vectors.T
  inputs = np.resize(root, (M, D)).astype(np.float32)
  loadings, gram = estimate(inputs)
  np.testing.assert_allclose(gram, LOADINGS @ LOADINGS.T, atol=1e-4)
  for ours, theirs in zip(posterior(inputs, loadings @ ROTATION), posterior(inputs, loadings)):
    rotated = theirs @ ROTATION if len(theirs) == M else ROTATION.T @ theirs @ ROTATION
    np.testing.assert_allclose(ours, rotated, atol=1e-4)


def test_inputs_that_are_weaker_than_the_noise_have_no_factors():
  inputs = np.resize(0.9 * np.sqrt(D) * np.eye(D), (M, D)).astype(np.float32)
  for result in estimate(inputs):
    np.testing.assert_array_equal(result, 0)


def test_posterior_matches_its_formulas():
  inputs = RNG.normal(size=(M, D)).astype(np.float32)
  for scale in (1.0, 0.0, 100.0):
    loadings = scale * LOADINGS.astype(np.float64)
    covariance = np.linalg.inv(np.eye(R) + loadings.T @ loadings)
    mean, ours = posterior(inputs, loadings.astype(np.float32))
    np.testing.assert_allclose(ours, covariance, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(mean, inputs @ loadings @ covariance, rtol=1e-3, atol=1e-5)


def test_regression_matches_its_formulas_and_does_not_depend_on_the_rotation():
  inputs, targets = RNG.normal(size=(M, D)).astype("f"), RNG.normal(size=M).astype("f")
  (shrunk, plain), predictions = fit(inputs, targets, LOADINGS)
  mean, covariance = (x.astype(np.float64) for x in posterior(inputs, LOADINGS))
  expected = np.linalg.solve(mean.T @ mean + M * covariance, mean.T @ targets)
  np.testing.assert_allclose(shrunk, expected, rtol=1e-4)
  np.testing.assert_allclose(plain, np.linalg.lstsq(mean, targets)[0], rtol=1e-4)
  _, rotated = fit(inputs, targets, LOADINGS @ ROTATION)
  np.testing.assert_allclose(rotated, predictions, atol=1e-4)
  # One labeled row, and rows of zeros, which count for nothing: the shortest solution.
  alone = np.arange(M)[:, None] == 0
  (_, plain), predictions = fit(inputs * alone, targets * alone[:, 0], LOADINGS)
  expected = mean[0] * targets[0] / (mean[0] @ mean[0])
  np.testing.assert_allclose(plain, expected, rtol=1e-3)
  # Loadings of 0 leave nothing to predict from.
  heads, _ = fit(inputs, targets, 0 * LOADINGS)
  np.testing.assert_array_equal(heads, 0)


SIZES = np.array([50, 100, 200, 400])


@jax.jit
@jax.vmap
def excess_of_known_loadings(key):
  loading_key, head_key, key = jax.random.split(key, 3)
  loadings = jax.random.normal(loading_key, (20, 3))
  head = jax.random.normal(head_key, (3,)) / jnp.sqrt(3.0)
  task = data.sample_factor_task(key, loadings, head, num_samples=400)
  # The features have the covariance of z minus that of z given x.
  spread = jnp.eye(3) - algorithms.factor_posterior_covariance(loadings)

  def excess(size):
    used = jnp.arange(400) < size
    gap = head - algorithms.factor_regression(
      jnp.where(used[:, None], task.inputs, 0.0),
      jnp.where(used, task.targets, 0.0),
      loadings,
      posterior_loss=False,
    )
    return gap @ spread @ gap

  return jax.lax.map(excess, jnp.asarray(SIZES))


def test_excess_risk_of_known_loadings_falls_like_one_over_n():
  excess = np.mean(excess_of_known_loadings(jax.random.split(jax.random.key(0), 300)), axis=0)
  slope = np.polyfit(np.log(SIZES), np.log(excess), 1)[0]
  assert abs(slope + 1) < 0.2
  # Noise of z given x is small here: 3 coefficients, variance 1/4 of the targets' noise.
  np.testing.assert_allclose(excess[-1], 3 * 0.3 / 400, rtol=0.3)


def test_gradients_nan_and_errors():
  inputs, targets = RNG.normal(size=(M, D)).astype("f"), RNG.normal(size=M).astype("f")
  slopes = jax.jit(
    jax.grad(
      lambda x, y, b: sum(
        algorithms.factor_regression(x, y, b, posterior_loss=flag).sum() for flag in (True, False)
      ),
      argnums=(0, 1, 2),
    )
  )
  for values in ((inputs, targets, LOADINGS), (0 * inputs, targets, LOADINGS)):
    assert all(np.isfinite(x).all() for x in slopes(*values))
  spoiled = inputs.copy()
  spoiled[3, 1] = np.nan
  mean, _ = posterior(spoiled, LOADINGS)
  np.testing.assert_array_equal(np.isnan(mean).all(1), np.arange(M) == 3)
  for function in (algorithms.factor_mle, algorithms.factor_mle_gram):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
      function(inputs, rank=0)
    with pytest.raises(ValueError, match="rank must be at most the number of inputs, got 7 > 6"):
      function(inputs, rank=7)
  with pytest.raises(ValueError, match="targets must have shape"):
    algorithms.factor_regression(inputs, targets[1:], LOADINGS)
