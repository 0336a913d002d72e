import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses, metrics

N = 64
RNG = np.random.default_rng(0)
# Policy and reference, chosen and rejected.
PAIRS = tuple((-20 + 5 * RNG.normal(size=(4, N))).astype(np.float32))
REFERENCE = PAIRS[2:]
PROBS = RNG.uniform(0.02, 0.98, N).astype(np.float32)

CHOSEN = np.array([1.0, 2.0, 0.0, -1.0, np.inf], np.float32)
REJECTED = np.array([0.0, 2.0, 1.0, -3.0, np.inf], np.float32)
pairwise = jax.jit(metrics.pairwise_accuracy)
ranking = jax.jit(metrics.ranking_accuracy)
log_ratio = jax.jit(metrics.idealized_log_ratio)
idealized = jax.jit(metrics.idealized_ranking_accuracy)
threshold = jax.jit(metrics.ranking_loss_threshold)
transitions = jax.jit(metrics.ranking_transitions)


def test_pairwise_accuracy_counts_ties_one_half():
  assert pairwise(CHOSEN, REJECTED) == np.float32(0.6)
  weights = np.array([3, 1, 2, 0, 0])
  np.testing.assert_allclose(pairwise(CHOSEN, REJECTED, weights=weights), 3.5 / 6, rtol=1e-6)
  assert pairwise(CHOSEN, REJECTED, weights=np.zeros(5, np.int64)) == 0
  assert np.isnan(pairwise(CHOSEN * np.nan, REJECTED))


def test_accuracy_counts_pairs():
  chosen, rejected = np.round(PAIRS[0]), np.round(PAIRS[1])
  assert np.any(chosen == rejected)
  np.testing.assert_allclose(
    ranking(chosen, rejected), np.mean([a > b for a, b in zip(chosen, rejected)])
  )
  lengths = RNG.integers(0, 9, (2, N))
  per_token = [x / np.maximum(n, 1) for x, n in zip((chosen, rejected), lengths)]
  result = ranking(chosen, rejected, chosen_lengths=lengths[0], rejected_lengths=lengths[1])
  np.testing.assert_allclose(result, np.mean(per_token[0] > per_token[1]))


def test_accuracy_of_a_part_of_the_pairs():
  mask = RNG.random(N) < 0.5
  chosen = np.where(mask, PAIRS[0], np.nan)
  expected = np.mean(PAIRS[0][mask] > PAIRS[1][mask])
  np.testing.assert_allclose(ranking(chosen, PAIRS[1], mask=mask), expected, rtol=1e-6)
  np.testing.assert_allclose(
    ranking(chosen, PAIRS[1], mask=mask.astype(np.float32)), expected, rtol=1e-6
  )
  assert np.isnan(ranking(chosen, PAIRS[1]))
  assert np.isnan(ranking(*PAIRS[:2], mask=np.zeros(N, bool)))
  impossible = np.full(N, -np.inf, np.float32)
  assert ranking(impossible, impossible) == 0 and ranking(PAIRS[0], impossible) == 1


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_idealized_policy_matches_the_formula(beta):
  g = np.float64(REFERENCE[0]) - REFERENCE[1]
  expected = g + np.log(PROBS / (1 - np.float64(PROBS))) / beta
  np.testing.assert_allclose(log_ratio(*REFERENCE, PROBS, beta=beta), expected, rtol=1e-4)
  np.testing.assert_allclose(idealized(*REFERENCE, PROBS, beta=beta), np.mean(expected > 0))


def test_limits_of_the_idealized_accuracy():
  reference = ranking(*REFERENCE)
  assert 0.3 < reference < 0.7
  assert idealized(*REFERENCE, PROBS, beta=1e6) == reference
  assert idealized(*REFERENCE, np.full(N, 0.5, np.float32), beta=0.1) == reference
  np.testing.assert_allclose(idealized(*REFERENCE, PROBS, beta=1e-6), np.mean(PROBS > 0.5))
  certain = np.ones(N, np.float32)
  assert idealized(*REFERENCE, certain, beta=1e-3) == 1
  ends = log_ratio(*REFERENCE, np.where(PROBS > 0.5, 1, 0).astype(np.float32), beta=1.0)
  g = REFERENCE[0] - REFERENCE[1]
  np.testing.assert_allclose(np.abs(ends - g), np.log(1e6), rtol=1e-2)


def test_optimum_of_a_penalized_reward_attains_the_idealized_accuracy():
  """Four responses a prompt; rewards of which preferences follow Bradley and Terry."""
  rng, beta = np.random.default_rng(1), 0.5
  reference = np.log(rng.dirichlet(np.ones(4), N))
  rewards = rng.normal(size=(N, 4))
  optimum = reference + rewards / beta
  optimum -= np.log(np.sum(np.exp(optimum), axis=1, keepdims=True))
  first, second = (rng.permuted(np.tile(np.arange(4), (N, 1)), axis=1)[:, :2]).T
  rows = np.arange(N)
  probs = 1 / (1 + np.exp(rewards[rows, second] - rewards[rows, first]))
  pairs = [x[rows, i].astype(np.float32) for x in (reference, optimum) for i in (first, second)]
  np.testing.assert_allclose(
    log_ratio(*pairs[:2], np.float32(probs), beta=beta), pairs[2] - pairs[3], rtol=1e-3, atol=1e-4
  )
  assert idealized(*pairs[:2], np.float32(probs), beta=beta) == ranking(*pairs[2:])


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_pairs_are_ranked_right_where_the_loss_is_below_its_threshold(beta):
  least = threshold(*REFERENCE, beta=beta)
  c = np.float64(REFERENCE[1]) - REFERENCE[0]
  np.testing.assert_allclose(least, np.logaddexp(0, -beta * c), rtol=1e-5)
  loss = jax.jit(losses.dpo_loss)(*PAIRS, beta=beta)
  np.testing.assert_array_equal(loss <= least, PAIRS[0] >= PAIRS[1])
  tied = jax.jit(losses.dpo_loss)(PAIRS[0], PAIRS[0], *REFERENCE, beta=beta)
  np.testing.assert_allclose(tied, least, rtol=1e-5)


def test_extreme_thresholds():
  ends = np.float32([1e4, -1e4, 0.0])
  zeros = np.zeros(3, np.float32)
  result = jax.jit(metrics.ranking_loss_threshold)(ends, zeros, beta=0.1)
  np.testing.assert_allclose(result, [1e3, 0, np.log(2)], rtol=1e-6)
  slope = jax.jit(jax.grad(lambda x: metrics.ranking_loss_threshold(x, zeros, beta=0.1).sum()))
  np.testing.assert_allclose(slope(ends), [0.1, 0, 0.05], rtol=1e-6)


def test_transitions_account_for_the_change_of_accuracy():
  before, after = PAIRS[2] > PAIRS[3], PAIRS[0] > PAIRS[1]
  result = transitions(before, after)
  cells = [np.mean((before == b) & (after == a)) for b, a in ((1, 1), (0, 1), (1, 0), (0, 0))]
  np.testing.assert_allclose(result, cells)
  np.testing.assert_allclose(sum(result), 1.0, rtol=1e-6)
  change = ranking(*PAIRS[:2]) - ranking(*REFERENCE)
  np.testing.assert_allclose(result.gained - result.lost, change, atol=1e-6)
  assert np.isnan(transitions(np.zeros(0, bool), np.zeros(0, bool))).all()


def test_half_precision_is_cast_and_nan_is_not_lost():
  half = [jnp.asarray(x, jnp.bfloat16) for x in (*REFERENCE, PROBS)]
  wide = [x.astype(jnp.float32) for x in half]
  result = log_ratio(*half, beta=0.5)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, log_ratio(*wide, beta=0.5), rtol=1e-6)
  spoiled = np.where(np.arange(N) == 3, np.nan, PROBS)
  np.testing.assert_array_equal(
    np.isnan(log_ratio(*REFERENCE, spoiled, beta=0.5)), np.arange(N) == 3
  )
  assert np.isnan(idealized(*REFERENCE, spoiled, beta=0.5))


def test_errors():
  with pytest.raises(ValueError, match="rejected_lengths is None"):
    metrics.ranking_accuracy(*REFERENCE, chosen_lengths=np.ones(N))
  with pytest.raises(ValueError, match="^mask must have shape"):
    metrics.ranking_accuracy(*REFERENCE, mask=np.ones(3))
  for metric in metrics.idealized_log_ratio, metrics.idealized_ranking_accuracy:
    with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\), got 0"):
      metric(*REFERENCE, PROBS, beta=0)
    with pytest.raises(ValueError, match=r"preference_probs must lie in \[0, 1\]"):
      metric(*REFERENCE, PROBS + 1, beta=0.1)
  with pytest.raises(ValueError, match="beta"):
    metrics.ranking_loss_threshold(*REFERENCE, beta=-1.0)
  with pytest.raises(TypeError, match="policy_correct must be of type bool"):
    metrics.ranking_transitions(np.ones(3, bool), np.ones(3))


def test_errors_of_rewards():
  with pytest.raises(ValueError, match=r"^weights must have shape \[n\] with n = 5, got \[2\]"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED, weights=np.ones(2))
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\)"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED, weights=-np.ones(5))
  with pytest.raises(ValueError, match="^rejected_rewards must have shape"):
    metrics.pairwise_accuracy(CHOSEN, REJECTED[:2])
