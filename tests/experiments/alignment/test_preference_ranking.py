import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.alignment.preference_ranking import policies
from experiments.alignment.preference_ranking.__main__ import (
  BY_C,
  DPO,
  FLIPPED,
  PRESETS,
  add_wrong_pairs,
  area_under_curve,
)
from experiments.kit.alignment import Pairs
from jaxlab import losses, metrics
from jaxlab.experiment import Results

SMOKE = PRESETS["smoke"]


@functools.cache
def drawn():
  return jax.device_get(jax.jit(functools.partial(policies.draw, SMOKE))(jax.random.key(0), 5))


def test_pairs_are_of_distinct_responses_to_one_prompt():
  pairs = Pairs(**drawn()["pairs"])
  texts = [tuple(row.tolist()) for side in pairs[:2] for row in side]
  assert len(pairs.chosen_tokens) == sum(SMOKE.pairs)
  np.testing.assert_array_equal(pairs.chosen_tokens[:, :2], pairs.rejected_tokens[:, :2])
  if drawn()["distinct"]:
    assert len({*texts}) == len(texts)
  assert np.all(drawn()["strength"] >= 0)
  assert drawn()["judge"].shape == (SMOKE.num_prompts, SMOKE.judged)


def test_labels_turn_pairs_around():
  @functools.partial(jax.jit, static_argnums=0)
  def labeled(name, drawn):
    return policies.labeled(SMOKE, drawn, name)

  start = 0
  for name, size in zip(policies.SPLITS, SMOKE.pairs):
    pairs, reference = jax.device_get(labeled(name, drawn()))
    assert len(reference) == size
    for i in range(size):
      agrees = drawn()["agrees"][start + i]
      side = "chosen" if agrees else "rejected"
      expected = drawn()["pairs"][f"{side}_tokens"][start + i]
      np.testing.assert_array_equal(pairs.chosen_tokens[i], expected)
      expected = drawn()["reference"][start + i]
      np.testing.assert_array_equal(reference[i], expected if agrees else expected[::-1])
    start += size


def test_area_under_the_curve_counts_pairs():
  rng = np.random.default_rng(0)
  scores, positive = rng.integers(0, 5, 40), rng.random(40) < 0.4
  wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
  np.testing.assert_allclose(area_under_curve(scores, positive), np.mean(wins))
  assert np.isnan(area_under_curve(scores, positive | True))


def test_wrong_pairs_are_binned_by_how_wrong_they_are():
  config = dataclasses.replace(SMOKE, bins=3)
  reference = np.array([[1.0, -1, -2, -3, -4, -5, -6, 2]])
  policy = np.array([[-1.0, 1, 1, 1, -1, -1, -1, 2]])
  results = Results()
  add_wrong_pairs(config, results, reference, policy, np.full((1, 8), 2.0), 0.5)
  flips = [results.select(FLIPPED, method=DPO, part=i) for i in range(3)]
  np.testing.assert_allclose(np.ravel(flips), [100, 50, 0])
  np.testing.assert_allclose(results.select("c", part=1), [3.5])
  np.testing.assert_allclose(results.select(BY_C, method=DPO), [1.0])


def test_dpo_of_a_table_attains_the_ideal_policy():
  """Four responses to each of 16 prompts, all pairs with their true probabilities."""
  beta, (first, second) = 0.5, np.triu_indices(4, 1)
  rng = np.random.default_rng(0)
  scores, rewards = np.float32(2.0 * rng.normal(size=(2, 16, 4)))

  @jax.jit
  def train():
    reference = jax.nn.log_softmax(scores)
    probs = jax.nn.sigmoid(rewards[:, first] - rewards[:, second])

    def loss(logits):
      log_probs = jax.nn.log_softmax(logits)
      sides = [x[:, i] for x in (log_probs, reference) for i in (first, second)]
      swapped = [sides[i] for i in (1, 0, 3, 2)]
      right, wrong = (losses.dpo_loss(*x, beta=beta) for x in (sides, swapped))
      return jnp.sum(probs * right + (1 - probs) * wrong)

    optimizer = optax.adam(0.1)

    def step(carry, _):
      logits, state = carry
      updates, state = optimizer.update(jax.grad(loss)(logits), state)
      return (optax.apply_updates(logits, updates), state), None

    carry, _ = jax.lax.scan(step, (reference, optimizer.init(reference)), length=2000)
    log_probs = jax.nn.log_softmax(carry[0])
    sides = [x[:, i].ravel() for x in (log_probs, reference) for i in (first, second)]
    right = probs.ravel() > 0.5
    oriented = [jnp.where(right, sides[i], sides[i ^ 1]) for i in range(4)]
    strength = jnp.where(right, probs.ravel(), 1 - probs.ravel())
    ratio = metrics.idealized_log_ratio(*oriented[2:], strength, beta=beta)
    ideal = metrics.idealized_ranking_accuracy(*oriented[2:], strength, beta=beta)
    return ratio, oriented[0] - oriented[1], ideal, metrics.ranking_accuracy(*oriented[:2])

  expected, found, ideal, accuracy = jax.device_get(train())
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert ideal == accuracy < 1
