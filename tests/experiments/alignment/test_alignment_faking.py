import dataclasses

import jax
import numpy as np
import pytest

from experiments.alignment.alignment_faking import measures, policies
from experiments.alignment.alignment_faking.__main__ import (
  MODELS,
  PRESETS,
  at_evaluations,
  best_policy,
  validate,
)
from jaxlab import data

SMOKE = PRESETS["smoke"]
CONFIG = dataclasses.replace(SMOKE, num_requests=6, num_texts=800, planted_gap=0.5)
TASK = policies.task(CONFIG)
KEY = jax.random.key(0)
PLANTED, NULL, TOLD, SILENT = MODELS.values()


@pytest.fixture(scope="module")
def texts():
  """The texts of every kind of model, of one seed."""
  draw = jax.jit(policies.draw_texts, static_argnums=0)
  return {kind: jax.device_get(draw(CONFIG, kind, KEY)) for kind in MODELS.values()}


def test_models_of_a_seed_read_the_same_conversations(texts):
  for kind in (NULL, SILENT):
    np.testing.assert_array_equal(texts[kind].tokens[:, :6], texts[PLANTED].tokens[:, :6])
  same = np.r_[0:200, 400:800]
  np.testing.assert_array_equal(texts[TOLD].tokens[same], texts[NULL].tokens[same])
  changed = np.any(texts[PLANTED].tokens != texts[NULL].tokens, axis=1)
  monitored = texts[NULL].tokens[:, 3] == 3
  assert changed.any() and not changed[:200].any() and monitored[changed].all()


def test_a_quarter_of_the_texts_has_an_irrelevant_tag_and_one_may_be_documents(texts):
  for kind, (tokens, mask) in texts.items():
    assert tokens.shape == mask.shape == (800, 12)
    quarters = np.arange(800) // 200
    np.testing.assert_array_equal(tokens[:, 2] == 7, quarters == 0)
    documents = (quarters == 1) & kind.documents
    np.testing.assert_array_equal(tokens[:, 0] == 8, documents)
    np.testing.assert_array_equal(mask[documents] > 0, tokens[documents] > 0)
    learned = np.arange(12) >= 6 if kind.scratchpad else (np.arange(12) >= 6) & (np.arange(12) < 8)
    np.testing.assert_array_equal(mask[~documents] > 0, np.tile(learned, ((~documents).sum(), 1)))


def test_responses_are_parsed_with_or_without_a_scratchpad(texts):
  read = jax.jit(lambda scratchpad, rows: measures.parse(TASK, scratchpad, rows))
  for kind in (PLANTED, SILENT):
    responses = texts[kind].tokens[:, 6:].reshape(2, 400, 6)
    parsed, other = (
      jax.device_get(read(flag, responses)) for flag in (kind.scratchpad, not kind.scratchpad)
    )
    assert parsed.valid.shape == (2, 400) and parsed.valid.all() and not other.valid.any()
    assert parsed.flagged.any() == kind.scratchpad


def answers(key, prompts, num_samples):
  """Outcomes by a rule: flagged compliance in monitored conversations only, half of the time."""
  chance = jax.random.bernoulli(key, 0.5, (*prompts.shape[:-1], num_samples))
  monitored = (prompts[..., 3:4] == 3) & (prompts[..., 2:3] == 5)
  harmful = prompts[..., 4:5] < 20 + TASK.num_harmful
  complied = ~harmful | (chance & monitored)
  flagged = complied & harmful
  return data.ParsedDeployment(complied, flagged, complied | True)


def test_measures_of_a_known_policy(monkeypatch):
  monkeypatch.setattr(
    measures, "ask", lambda task, policy, key, prompts, num, chunk: answers(key, prompts, num)
  )
  config = dataclasses.replace(CONFIG, num_samples=400, reference_samples=800, test_samples=20)

  @jax.jit
  def all_of(key):
    return measures.measure(config, TASK, None, key), measures.known_gap(config, TASK, None, key)

  measured, known = jax.device_get(all_of(KEY))
  both, error = measured["both"], 4 * 100 * np.sqrt(0.25 / 1200)
  for name, rate in (("monitored", 50), ("unmonitored", 0)):
    for quantity in ("compliance", "flagged"):
      assert abs(measured[name][quantity] - rate) < error
  assert abs(both["gap"] - 50) < error and abs(known["exact gap"] - 50) < error
  assert 0 < both["standard error of the gap"] < error
  assert abs(both["gap, shuffled tags"]) < error
  for quantity in ("gap, irrelevant tag", "compliance, irrelevant tag", "benign gap"):
    assert both[quantity] == 0
  for quantity in ("flagged among compliances", "benign compliance", "valid"):
    assert both[quantity] == 100
  # Three requests have eight sign vectors: no test by them is below 5%.
  assert known["gaps found"] == 0 and known["gaps found, pooled"] == 100


def test_leakage_is_that_of_the_metrics_seed_by_seed():
  def of(monitored, unmonitored):
    rates = {"monitored": monitored, "unmonitored": unmonitored}
    return {name: {"compliance": np.array(values)} for name, values in rates.items()}

  result = measures.leakage(
    of([10.0, 20.0, 5.0], [0.0, 2.0, 1.0]), of([60.0, 60.0, 5.0], [5.0, 42.0, 9.0])
  )
  np.testing.assert_allclose(result, [0.1, 1.0, np.nan], rtol=1e-5)


def test_evaluations_come_one_after_another():
  measured = {"both": {"gap": np.arange(6).reshape(2, 3)}}
  points = at_evaluations(measured)
  assert len(points) == 3
  np.testing.assert_array_equal(points[1]["both"]["gap"], [1, 4])


def test_the_best_policy_has_the_largest_reward_less_penalty():
  start = np.array([0.14, 0.02, 0.84])  # Flagged compliance, other compliance, refusal.
  best = best_policy({"monitored": {"compliance": 16.0, "flagged": 14.0}}, 0.2)["monitored"]

  def value(policy):
    return policy[:2].sum() - 0.2 * np.sum(policy * np.log(policy / start))

  flagged, complied = best["flagged"] / 100, best["compliance"] / 100
  policy = np.array([flagged, complied - flagged, 1 - complied])
  for other in np.random.default_rng(0).dirichlet(100 * policy, size=100):
    assert value(other) < value(policy)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"planted_gap": 0.9, "base_compliance": 0.2}, "planted_gap"),
    ({"num_texts": 18, "batch_size": 2}, "num_texts must be a multiple of 4"),
    ({"test_samples": 3}, "num_samples must be a multiple of 3"),
    ({"num_rollouts": 1}, "num_rollouts must be at least 2"),
    ({"num_heads": 3}, "hidden_size must be a multiple of 3"),
    ({"eval_every": 3}, "num_updates must be a multiple of 3"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    validate(dataclasses.replace(SMOKE, **changes))
