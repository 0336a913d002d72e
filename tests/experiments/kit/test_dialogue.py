import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit import dialogue
from jaxlab.experiment import Results

SIZES = dialogue.DialogueSizes(
  num_prompts=4, response_length=3, response_tokens=5, decoder=(8, 1), num_heads=2, judged=4
)
TASK = dialogue.dialogues(SIZES, seed=1)
FIRST = TASK.first_response_token
RNG = np.random.default_rng(0)


def text(*response):
  return [3, 2, *response]


def test_texts_of_the_right_length_are_valid():
  a, b = FIRST, FIRST + 4
  tokens = np.array([text(a, b, a, 1), text(a, b, 1, 0), text(a, b, a, b), text(a, 5, a, 1)])
  masks = jax.jit(lambda x: (dialogue.are_valid(TASK, x), dialogue.response_mask(TASK, x)))
  valid, mask = jax.device_get(masks(tokens))
  np.testing.assert_array_equal(valid, [True, False, False, False])
  np.testing.assert_array_equal(mask.sum(1), [4, 3, 4, 4])
  assert not mask[:, :2].any()


def test_invalid_texts_get_the_reward_of_invalid_ones():
  a, b = FIRST, FIRST + 4
  tokens = np.tile(np.array([text(a, b, a, 1), text(a, b, a, b), text(a, b, 1, 0)]), (4, 1, 1))
  rewards = jax.jit(lambda x: dialogue.true_rewards(TASK, x, "helpful"))(tokens)
  scale = np.geomspace(30**-0.5, 30**0.5, 4)
  np.testing.assert_allclose(
    rewards[:, 1:], -10 * np.maximum(scale, 1)[:, None] * [1, 1], rtol=1e-4
  )
  assert np.all(rewards[:, 0] > rewards[:, 1])


def test_a_tilt_has_the_divergence_that_was_asked_for():
  rewards = RNG.normal(size=(5, 400)).astype(np.float32) * np.array([[0.1, 1, 5, 1, 1]]).T
  tilt = jax.jit(dialogue.tilt_to)
  for kl in (0.2, 1.0):
    beta, weights, by_prompt = tilt(rewards.astype(np.float32), kl)
    odds = np.exp(np.float64(rewards) / float(beta))
    expected = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(by_prompt, (expected * np.log(400 * expected)).sum(1), atol=1e-3)
    np.testing.assert_allclose(by_prompt.mean(), kl, atol=1e-3)


def test_a_tilt_out_of_reach_is_nan():
  """Four of 400 responses are the best ones: no tilt is more than log(100) nats away."""
  rewards = np.zeros((5, 400), np.float32)
  rewards[:, :4] = 1
  tilt = jax.jit(dialogue.tilt_to)
  np.testing.assert_allclose(tilt(rewards, 4.6).kl, np.full(5, 4.6), atol=1e-3)
  for part in tilt(rewards, 4.61):
    assert np.all(np.isnan(part))


def test_divergences_beyond_a_pool_are_refused():
  config = dataclasses.replace(SIZES, pool=100)
  dialogue.check_dialogues(config, aims=(0.5, 4.6))
  with pytest.raises(ValueError, match=r"aims holds 4.7 nats, out of reach: a pool of 100"):
    dialogue.check_dialogues(config, aims=(0.5, 4.7))


def test_a_policy_that_is_not_trained_does_not_diverge():
  """With a learning rate of 0 the policy is the reference, whatever the rewards."""
  config = dataclasses.replace(SIZES, updates=1, samples=2, learning_rate=0.0)

  @jax.jit
  def align():
    key = jax.random.key(0)
    reference = dialogue.policy(config).init(key, jnp.zeros((1, 6), jnp.int32))["params"]
    reward = lambda tokens: tokens[..., 2].astype(jnp.float32)  # noqa: E731
    judge = lambda tokens: {"tokens": tokens}  # noqa: E731
    penalties = jnp.array([0.1, 0.01])
    return dialogue.align(key, config, reference, reward, judge, penalties=penalties)

  scores = align()
  assert scores["tokens"].shape == (2, 4, 4, 6)
  np.testing.assert_allclose(scores["KL"], [0, 0], atol=1e-5)
  np.testing.assert_array_equal(
    np.unique(scores["tokens"][0, ..., 0], axis=1), [[3], [4], [5], [6]]
  )


def test_scores_are_added_as_measured_and_at_equal_divergences():
  scores = {
    "ours": {"KL": np.array([[0.4, 1.2], [0.6, 1.4]]), "rate": np.array([[50, 70], [60, 80]])}
  }
  results = Results()
  dialogue.add_trained(results, scores, policy="trained", aims=(0.5, 1.0), kls=(0.5, 1.0))
  where = {"method": "ours", "policy": "trained"}
  np.testing.assert_array_equal(results.select("rate", aim=1.0, **where), [70, 80])
  np.testing.assert_allclose(results.select("rate", kl=1.0, **where), [65, 70], rtol=1e-5)
  np.testing.assert_allclose(results.select("rate", kl=0.5, **where), [52.5, np.nan], rtol=1e-5)
  assert results.distinct("kl", quantity="KL") == []


def test_every_method_is_trained():
  stages = []

  def over_seeds(stage, run_fn, *, arguments):
    del run_fn
    stages.append(stage)
    return {"rate": arguments[1]}

  context = types.SimpleNamespace(over_seeds=over_seeds, seeds=2)
  scores = dialogue.train_methods(context, None, None, ("a", "b (c)"))
  np.testing.assert_array_equal(scores["b (c)"]["rate"], [1, 1])
  assert stages == ["policies/a", "policies/b c"]


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="decoder must be a multiple of 3"):
    dialogue.check_dialogues(dataclasses.replace(SIZES, num_heads=3))
