import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxlab import losses

X, Y = 3, 4
RNG = np.random.default_rng(0)
REFERENCE = np.log(RNG.dirichlet(np.ones(Y), X)).astype(np.float32)
BASELINE = RNG.dirichlet(np.ones(Y), X).astype(np.float32)
PROMPTS = np.array([0.5, 0.3, 0.2], np.float32)
# The last response to the last prompt is never compared; all others are, for and against.
COMPARISONS = np.array(
  [
    (x, a, b)
    for x in range(X)
    for a in range(Y)
    for b in range(Y)
    if a != b and (x < 2 or a + b < 4)
  ]
)
COMPARISONS = COMPARISONS[(COMPARISONS != (2, 0, 3)).any(1) & (COMPARISONS != (2, 3, 0)).any(1)]
COMPARISONS = np.concatenate([COMPARISONS, COMPARISONS[::3]])
UNSEEN = 2, 3
REWARDS = RNG.normal(size=(X, Y)).astype(np.float32)

optimal = jax.jit(losses.optimal_policy_log_probs)


@jax.jit
def maximin(rewards, baseline=BASELINE, beta=0.5, pessimism=0.3, comparisons=COMPARISONS):
  return losses.maximin_reward_objective(
    rewards, REFERENCE, baseline, PROMPTS, comparisons, beta=beta, pessimism=pessimism
  )


@jax.jit
def rpo(log_probs, baseline=BASELINE, beta=0.5, pessimism=0.3):
  """The policy's objective, with the baseline's mean in place of draws from it."""
  pairs = [
    table[COMPARISONS[:, 0], COMPARISONS[:, side]]
    for table in (log_probs, REFERENCE)
    for side in (1, 2)
  ]
  mean = jnp.sum(PROMPTS[:, None] * jnp.where(baseline > 0, baseline * log_probs, 0.0))
  means = jnp.full(len(COMPARISONS), mean)
  return losses.rpo_loss(*pairs, beta=beta, sft_weight=pessimism, baseline_log_probs=means).mean()


def slow_maximin(rewards, baseline, beta, pessimism):
  total = 0.0
  for x in range(X):
    partition = sum(np.exp(REFERENCE[x, y] + rewards[x, y] / beta) for y in range(Y))
    mean = sum(baseline[x, y] * rewards[x, y] for y in range(Y))
    total += pessimism * PROMPTS[x] * (beta * np.log(partition) - mean)
  fits = [np.log1p(np.exp(rewards[x, b] - rewards[x, a])) for x, a, b in COMPARISONS]
  return total + np.mean(fits)


@jax.jit
def slopes(table, *args):
  """Value and gradient of the reward objective, and of the policy's over logits."""
  of_policy = jax.value_and_grad(lambda logits: rpo(jax.nn.log_softmax(logits), *args))
  return jax.value_and_grad(maximin)(table, *args), of_policy(table)


def minimizer(which, *args, start=0.0):
  def objective(flat):
    value, slope = slopes(jnp.asarray(flat.reshape(X, Y), jnp.float32), *args)[which]
    return float(value), np.asarray(slope, np.float64).ravel()

  found = minimize(objective, np.full(X * Y, start), jac=True, method="L-BFGS-B")
  return np.float32(found.x.reshape(X, Y))


def test_the_optimal_policy():
  expected = np.exp(REFERENCE) * np.exp(REWARDS / 0.3)
  expected /= expected.sum(1, keepdims=True)
  np.testing.assert_allclose(np.exp(optimal(REWARDS, REFERENCE, beta=0.3)), expected, rtol=1e-5)
  # What the reference never gives stays impossible, and costs no gradient.
  hidden = np.where(np.arange(Y) == 1, -np.inf, REFERENCE).astype(np.float32)
  mean = jax.jit(jax.grad(lambda r: optimal(r, hidden, beta=0.3)[:, 0].sum()))
  assert np.all(optimal(REWARDS, hidden, beta=0.3)[:, 1] == -np.inf)
  assert np.isfinite(mean(REWARDS)).all() and not np.any(mean(REWARDS)[:, 1])
  assert np.isfinite(optimal(REWARDS * 1e4, REFERENCE, beta=0.3)).all()


def test_the_objective_matches_a_loop():
  for beta, pessimism in ((0.5, 0.3), (0.1, 2.0), (0.5, 0.0)):
    expected = slow_maximin(REWARDS, BASELINE, beta, pessimism)
    np.testing.assert_allclose(maximin(REWARDS, BASELINE, beta, pessimism), expected, rtol=1e-5)
  shifted = REWARDS + np.array([[3.0], [-2.0], [7.0]], np.float32)
  np.testing.assert_allclose(maximin(shifted), maximin(REWARDS), rtol=1e-5)


def test_at_the_induced_policy_it_is_the_objective_of_rpo_but_for_a_constant():
  constant = 0.3 * 0.5 * np.sum(PROMPTS[:, None] * BASELINE * REFERENCE)
  for seed in range(3):
    logits = np.random.default_rng(seed).normal(size=(X, Y)).astype(np.float32)
    policy = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(
      maximin(0.5 * (policy - REFERENCE)), rpo(policy) + constant, atol=1e-5
    )


def test_both_objectives_have_one_optimum():
  rewards = minimizer(0)
  (_, slope), _ = slopes(rewards)
  np.testing.assert_allclose(slope, 0.0, atol=1e-3)
  policy = np.exp(optimal(rewards, REFERENCE, beta=0.5))
  logits = minimizer(1)
  np.testing.assert_allclose(policy, jax.nn.softmax(logits), atol=1e-3)
  # Of a response that nobody compared the policy gives what the baseline gives.
  np.testing.assert_allclose(policy[UNSEEN], BASELINE[UNSEEN], atol=1e-3)


def test_a_large_weight_gives_the_baseline():
  chosen = np.array([2, 0, 1])
  baseline = np.eye(Y, dtype=np.float32)[chosen]
  policy = np.exp(optimal(minimizer(0, baseline, 0.5, 1e4), REFERENCE, beta=0.5))
  assert np.all(policy[np.arange(X), chosen] > 0.99)


def test_a_response_that_nobody_compared():
  """Without pessimism its reward is free; the more of it, the faster its probability falls."""
  moved = REWARDS.copy()
  moved[UNSEEN] += 5.0
  np.testing.assert_allclose(
    maximin(moved, BASELINE, 0.5, 0.0), maximin(REWARDS, BASELINE, 0.5, 0.0), rtol=1e-6
  )
  baseline = np.array(BASELINE)
  baseline[UNSEEN] = 0.0

  def probability(pessimism):
    logits = np.zeros((X, Y), np.float32)
    for _ in range(20):
      logits -= slopes(logits, baseline, 0.5, pessimism)[1][1]
    return np.exp(logits[UNSEEN]) / np.exp(logits[UNSEEN[0]]).sum()

  probabilities = [probability(pessimism) for pessimism in (0.0, 0.3, 1.0, 3.0)]
  assert np.all(np.diff(probabilities) < -0.01)


def test_what_is_infinite_or_absent():
  # A reward of -inf where the baseline never goes.
  rewards = np.where(np.arange(Y) == 1, -np.inf, REWARDS).astype(np.float32)
  baseline = np.where(rewards == -np.inf, 0.0, BASELINE).astype(np.float32)
  comparisons = np.where(COMPARISONS[:, 1:] == 1, 0, COMPARISONS[:, 1:])
  comparisons = np.concatenate([COMPARISONS[:, :1], comparisons], axis=1)
  assert np.isfinite(maximin(rewards, baseline, comparisons=comparisons))
  none = maximin(REWARDS, comparisons=np.zeros((0, 3), int))
  only = maximin(REWARDS) - maximin(REWARDS, BASELINE, 0.5, 0.0)
  np.testing.assert_allclose(none, only, rtol=1e-5)
  assert np.isnan(maximin(REWARDS, comparisons=np.where(COMPARISONS == 3, 9, COMPARISONS)))
  assert np.isfinite(maximin(REWARDS * 1e4, BASELINE, 1e-3))


def test_errors():
  arrays = REWARDS, REFERENCE, BASELINE, PROMPTS
  loss = losses.maximin_reward_objective
  for settings, message in (
    ({"beta": 0.0, "pessimism": 0.1}, r"beta must lie in \(0, inf\), got 0.0"),
    ({"beta": 0.1, "pessimism": -1.0}, r"pessimism must lie in \[0, inf\), got -1.0"),
  ):
    with pytest.raises(ValueError, match=message):
      loss(*arrays, COMPARISONS, **settings)
  settings = {"beta": 0.1, "pessimism": 0.1}
  for row, message in (
    ((3, 0, 1), r"^prompts of comparisons must lie in \[0, 3\), got 3 to 3"),
    ((0, -1, 1), r"^chosen responses of comparisons must lie in \[0, 4\), got -1 to -1"),
    ((0, 1, 4), r"^rejected responses of comparisons must lie in \[0, 4\), got 4 to 4"),
    ((0, 1), "^comparisons must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      loss(*arrays, [row], **settings)
  with pytest.raises(ValueError, match="^baseline_probs must have shape"):
    loss(REWARDS, REFERENCE, BASELINE[:2], PROMPTS, COMPARISONS, **settings)
  with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\), got -1.0"):
    losses.optimal_policy_log_probs(REWARDS, REFERENCE, beta=-1.0)
  with pytest.raises(ValueError, match="^reference_log_probs must have shape"):
    losses.optimal_policy_log_probs(REWARDS, REFERENCE[:2], beta=1.0)
