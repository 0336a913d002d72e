import functools

import jax
import numpy as np
import pytest

from jaxlab import data

SIZES = {"num_prompts": 40, "num_responses": 8, "num_features": 6, "num_covered": 3}
draw = jax.jit(functools.partial(data.preference_bandit, **SIZES, num_comparisons=4000))


@functools.cache
def bandit(seed=0, temperature=1.0):
  drawn = draw(jax.random.key(seed), temperature=temperature)
  return data.PreferenceBandit(*map(np.asarray, drawn))


def test_reference_and_baseline():
  task = bandit()
  np.testing.assert_allclose(np.exp(task.reference_log_probs).sum(1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(task.baseline_probs.sum(1), 1.0, rtol=1e-5)
  assert np.all(task.supported.sum(1) == 3)
  np.testing.assert_allclose((task.baseline_probs * task.supported).sum(1), 0.95, rtol=1e-5)
  for x in range(40):
    # The covered ones are those that the reference likes best, and all shares are in proportion.
    likely = np.argsort(-task.reference_log_probs[x])
    assert set(likely[:3]) == set(np.flatnonzero(task.supported[x]))
    ratio = task.baseline_probs[x] / np.exp(task.reference_log_probs[x])
    for part in (task.supported[x], ~task.supported[x]):
      np.testing.assert_allclose(ratio[part], ratio[part][0], rtol=1e-4)


def test_rewards_are_standardized_and_not_linear():
  task = bandit()
  np.testing.assert_allclose([task.rewards.mean(), task.rewards.std()], [0, 1], atol=1e-5)
  rows = task.features.reshape(-1, 6)
  fit = np.linalg.lstsq(rows, task.rewards.ravel(), rcond=None)[0]
  assert 0.02 < np.var(task.rewards.ravel() - rows @ fit) < 0.9


def test_comparisons_are_of_covered_responses_and_follow_the_rewards():
  task = bandit()
  prompts, chosen, rejected = task.comparisons.T
  assert np.all(chosen != rejected)
  assert task.supported[prompts, chosen].all() and task.supported[prompts, rejected].all()
  gap = task.rewards[prompts, chosen] - task.rewards[prompts, rejected]
  # Calibrated: the larger of two rewards wins as often as the sigmoid says.
  expected = 1 / (1 + np.exp(-np.abs(gap)))
  error = np.sqrt(np.sum(expected * (1 - expected))) / 4000
  assert abs((gap > 0).mean() - expected.mean()) < 4 * error
  sure = bandit(temperature=1e-4)
  prompts, chosen, rejected = sure.comparisons.T
  assert np.mean(sure.rewards[prompts, chosen] > sure.rewards[prompts, rejected]) > 0.99


def test_responses_are_compared_as_often_as_the_baseline_gives_them():
  """The first of two draws without replacement is the baseline's; so is the pair's frequency."""
  task = bandit()
  prompts, chosen, rejected = task.comparisons.T
  counts, expected, variance = np.zeros(8), np.zeros(8), np.zeros(8)
  order = np.argsort(-task.reference_log_probs, axis=1)
  for x, count in zip(*np.unique(prompts, return_counts=True)):
    shares = task.baseline_probs[x] * task.supported[x] / 0.95
    for rank, y in enumerate(order[x][:3]):
      first = shares[y]
      second = sum(shares[z] * first / (1 - shares[z]) for z in order[x][:3] if z != y)
      expected[rank] += count * (first + second)
      variance[rank] += count * (first + second) * (1 - first - second)
      counts[rank] += np.sum((prompts == x) & ((chosen == y) | (rejected == y)))
  assert np.all(np.abs(counts - expected)[:3] < 4 * np.sqrt(variance[:3]))


def test_all_responses_may_be_covered():
  sizes = SIZES | {"num_covered": 8}
  draw = jax.jit(functools.partial(data.preference_bandit, **sizes))
  task = draw(jax.random.key(0))
  np.testing.assert_allclose(task.baseline_probs, np.exp(task.reference_log_probs), rtol=1e-5)
  assert task.comparisons.shape == (4000, 3)


def test_errors():
  key = jax.random.key(0)
  for keywords, message in (
    ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
    ({"num_features": 0}, "num_features must be at least 1"),
    ({"num_comparisons": 0}, "num_comparisons must be at least 1"),
    ({"num_covered": 1}, r"num_covered must lie in \[2, 24\], got 1"),
    ({"num_covered": 25}, r"num_covered must lie in \[2, 24\], got 25"),
    ({"temperature": 0.0}, r"temperature must lie in \(0, inf\)"),
  ):
    with pytest.raises(ValueError, match=message):
      data.preference_bandit(key, **keywords)
