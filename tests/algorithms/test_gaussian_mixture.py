"""Expectation maximization of mixtures with unit variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import algorithms, losses

M, D, K = 60, 3, 4
RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(K, D)).astype(np.float32)
# Norms of 8 and different directions.
FAR = 8 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
DATA = (FAR[np.arange(M) % K] + RNG.normal(size=(M, D))).astype(np.float32)


def compiled(function):
  """One program, with results that NumPy may take apart."""
  function = jax.jit(function)
  return lambda *args: jax.tree.map(np.asarray, function(*args))


@compiled
def step(data, centers):
  likelihood = -jnp.mean(losses.isotropic_mixture_nll(data, centers))
  return algorithms.responsibilities(data, centers), algorithms.em_update(data, centers), likelihood


@compiled
def fit(key, data):
  return algorithms.fit_isotropic_mixture(key, data, num_components=K, num_restarts=5, num_steps=20)


@compiled
def fit_one(key, data):
  return algorithms.fit_isotropic_mixture(key, data, num_components=1, num_steps=1)


def test_a_step_matches_a_loop():
  shares, moved, _ = step(DATA, CENTERS)
  expected = np.zeros((M, K))
  for i in range(M):
    weights = [np.exp(-np.sum((DATA[i] - u) ** 2.0) / 2) for u in CENTERS.astype(np.float64)]
    expected[i] = weights / np.sum(weights)
  np.testing.assert_allclose(shares, expected, atol=1e-5)
  np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
  means = expected.T @ DATA / expected.sum(0)[:, None]
  np.testing.assert_allclose(moved, means, rtol=1e-4, atol=1e-4)


def test_the_likelihood_never_falls():
  centers, likelihoods = CENTERS, []
  for _ in range(10):
    _, centers, likelihood = step(DATA, centers)
    likelihoods.append(likelihood)
  assert (np.diff(likelihoods) > -1e-5).all() and likelihoods[-1] > likelihoods[0] + 1


def test_far_and_empty_components():
  shares, moved, _ = step(DATA, FAR)
  np.testing.assert_allclose(shares, np.eye(K)[np.arange(M) % K], atol=1e-6)
  lonely = FAR.copy()
  lonely[3] = 1e4
  shares, moved, _ = step(DATA, lonely)
  np.testing.assert_array_equal(moved[3], lonely[3])
  assert np.isfinite(moved).all()
  for values in (*step(1e4 * DATA, CENTERS), *step(DATA, -1e4 * CENTERS)):
    assert np.isfinite(values).all()


def test_fit_finds_separate_components():
  for seed in range(3):
    found = fit(jax.random.key(seed), DATA)
    distances = np.linalg.norm(found.centers[:, None] - FAR[None], axis=2)
    assert sorted(distances.argmin(1)) == list(range(K))
    means = np.array([DATA[np.arange(M) % K == k].mean(0) for k in range(K)])
    np.testing.assert_allclose(found.centers, means[distances.argmin(1)], atol=1e-3)
    _, _, likelihood = step(DATA, found.centers)
    np.testing.assert_allclose(found.log_likelihood, likelihood, rtol=1e-5)


def test_one_component_is_the_mean_and_copies_change_nothing():
  found = fit_one(jax.random.key(0), DATA)
  np.testing.assert_allclose(found.centers[0], DATA.mean(0), atol=1e-5)
  halves = np.resize(DATA[: M // 2], (M, D))
  for ours, theirs in zip(step(halves, CENTERS)[1:], step_half(DATA[: M // 2], CENTERS)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  # Fewer different rows than components.
  same = fit(jax.random.key(0), np.resize(DATA[:2], (M, D)))
  assert np.isfinite(same.log_likelihood)
  np.testing.assert_allclose(np.sort(np.unique(same.centers.round(3), axis=0)[:, 0]).size, 2)


def step_half(data, centers):
  distances = np.sum((data[:, None].astype(np.float64) - centers[None]) ** 2, axis=2)
  weights = np.exp(-distances / 2)
  likelihood = np.mean(np.log(weights.mean(1))) - D / 2 * np.log(2 * np.pi)
  shares = weights / weights.sum(1, keepdims=True)
  return shares.T @ data / shares.sum(0)[:, None], likelihood


def test_errors():
  key = jax.random.key(0)
  for name in ("num_components", "num_restarts", "num_steps"):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
      algorithms.fit_isotropic_mixture(key, DATA, **{"num_components": 2, name: 0})
  with pytest.raises(ValueError, match="data must not be empty"):
    algorithms.fit_isotropic_mixture(key, DATA[:0], num_components=2)
  with pytest.raises(ValueError, match="centers must have shape"):
    algorithms.em_update(DATA, CENTERS[:, 1:])
