import dataclasses

import jax
import numpy as np
import pytest

from experiments.alignment.rpo import __main__ as experiment
from experiments.alignment.rpo import policy, problems
from experiments.alignment.rpo.problems import BANDIT, DIGITS

CONFIG = dataclasses.replace(experiment.PRESETS["smoke"], num_prompts=20, num_comparisons=200)


def test_parts_of_the_bandit_differ_in_comparisons_alone():
  train, validation, test = problems.draw(CONFIG, BANDIT, 0)
  assert len(train.comparisons) == 200 and len(validation.comparisons) == 10
  for name in ("features", "reference", "gold"):
    np.testing.assert_array_equal(getattr(train, name), getattr(validation, name))
    np.testing.assert_array_equal(getattr(train, name), getattr(test, name))
  mass = (np.exp(train.reference) * train.supported).sum(1)
  np.testing.assert_allclose(mass, 0.95, rtol=1e-4)
  # The penalty, in units of the new deviation.
  np.testing.assert_allclose([test.gold.mean(), test.gold.std()], [0, 1], atol=1e-5)
  raw = test.unpenalized - CONFIG.penalty * ~test.supported
  np.testing.assert_allclose(test.gold, (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_digits_above_five_are_outside():
  problem = problems.draw(CONFIG, DIGITS, 0)
  for part in problem:
    np.testing.assert_allclose(np.exp(part.reference).sum(1), 1.0, rtol=1e-5)
    mass = (np.exp(part.reference) * part.supported).sum(1)
    mixed = part.supported.any(1) & ~part.supported.all(1)
    np.testing.assert_allclose(mass[mixed], 0.95, rtol=1e-5)
    prompts, chosen, rejected = part.comparisons.T
    assert np.all(chosen != rejected)
    if part.supported.sum(1).min() > 1:
      assert part.supported[prompts, chosen].all() and part.supported[prompts, rejected].all()
  prompts, chosen, rejected = problem.train.comparisons.T
  gold = problem.train.gold
  assert np.mean(gold[prompts, chosen] >= gold[prompts, rejected]) > 0.75
  # No image is in two parts.
  rows = [{row.tobytes() for row in part.features.reshape(-1, 64)} for part in problem]
  assert not rows[0] & rows[2] and not rows[0] & rows[1] and not rows[1] & rows[2]


def test_training_begins_at_the_reference():
  part = problems.draw(CONFIG, BANDIT, 0).train

  @jax.jit
  def first(key):
    trained = policy.start(CONFIG, key, CONFIG.num_features)
    return policy.policy(CONFIG, trained.params, part)

  np.testing.assert_allclose(first(jax.random.key(0)), part.reference, atol=1e-5)


def test_the_best_policy_at_a_divergence():
  part = problems.draw(CONFIG, BANDIT, 0).test
  stacked = jax.tree.map(lambda x: np.stack([x] * 3), part)
  values = np.asarray(problems.best_at(stacked, np.array([1e-6, 0.05, 0.2])))
  start = float(part.value(part.reference, part.gold))
  most = np.where(part.reference > -np.inf, part.gold, -np.inf).max(1).mean()
  assert abs(values[0] - start) < 0.05 and start < values[1] < values[2] < most


def test_weights_of_the_headline_must_be_searched():
  with pytest.raises(ValueError, match="betas must hold 0.2"):
    dataclasses.replace(CONFIG, beta=0.2)
  with pytest.raises(ValueError, match="etas must hold 0.0"):
    dataclasses.replace(CONFIG, etas=(0.1,))
  with pytest.raises(ValueError, match="num_covered"):
    experiment.validate(dataclasses.replace(CONFIG, num_covered=1))
