import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.inference.imperfect_verifiers import __main__ as experiment
from experiments.inference.imperfect_verifiers import tasks
from experiments.kit import zoo
from jaxlab import data, metrics
from jaxlab.data import reasoning

CONFIG = dataclasses.replace(
  experiment.PRESETS["smoke"], modulus=5, num_terms=5, pool=4000, num_easy=40, num_hard=20
)
ATTEMPTS = (1, 2, 8, 64)


@pytest.fixture(scope="module")
def log_probs():
  """Of tasks of two kinds: log-probabilities that the first steps are right, `[n, 4]`."""
  rng = np.random.default_rng(0)
  steps = np.concatenate([rng.uniform(0.7, 0.99, (150, 4)), rng.uniform(0.1, 0.5, (50, 4))])
  return np.cumsum(np.log(steps), axis=-1)


@pytest.mark.parametrize("cost", [0.0, 2.0])
def test_rewards_are_those_of_samples(log_probs, cost):
  probs = np.exp(log_probs)
  chances = np.random.default_rng(1).uniform(size=(len(probs), 256))
  accepted, right = chances < probs[:, 1:2], chances < probs[:, 3:]
  curve = functools.partial(metrics.resampling_reward_curve, attempts=ATTEMPTS)
  sampled = jax.jit(curve)(accepted, right, false_positive_cost=cost)
  exact = tasks.resampling(log_probs, 2, ATTEMPTS, cost)
  # Of one task's share of right samples among the accepted ones, and its attempts.
  np.testing.assert_allclose(sampled, exact, atol=3 * (1 + cost) * 0.1 / np.sqrt(len(probs)))


def test_a_perfect_test_gives_coverage_and_none_one_sample(log_probs):
  right = np.exp(log_probs[:, -1])
  coverage = [np.mean(1 - (1 - right) ** k) for k in ATTEMPTS]
  for cost in (0.0, 3.0):
    np.testing.assert_allclose(tasks.resampling(log_probs, 4, ATTEMPTS, cost), coverage, rtol=1e-6)
  np.testing.assert_allclose(tasks.resampling(log_probs, 0, ATTEMPTS), right.mean(), rtol=1e-6)
  # Limits: what is right of what is accepted.
  limit = np.mean(np.exp(log_probs[:, 3] - log_probs[:, 1]))
  np.testing.assert_allclose(tasks.resampling(log_probs, 2, [10_000])[0], limit, rtol=1e-3)


def test_two_types_of_tasks_are_the_model_of_resampling():
  success, accept = np.array([0.9, 0.2]), np.array([0.95, 0.6])
  soundness = 1 - (accept - success) / (1 - success)
  np.testing.assert_allclose(soundness, 0.5)
  rows = np.log(np.stack([accept, success], axis=1))[[0, 0, 0, 1]]
  options = {"soundness": 0.5, "value_false_positive": -1.0, "max_attempts": 64}
  run = jax.jit(functools.partial(metrics.resampling_value_curve, **options))
  curve = run(success, np.array([0.75, 0.25]))
  exact = tasks.resampling(rows, 1, np.arange(1, 65), cost=1.0)
  np.testing.assert_allclose(curve.value, exact, atol=1e-5)


def test_hard_tasks_meet_misconceptions_in_both_halves():
  chains = dataclasses.replace(CONFIG.chains, table_seed=3)

  @jax.jit
  def run(key, seed):
    drawn = tasks.draw(CONFIG, key, seed)
    texts = drawn["tokens"].reshape(120, -1)
    right = data.check_steps(chains, texts, data.parse_chain(chains, texts[:, 10:]).steps)
    return drawn, right, reasoning._misconceptions(chains)[0]

  # The table is that of the seed, which is traced.
  drawn, right, is_wrong = jax.device_get(run(jax.random.key(5), 3))
  assert drawn["easy"] >= 40 and drawn["hard"] >= 20 and np.all(right)
  tokens = drawn["tokens"][0]
  operators, numbers = tokens[:, 1:9:2] - 3, tokens[:, 2:9:2] - 6
  left = np.concatenate([tokens[:, :1], tokens[:, 12:22:3]], axis=1)[:, :4] - 6
  met = is_wrong[operators, left, numbers]
  assert not met[:40].any()
  assert np.all(met[40:, :2].any(1) & met[40:, 2:].any(1))


def test_the_ladder_of_the_laptop_is_the_zoo():
  bases = tasks.base_models(experiment.PRESETS["laptop"])
  assert len(bases) == 9
  names = [name for name in bases if "noise" in name]
  assert [bases[name] for name in names] == [zoo.BASE_MODELS[name] for name in names]
  weak, strong = tasks.weak_and_strong(experiment.PRESETS["laptop"])
  assert (weak, strong) == ("d24x1-noise0.2", "d48x1-noise0")
  others = [base for name, base in bases.items() if name not in names]
  assert [base.num_steps for base in others] == [600, 600, 1500]
  assert [base.task.misconception_rate for base in others] == [0.12, 0.12, 0.3]
  assert {base.task.noise for base in others} == {0.0}


def test_what_does_not_fit_together_is_refused():
  with pytest.raises(ValueError, match="costs must hold 1.0"):
    dataclasses.replace(CONFIG, costs=(0.0, 2.0))
  for name, value in (("num_checked", 4), ("large", (8, 1, 2)), ("small_noise", (1.5,))):
    with pytest.raises(ValueError, match=name):
      experiment.validate(dataclasses.replace(CONFIG, **{name: value}))
