import dataclasses

import jax
import numpy as np
import pytest

from experiments.alignment.reward_transform import methods, reference
from experiments.alignment.reward_transform.__main__ import PRESETS, validate
from experiments.alignment.reward_transform.methods import LOG_SIGMOID, METHODS, SUMS
from jaxlab import losses

P, M = 4, 60
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(3, P, M)).astype(np.float32)
LEARNED = REWARDS + 0.3 * RNG.normal(size=REWARDS.shape).astype(np.float32)
combine = jax.jit(methods.combine)


def log_sigmoid(x):
  return -np.logaddexp(0, -np.float64(x))


def test_combinations_match_their_formulas():
  stored = REWARDS[..., :20]
  found = combine(REWARDS, stored)
  high, middle = (np.quantile(stored, q, axis=-1)[..., None] for q in (0.85, 0.5))
  each = (REWARDS - stored.mean(-1, keepdims=True)) / stored.std(-1, keepdims=True)
  expected = dict(zip(SUMS, (w * REWARDS[0] + (1 - w) * REWARDS[1] for w in (0.3, 0.5, 0.7)))) | {
    methods.STANDARDIZED: each[0] + each[1],
    LOG_SIGMOID: log_sigmoid(REWARDS - high)[:2].sum(0),
    methods.MINIMUM: (REWARDS - high)[:2].min(0),
    methods.RAW: REWARDS[2],
    methods.SATURATED: log_sigmoid(REWARDS - high)[2],
    methods.AT_MEDIAN: log_sigmoid(REWARDS - middle)[:2].sum(0),
    methods.ONE_STANDARDIZED: each[2],
  }
  assert set(found) == set(expected) == set(METHODS)
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_conjunction_prefers_the_balanced_response():
  """The method's own theory: (0, 0) wins against (10, -10), of which the sum thinks as much."""
  responses = np.float32([[[10, 0]], [[-10, 0]], [[10, 0]]])
  found = jax.jit(methods.combine)(responses, np.zeros((3, 1, 5), np.float32))
  weigh = jax.jit(lambda x: losses.tilted_weights(x, beta=1.0)[0])
  np.testing.assert_allclose(weigh(found[SUMS[1]]), [0.5, 0.5], rtol=1e-5)
  wins = np.exp(log_sigmoid([10, 0]) + log_sigmoid([-10, 0]))
  np.testing.assert_allclose(weigh(found[LOG_SIGMOID]), wins / wins.sum(), rtol=1e-4)


@pytest.fixture(scope="module")
def pools():
  valid = np.ones((P, M), bool)
  arrays = {"true": REWARDS, "learned": LEARNED, "valid": valid}
  config = dataclasses.replace(PRESETS["smoke"], pool=M, stored=20, best_of=4, tilts=(0.5, 1.0))
  return arrays, jax.device_get(jax.jit(lambda: methods.tilt_pool(config, None, arrays))())


def test_the_reference_is_judged_by_counting(pools):
  _, scores = pools
  medians, high = (np.quantile(REWARDS, q, axis=-1, keepdims=True) for q in (0.5, 0.85))
  both = (medians < REWARDS)[:2].all(0)
  np.testing.assert_allclose(scores["reference"][methods.JOINT], 100 * both.mean(), rtol=1e-4)
  strict = (high < REWARDS)[:2].all(0)
  np.testing.assert_allclose(scores["reference"][methods.STRICT], 100 * strict.mean(), rtol=1e-4)
  np.testing.assert_allclose(scores["reference"][methods.GAP], 0, atol=1e-4)


def test_tilts_have_their_divergences_and_the_criterion_wins(pools):
  _, scores = pools
  np.testing.assert_allclose(
    scores["tilted"]["KL"][: len(METHODS)], [[0.5, 1.0]] * len(METHODS), atol=1e-2
  )
  joint = scores["tilted"][methods.JOINT][:, 1]
  assert joint[methods.TILTED.index((methods.TRUE, methods.CRITERION))] == joint.max()
  best = scores["best"][methods.JOINT]
  assert best.shape == (len(METHODS) + 1,) and best.argmax() == len(METHODS)


def test_learned_rewards_that_lead_astray_have_a_gap(pools):
  arrays, _ = pools
  worst = np.argmax(LEARNED[2] - REWARDS[2], axis=1)
  weights = np.eye(M, dtype=np.float32)[worst]
  scores = jax.jit(lambda w: methods.judge(arrays, REWARDS, LEARNED, arrays["valid"], w))(weights)
  assert scores[methods.ONE_GAP] > 0.3 and scores[methods.ABOVE].shape == (P,)


def test_pairs_are_ordered_by_neighbors():
  true, learned = np.zeros((2, 3, 1, 5), np.float32)
  true[:, 0, :4] = [0, 1, 0, 1]
  learned[:, 0, :4] = [0, 2, 1, 0]
  np.testing.assert_array_equal(jax.jit(reference.pair_accuracy)(learned, true), [50, 50, 50])


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("scale_ranges", (3.0,), "two numbers"),
    ("stored", 100, "at most 8"),
    ("reward_batch", 100, "at most 8"),
    ("tilts", (1.0,), "hold 1.0 and 2.0"),
  ],
)
def test_impossible_sizes(name, value, message):
  with pytest.raises(ValueError, match=f"{name} must.* {message}"):
    validate(dataclasses.replace(PRESETS["smoke"], **{name: value}))
