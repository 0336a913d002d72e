import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.samplers import mcmc

MEAN = np.array([1.0, -2.0], np.float32)
COVARIANCE = np.array([[1.0, 1.8], [1.8, 4.0]], np.float32)
PRECISION = np.linalg.inv(COVARIANCE)


def gaussian(x):
  return -0.5 * (x - MEAN) @ PRECISION @ (x - MEAN)


def exact_draws(num, seed=0):
  rng = np.random.default_rng(seed)
  return rng.multivariate_normal(MEAN, COVARIANCE, num).astype(np.float32)


def test_stretch_proposal_formula():
  walkers, partners = exact_draws(5, 1), exact_draws(5, 2)
  z = np.array([0.5, 1.0, 2.0, 0.7, 1.3], np.float32)
  got = mcmc.stretch_proposal(walkers, partners, z)
  for i in range(5):
    expected = partners[i] + z[i] * (walkers[i] - partners[i])
    np.testing.assert_allclose(got.proposals[i], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.log_factor[i], math.log(z[i]), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(got.proposals[1], walkers[1], atol=1e-6)
  three = mcmc.stretch_proposal(np.ones((1, 3)), np.zeros((1, 3)), np.array([2.0]))
  np.testing.assert_allclose(three.log_factor, 2 * math.log(2), rtol=1e-6)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_stretch_proposal_commutes_with_affine_maps(seed):
  rng = np.random.default_rng(seed)
  walkers, partners = rng.normal(size=(2, 4, 3))
  z, matrix, shift = rng.uniform(0.5, 2, 4), rng.normal(size=(3, 3)), rng.normal(size=3)
  mapped = mcmc.stretch_proposal(walkers @ matrix + shift, partners @ matrix + shift, z)
  plain = mcmc.stretch_proposal(walkers, partners, z)
  np.testing.assert_allclose(mapped.proposals, plain.proposals @ matrix + shift, atol=1e-4)
  np.testing.assert_array_equal(mapped.log_factor, plain.log_factor)


@pytest.mark.parametrize("stretch", [2.0, 3.0])
def test_gaussian_is_invariant(stretch):
  # Exact draws stay exact; a wrong volume factor or partner changes the law after a few steps.
  num = 100_000
  run = functools.partial(mcmc.affine_invariant_mcmc, log_prob_fn=gaussian, num_steps=4, thin=4)
  result = jax.jit(lambda key, walkers, a: run(key, walkers=walkers, stretch=a))(
    jax.random.key(0), exact_draws(num), stretch
  )
  samples = np.asarray(result.samples, np.float64)
  assert samples.shape == (num, 2)
  errors = (samples.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE) / num)
  assert np.abs(errors).max() < 3
  variance = np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)) + COVARIANCE**2
  assert np.abs((np.cov(samples.T) - COVARIANCE) / np.sqrt(variance / num)).max() < 3
  assert 0.4 < result.acceptance_rate < 0.9


def test_converges_from_a_remote_start():
  walkers = exact_draws(100) * 0.1 + 20.0
  result = jax.jit(
    lambda key: mcmc.affine_invariant_mcmc(
      key, gaussian, walkers, num_steps=1500, burn_in=500, thin=5
    )
  )(jax.random.key(1))
  np.testing.assert_allclose(np.mean(result.samples, 0), MEAN, atol=0.15)
  np.testing.assert_allclose(np.cov(result.samples.T), COVARIANCE, atol=0.4)


@functools.cache
def short_run(burn_in=0, thin=1):
  return jax.jit(
    lambda key, walkers: mcmc.affine_invariant_mcmc(
      key, gaussian, walkers, num_steps=7, burn_in=burn_in, thin=thin
    )
  )


def test_kept_steps_and_acceptance_rate():
  key, walkers = jax.random.key(2), exact_draws(6)
  full = short_run()(key, walkers)
  assert full.samples.shape == (42, 2) and full.log_probs.shape == (42,)
  np.testing.assert_allclose(full.log_probs, jax.vmap(gaussian)(full.samples), rtol=1e-4, atol=1e-4)
  trace = np.concatenate([walkers[None], np.reshape(full.samples, (7, 6, 2))])
  moved = np.any(trace[1:] != trace[:-1], axis=-1)
  np.testing.assert_allclose(full.acceptance_rate, moved.mean(), rtol=1e-6)
  # Steps 4 and 6; the seventh does not fill a block but its proposals count.
  kept = short_run(burn_in=2, thin=2)(key, walkers)
  np.testing.assert_allclose(kept.samples, np.concatenate([trace[4], trace[6]]), rtol=1e-5)
  np.testing.assert_allclose(kept.acceptance_rate, moved.mean(), rtol=1e-6)


def test_vmap_over_problems_matches_one_by_one():
  walkers = np.stack([exact_draws(6, seed) for seed in range(3)])
  keys = jax.random.split(jax.random.key(3), 3)
  together = jax.jit(jax.vmap(short_run()))(keys, walkers)
  for i in range(3):
    alone = short_run()(keys[i], walkers[i])
    np.testing.assert_allclose(together.samples[i], alone.samples, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.acceptance_rate[i], alone.acceptance_rate, rtol=1e-6)


def test_moves_follow_the_acceptance_rule():
  # A flat density accepts with min(1, z^(d-1)); one walker line shows the range of z.
  walkers = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
  result = mcmc.affine_invariant_mcmc(
    jax.random.key(4), lambda x: 0.0, walkers, num_steps=1, stretch=4.0
  )
  stretch = jnp.float32(4.0)  # closed over, which makes its comparisons traced
  closed = jax.jit(
    lambda key: mcmc.affine_invariant_mcmc(
      key, lambda x: 0.0, walkers, num_steps=1, stretch=stretch
    )
  )(jax.random.key(4))
  np.testing.assert_allclose(closed.samples, result.samples, rtol=1e-5)
  first = np.asarray(result.samples)[:2, 0]
  z = 1 - first[first != 0]  # partner is 1: the proposal is 1 - z
  assert np.all((z >= 0.25 - 1e-6) & (z <= 4.0 + 1e-5))


def test_nan_and_minus_infinity_are_never_moved_to():
  def half_line(x):
    return jnp.where(x[0] > 0, -x[0], jnp.where(x[0] < -1, jnp.nan, -jnp.inf))

  walkers = jnp.linspace(-1.5, 5.0, 20)[:, None]
  run = jax.jit(
    lambda key: mcmc.affine_invariant_mcmc(key, half_line, walkers, num_steps=400, burn_in=200)
  )
  result = run(jax.random.key(5))
  assert np.all(result.samples > 0) and np.all(np.isfinite(result.log_probs))
  np.testing.assert_allclose(np.mean(result.samples), 1.0, atol=0.2)
  stuck = mcmc.affine_invariant_mcmc(
    jax.random.key(6), lambda x: x[0] * jnp.nan, walkers, num_steps=2
  )
  np.testing.assert_array_equal(stuck.samples, np.tile(walkers, (2, 1)))
  assert np.all(stuck.log_probs == -np.inf) and stuck.acceptance_rate == 0


def test_bfloat16_walkers_are_moved_in_float32():
  walkers = jnp.array(exact_draws(6), jnp.bfloat16)
  result = short_run()(jax.random.key(7), walkers)
  assert result.samples.dtype == jnp.float32 and result.log_probs.dtype == jnp.float32


def test_initial_walkers_follow_the_weights_without_replacement():
  candidates = np.arange(6.0, dtype=np.float32)[:, None]
  log_weights = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4, 0.0, jnp.nan]))
  keys = jax.random.split(jax.random.key(8), 4000)

  @functools.partial(jax.jit, static_argnums=0)
  def draw(num):
    return jax.vmap(
      lambda key: mcmc.initial_walkers(key, candidates, log_weights + 50.0, num_walkers=num)
    )(keys)[..., 0]

  one = np.asarray(draw(1))[:, 0].astype(int)
  frequency = np.bincount(one, minlength=6) / 4000
  expected = np.array([0.1, 0.2, 0.3, 0.4, 0.0, 0.0])
  assert np.all(np.abs(frequency - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000))
  four = np.sort(np.asarray(draw(4)), axis=1)
  np.testing.assert_array_equal(four, np.tile(np.arange(4.0), (4000, 1)))


def test_errors():
  run = functools.partial(mcmc.affine_invariant_mcmc, jax.random.key(0), gaussian)
  with pytest.raises(ValueError, match="walkers.*got 5"):
    run(np.zeros((5, 2)), num_steps=2)
  with pytest.raises(ValueError, match="walkers.*at least 4, got 2"):
    run(np.zeros((2, 2)), num_steps=2)
  with pytest.raises(ValueError, match="burn_in.*-1"):
    run(np.zeros((4, 2)), num_steps=2, burn_in=-1)
  with pytest.raises(ValueError, match="thin.*0"):
    run(np.zeros((4, 2)), num_steps=2, thin=0)
  with pytest.raises(ValueError, match="num_steps.*got 3"):
    run(np.zeros((4, 2)), num_steps=3, burn_in=2, thin=2)
  with pytest.raises(ValueError, match="stretch.*1.0"):
    run(np.zeros((4, 2)), num_steps=3, stretch=1.0)
  with pytest.raises(ValueError, match="num_walkers.*got 4"):
    mcmc.initial_walkers(jax.random.key(0), np.zeros((3, 1)), np.zeros(3), num_walkers=4)
  with pytest.raises(ValueError, match="partners must have shape"):
    mcmc.stretch_proposal(np.zeros((3, 2)), np.zeros((3, 3)), np.ones(3))
