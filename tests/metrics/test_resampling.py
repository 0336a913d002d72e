import fractions
import itertools
import math

import jax
import numpy as np
import pytest

from jaxlab.metrics import inference_scaling, resampling

TASKS, N = 5, 6
RNG = np.random.default_rng(0)
CORRECT = RNG.random((TASKS, N)) < np.array([0.1, 0.4, 0.7, 0.0, 0.9])[:, None]
ACCEPTED = CORRECT | (RNG.random((TASKS, N)) < 0.3)
ACCEPTED[3] = False
ACCEPTED[4] &= np.arange(N) > 1  # Also false negatives.
ATTEMPTS = tuple(range(1, N + 1))
SUCCESS, PRIORS = np.array([0.6, 0.05, 0.0]), np.array([0.5, 0.3, 0.2])

statistics = jax.jit(resampling.verifier_statistics)
reward_curve = jax.jit(resampling.resampling_reward_curve, static_argnames="attempts")
false_discovery = jax.jit(resampling.false_discovery_by_attempt, static_argnames="max_attempts")
value_curve = jax.jit(resampling.resampling_value_curve, static_argnames="max_attempts")
ceiling = jax.jit(resampling.resampling_accuracy_ceiling)
optimal = jax.jit(resampling.optimal_num_samples)
coverage_curve = jax.jit(inference_scaling.coverage_curve, static_argnames="ks")


def test_statistics_match_a_slow_loop():
  result = statistics(ACCEPTED, CORRECT)
  shares = [c[a].mean() for a, c in zip(ACCEPTED, CORRECT) if a.any()]
  empty = TASKS - len(shares)
  accuracy, acceptance, conditional = CORRECT.mean(), ACCEPTED.mean(), np.mean(shares)
  expected = resampling.VerifierStatistics(
    accuracy,
    acceptance,
    conditional,
    np.sum(shares) / TASKS,
    (np.sum(shares) + empty) / TASKS,
    (1 - accuracy - acceptance + conditional * acceptance) / (1 - accuracy),
    ACCEPTED[~CORRECT].mean(),
    1 - ACCEPTED[CORRECT].mean(),
    acceptance - (ACCEPTED & CORRECT).mean(),
  )
  assert empty == 1 and result.false_negative_rate > 0
  for name in expected._fields:
    np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-5)


def test_statistics_of_a_perfect_verifier_and_over_nothing():
  perfect = statistics(CORRECT, CORRECT)
  assert perfect.conditional_accuracy == 1 and perfect.generalization_gap == 0
  assert perfect.soundness == 1 and perfect.false_positive_rate == 0
  nothing = statistics(np.zeros((TASKS, N), bool), CORRECT)
  assert np.isnan(nothing.conditional_accuracy) and nothing.soundness == 1
  np.testing.assert_array_equal(
    [nothing.conditional_accuracy_worst, nothing.conditional_accuracy_best], [0, 1]
  )
  assert np.isnan(statistics(ACCEPTED, np.zeros((TASKS, N), bool)).false_negative_rate)
  right = statistics(ACCEPTED, np.ones((TASKS, N), bool))
  assert np.isnan(right.soundness) and np.isnan(right.false_positive_rate)


@pytest.fixture(scope="module")
def orders():
  """The place and the verdict of the first accepted sample, task by task, in all orders."""
  firsts = []
  for accepted, correct in zip(ACCEPTED, CORRECT):
    outcomes = []
    for order in itertools.permutations(range(N)):
      place = next((k for k, j in enumerate(order) if accepted[j]), None)
      outcomes.append((np.inf, False) if place is None else (place, correct[order[place]]))
    firsts.append(outcomes)
  return np.array(firsts, float)


@pytest.mark.parametrize("cost", [0.0, 2.0])
def test_reward_is_the_average_over_orders(orders, cost):
  place, right = orders[..., 0], orders[..., 1]
  expected = [np.mean((place < k) * np.where(right, 1.0, -cost)) for k in ATTEMPTS]
  result = reward_curve(ACCEPTED, CORRECT, attempts=ATTEMPTS, false_positive_cost=cost)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  some = reward_curve(ACCEPTED, CORRECT, attempts=(4, 2), false_positive_cost=cost)
  np.testing.assert_allclose(some, [expected[3], expected[1]], rtol=1e-5, atol=1e-6)


def test_false_discovery_is_the_average_over_orders(orders):
  place, right = orders[..., 0], orders[..., 1]
  result = false_discovery(ACCEPTED, CORRECT, max_attempts=N)
  for k in range(N):
    stopped = place == k
    expected = np.mean(1 - right[stopped]) if stopped.any() else np.nan
    np.testing.assert_allclose(result[k], expected, rtol=1e-5)
  assert np.isnan(false_discovery(ACCEPTED | True, CORRECT, max_attempts=N)[1:]).all()


def test_rewards_of_special_verifiers():
  for cost in (0.0, 5.0):
    perfect = reward_curve(CORRECT, CORRECT, attempts=ATTEMPTS, false_positive_cost=cost)
    np.testing.assert_allclose(perfect, coverage_curve(CORRECT, ks=ATTEMPTS), rtol=1e-5)
  always = reward_curve(ACCEPTED | True, CORRECT, attempts=ATTEMPTS)
  np.testing.assert_allclose(always, np.full(N, CORRECT.mean()), rtol=1e-5)
  free = reward_curve(ACCEPTED, CORRECT, attempts=ATTEMPTS)
  assert np.all(np.diff(free) >= -1e-6)
  worst = statistics(ACCEPTED, CORRECT).conditional_accuracy_worst
  np.testing.assert_allclose(free[-1], worst, rtol=1e-5)


def test_large_pools_keep_their_digits():
  n, ks = 4000, (1, 100, 2000, 4000)
  accepted = np.arange(n)[None] < np.array([[1], [40]])
  result = reward_curve(accepted, accepted, attempts=ks)
  missed = [fractions.Fraction(math.comb(n - 40, k), math.comb(n, k)) for k in ks]
  expected = [(k / n + 1 - float(miss)) / 2 for k, miss in zip(ks, missed)]
  np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_entries_that_are_no_flags_give_nan():
  correct = CORRECT.astype(np.float32)
  correct[1, 2] = np.nan
  assert np.isnan(reward_curve(ACCEPTED, correct, attempts=ATTEMPTS)).all()
  assert np.isnan(statistics(ACCEPTED, correct).conditional_accuracy)
  ints = statistics(ACCEPTED.astype(np.int8), CORRECT.astype(np.float32))
  jax.tree.map(np.testing.assert_array_equal, ints, statistics(ACCEPTED, CORRECT))


def test_optimal_number_is_the_smallest_best_one():
  attempts = np.array([8, 2, 4, 1])
  for rewards, expected in (
    ([0.3, 0.5, 0.5, 0.1], 2),
    ([0.0, -1.0, 0.0, -2.0], 4),
    ([-0.1, -0.2, -0.1, -3.0], 0),
    ([np.nan, 0.1, 0.2, np.nan], 4),
    ([np.nan] * 4, 0),
  ):
    assert optimal(np.float32(rewards), attempts) == expected


OPTIONS = {
  "soundness": 0.8,
  "completeness": 0.9,
  "value_correct": 2.0,
  "value_false_positive": -1.5,
  "cost_per_attempt": 0.01,
}


def test_value_curve_matches_a_slow_loop():
  result = value_curve(SUCCESS, PRIORS, max_attempts=9, **OPTIONS)
  value, alive = 0.0, PRIORS.copy()
  for k in range(9):
    right, wrong = 0.9 * SUCCESS, 0.2 * (1 - SUCCESS)
    belief = alive / alive.sum()
    np.testing.assert_allclose(result.belief[k], belief, rtol=1e-5)
    np.testing.assert_allclose(result.prob_correct[k], belief @ right, rtol=1e-5)
    np.testing.assert_allclose(result.prob_false_positive[k], belief @ wrong, rtol=1e-5)
    value += alive.sum() * (2 * belief @ right - 1.5 * belief @ wrong - 0.01)
    np.testing.assert_allclose(result.value[k], value, rtol=1e-5)
    alive *= 0.1 * SUCCESS + 0.8 * (1 - SUCCESS)


def test_value_of_one_type_is_a_geometric_sum():
  success, soundness = np.array([0.3, 0.0, 0.0]), 0.7
  result = value_curve(success, np.array([1.0, 0.0, 0.0]), max_attempts=9, soundness=soundness)
  reject, gain = 0.49, 0.3 - 0.21
  expected = gain * (1 - reject ** np.arange(1, 10)) / (1 - reject)
  np.testing.assert_allclose(result.value, expected, rtol=1e-5)


def test_value_without_limit_is_the_ceiling():
  result = value_curve(SUCCESS, PRIORS, max_attempts=600, soundness=0.8, value_false_positive=0.0)
  limit = ceiling(SUCCESS, PRIORS, soundness=0.8)
  np.testing.assert_allclose(result.value[-1], limit, rtol=1e-5)
  np.testing.assert_allclose(result.belief[-1], [0, 0, 1], atol=1e-5)  # No underflow.
  false = result.prob_false_positive / (result.prob_correct + result.prob_false_positive)
  assert np.all(np.diff(false) >= -1e-6)
  assert not np.isnan(result.belief).any()


def test_ceilings():
  right, wrong = 0.9 * SUCCESS, 0.2 * (1 - SUCCESS)
  result = ceiling(SUCCESS, PRIORS, soundness=0.8, completeness=0.9)
  np.testing.assert_allclose(result, PRIORS @ (right / (right + wrong)), rtol=1e-6)
  np.testing.assert_allclose(ceiling(SUCCESS, PRIORS, soundness=1.0), 0.8, rtol=1e-6)
  assert ceiling(SUCCESS, PRIORS, soundness=1.0, completeness=0.0) == 0


def test_a_certain_type_leaves_nothing_to_believe():
  result = value_curve(
    np.ones(3), np.array([0.5, 0.3, 0.2]), max_attempts=9, soundness=0.8, completeness=1.0
  )
  np.testing.assert_allclose(result.value, np.ones(9), rtol=1e-6)
  np.testing.assert_array_equal(result.belief[1:], np.zeros((8, 3)))


def test_gradients_are_finite_at_the_edges():
  def total(success, priors, soundness):
    curve = resampling.resampling_value_curve(success, priors, soundness=soundness, max_attempts=9)
    limit = resampling.resampling_accuracy_ceiling(success, priors, soundness=soundness)
    return sum(map(lambda x: x.sum(), curve)) + limit

  gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  for success in ([0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
    for soundness in (0.0, 1.0):
      result = gradient(np.float32(success), np.float32([0.0, 0.5, 0.5]), soundness)
      assert all(np.isfinite(leaf).all() for leaf in result), (success, soundness, result)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: reward_curve(ACCEPTED, CORRECT, attempts=()), "attempts must not be empty"),
    (lambda: reward_curve(ACCEPTED, CORRECT, attempts=(0,)), r"attempts must lie in \[1, 6\]"),
    (lambda: reward_curve(ACCEPTED, CORRECT, attempts=(7,)), r"attempts.*\(7,\)"),
    (
      lambda: resampling.resampling_reward_curve(
        ACCEPTED, CORRECT, attempts=(1,), false_positive_cost=-1.0
      ),
      "false_positive_cost.*-1.0",
    ),
    (lambda: reward_curve(ACCEPTED, CORRECT[:2], attempts=(1,)), "correct must have shape"),
    (lambda: resampling.verifier_statistics(ACCEPTED * 2, CORRECT), "accepted must be 0 or 1"),
    (lambda: false_discovery(ACCEPTED, CORRECT, max_attempts=7), r"max_attempts.*\[1, 6\]"),
    (lambda: optimal(np.zeros(0), np.zeros(0, int)), "rewards must not be empty"),
    (lambda: value_curve(SUCCESS, PRIORS, soundness=0.5, max_attempts=0), "max_attempts.*0"),
    (
      lambda: resampling.resampling_accuracy_ceiling(SUCCESS, PRIORS, soundness=1.5),
      "soundness.*1.5",
    ),
    (
      lambda: resampling.resampling_accuracy_ceiling(SUCCESS, PRIORS / 2, soundness=0.5),
      "priors must sum to 1",
    ),
    (
      lambda: resampling.resampling_accuracy_ceiling(SUCCESS * 2, PRIORS, soundness=0.5),
      "success_probs must lie",
    ),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
