import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.alignment.helpsteer2_preference import __main__ as experiment
from experiments.alignment.helpsteer2_preference import arms
from jaxlab import weights

CONFIG = dataclasses.replace(experiment.PRESETS["smoke"], num_pairs=200, num_rated=150)
ARMS = (*experiment.SINGLE, arms.STRENGTHS, arms.DIFFERENCES, arms.JOINT)


@functools.cache
def task():
  return jax.tree.map(np.asarray, arms.draw(CONFIG, jax.random.key(0)))


@functools.cache
def params(arm):
  module = arms.network(CONFIG, arm)
  return jax.jit(module.init)(jax.random.key(1), np.zeros((1, 4), np.float32))["params"]


def mean_loss(arm):
  @jax.jit
  def loss(params, batch):
    values, share, *_ = arms.pair_loss(CONFIG, arm)(params, {}, batch, None)
    share = 1.0 if share is None else share
    return (values * share).sum() / (share * np.ones(len(batch.strengths))).sum()

  return functools.partial(loss, params(arm))


def test_no_response_is_in_two_parts_and_tests_are_judged_by_utility():
  seen = [{row.tobytes() for row in np.concatenate([part.first, part.second])} for part in task()]
  assert sum(map(len, seen)) == len(set().union(*seen))
  for part, judged in zip(task(), (False, False, True, True)):
    assert np.all(np.isin(part.strengths, (-1, 1))) == judged
  assert task().train.rated.sum() == 150 and 0.5 < np.mean(task().train.strengths != 0) < 0.95


@pytest.mark.parametrize("arm", ARMS)
def test_losses_do_not_depend_on_which_response_is_first(arm):
  rows, loss = task().train, mean_loss(arm)
  swapped = arms.Pairs(
    rows.second, rows.first, rows.second_ratings, rows.first_ratings, rows.rated, -rows.strengths
  )
  np.testing.assert_allclose(loss(rows), loss(swapped), rtol=1e-5)


def test_with_strengths_of_one_the_scaled_loss_is_the_regular_one():
  rows = task().train._replace(strengths=np.sign(task().train.strengths))
  scaled, regular = mean_loss(arms.SCALED), mean_loss(arms.REGULAR)
  np.testing.assert_allclose(scaled(rows), regular(rows), rtol=1e-6)
  assert scaled(task().train) > 1.5 * regular(task().train)


def test_ratings_are_learnt_from_where_there_are_some():
  """The joint loss is that of ratings on rated rows plus that of preferences on compared ones."""
  rows, joint = task().train, mean_loss(arms.JOINT)
  spoiled = rows._replace(first_ratings=np.where(rows.rated[:, None], rows.first_ratings, 9.0))
  np.testing.assert_allclose(joint(spoiled), joint(rows), rtol=1e-6)
  assert mean_loss(arms.RATINGS)(spoiled) != mean_loss(arms.RATINGS)(rows)


def test_the_combined_model_begins_at_the_regression():
  config = dataclasses.replace(CONFIG, num_steps=4, eval_every=2)
  setting = {"learning_rate": 0.0, "weight_decay": 0.0, "num_steps": 4}
  chosen = {
    arm: {"learning_rate": 1e-2, "weight_decay": 0.1, "num_steps": 4}
    for arm in (arms.RATINGS, arms.SCALED)
  }

  @jax.jit
  def measure(key):
    combined = arms.evaluate_combined(config, key, (task(), chosen), setting)
    first = arms.fit(config, key, task(), arms.RATINGS, chosen[arms.RATINGS], num_steps=4)
    scores = functools.partial(arms.rewards, config, arms.RATINGS, first)
    mean = arms.evaluate_mean(config, key, (task(), chosen), {})
    return combined, arms.accuracies(scores, task().judged), mean

  combined, alone, mean = measure(jax.random.key(2))
  # Without a step all factors give the regression.
  for name, value in alone.items():
    np.testing.assert_allclose([combined[name], combined[arms.FURTHER + name]], value, rtol=1e-5)
  assert combined["chosen factor"] == 1.0 and 0 < mean["test"] < 100
  tree = {"w": np.float32([1.0, 2.0])}
  np.testing.assert_array_equal(weights.interpolate(tree, tree, arms.FACTORS[-1])["w"], tree["w"])
