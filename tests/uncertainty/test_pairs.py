import functools

import jax
import numpy as np
import pytest

from jaxlab.uncertainty import pairs

RNG = np.random.default_rng(0)
B, K = 4, 3


@functools.cache
def compiled(name, **settings):
  return jax.jit(functools.partial(getattr(pairs, name), **settings))


def measure(name, *arrays, **settings):
  return jax.tree.map(np.asarray, compiled(name, **settings)(*arrays))


def random_joints():
  """Of mixtures, so that covariances have no negative eigenvalue."""
  answers = RNG.dirichlet(np.ones(K), size=(B, 2))
  joint = np.einsum("bmi,bmj->bij", answers, answers) / 2
  return joint, np.log(joint).astype(np.float32)


JOINT, LOG_JOINT = random_joints()
MARGINAL = JOINT.sum(axis=-1)


def test_second_order_quantities_match_a_loop():
  covariance = measure("epistemic_covariance", LOG_JOINT)
  variance = measure("epistemic_variance", LOG_JOINT)
  confidence = measure("pair_confidence", LOG_JOINT)
  np.testing.assert_allclose(measure("pair_marginal", LOG_JOINT), MARGINAL, rtol=1e-5)
  for b in range(B):
    for i in range(K):
      m = MARGINAL[b, i]
      for j in range(K):
        expected = JOINT[b, i, j] - m * MARGINAL[b, j]
        np.testing.assert_allclose(covariance[b, i, j], expected, atol=1e-6)
      v = m * (JOINT[b, i, i] / m - m)
      np.testing.assert_allclose(variance[b, i], v, atol=1e-6)
      np.testing.assert_allclose(confidence[b, i], m**2 / (m**2 + v), rtol=1e-4)
  np.testing.assert_allclose(covariance.sum(axis=-1), 0, atol=1e-6)


def test_a_product_knows_all_there_is_to_know():
  product = np.log(MARGINAL[:, :, None] * MARGINAL[:, None]).astype(np.float32)
  np.testing.assert_allclose(measure("epistemic_covariance", product), 0, atol=1e-6)
  variance = measure("epistemic_variance", product)
  assert (variance >= 0).all()
  np.testing.assert_allclose(measure("pair_confidence", product), 1, rtol=1e-5)


def test_a_diagonal_joint_knows_nothing():
  diagonal = np.full((B, K, K), -np.inf, np.float32)
  diagonal[:, range(K), range(K)] = np.log(MARGINAL)
  np.testing.assert_allclose(measure("pair_confidence", diagonal), MARGINAL, rtol=1e-5)
  expected = MARGINAL * (1 - MARGINAL)
  np.testing.assert_allclose(measure("epistemic_variance", diagonal), expected, rtol=1e-4)


def test_impossible_answers():
  joint = LOG_JOINT.copy()
  joint[:, 0] = joint[:, :, 0] = -np.inf  # Never given.
  joint[:, 1, 1] = -np.inf  # Never given twice.
  confidence = measure("pair_confidence", joint)
  assert (confidence[:, 0] == 0).all() and (confidence[:, 1] == 1).all()
  assert (measure("epistemic_variance", joint)[:, :2] == 0).all()
  assert (measure("epistemic_covariance", joint)[:, 1, 1] < 0).all()
  gradient = jax.jit(jax.grad(lambda x: pairs.pair_confidence(x).sum()))(joint)
  assert np.isfinite(gradient).all()


def test_confidence_stays_in_range_at_extremes():
  joint = np.full((B, K, K), -2e4, np.float32)
  joint[:, 0, 0] = 0
  joint[0, 1, 1] = -4e4
  confidence = measure("pair_confidence", joint)
  assert ((confidence >= 0) & (confidence <= 1)).all()
  np.testing.assert_allclose(confidence[:, 0], 1)


def test_sequence_confidence():
  log_prob = np.array([-5.0, -5.0, -5.0, -np.inf, -1e4], np.float32)
  given_self = np.array([-5.0, -1.0, -6.0, -1.0, 0.0], np.float32)
  expected = [1, np.exp(-4), 1, 0, 0]
  np.testing.assert_allclose(measure("sequence_confidence", log_prob, given_self), expected)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0])
def test_intervals(beta):
  variance = (MARGINAL - JOINT[:, 0] / JOINT[:, 0].sum(axis=-1, keepdims=True)) ** 2
  variance[0, 0], variance[0, 1] = 0.0, -0.1
  interval = jax.jit(pairs.probability_interval)
  lower, upper = jax.tree.map(np.asarray, interval(MARGINAL, variance, beta=beta))
  margin = np.sqrt(np.maximum(variance, 0) / beta)
  np.testing.assert_allclose(lower, np.clip(MARGINAL - margin, 0, 1), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(upper, np.clip(MARGINAL + margin, 0, 1), rtol=1e-4, atol=1e-6)
  # A variance that is the squared error puts the true probability inside.
  truth = MARGINAL + np.sqrt(np.maximum(variance, 0)) * np.where(
    RNG.uniform(size=(B, K)) < 0.5, -1, 1
  )
  inside = (truth >= 0) & (truth <= 1)
  assert ((lower - 1e-6 <= truth) & (truth <= upper + 1e-6))[inside].all()


def test_the_interval_of_a_sure_answer_has_no_width():
  gradient = jax.jit(jax.grad(lambda v: pairs.probability_interval(MARGINAL, v).upper.sum()))
  assert np.isfinite(gradient(np.zeros((B, K), np.float32))).all()
  lower, upper = jax.jit(pairs.probability_interval)(MARGINAL, np.zeros((B, K), np.float32))
  np.testing.assert_array_equal(lower, upper)


def test_ensemble_variance():
  probs = RNG.dirichlet(np.ones(K), size=(5, B))
  np.testing.assert_allclose(measure("ensemble_variance", probs), probs.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: pairs.probability_interval([0.5], [0.1], beta=0.0), "beta"),
    (lambda: pairs.probability_interval([0.5], [0.1], beta=1.5), "beta"),
    (lambda: pairs.pair_confidence(np.zeros((2, 3))), "log_pair_probs must have shape"),
    (lambda: pairs.ensemble_variance(np.zeros((0, 2, 3))), "members"),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
