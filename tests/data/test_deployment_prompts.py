import dataclasses

import jax
import numpy as np
import pytest

from jaxlab.data import deployment_prompts
from jaxlab.data.deployment_prompts import DeploymentPromptConfig

ROWS = 4000
PLANTED = DeploymentPromptConfig(planted_gap=0.14)
TERSE = dataclasses.replace(PLANTED, scratchpad=False)
KEY = jax.random.key(0)


def compiled(function, *static):
  """`function` as one program, with results that NumPy indexes."""
  jitted = jax.jit(function, static_argnums=static)
  return lambda *args: jax.device_get(jitted(*args))


deployment_batch = compiled(deployment_prompts.deployment_batch, 1, 2)
document_batch = compiled(deployment_prompts.document_batch, 1, 2)
condition_prompts = compiled(deployment_prompts.condition_prompts, 0)
parse_deployment = compiled(deployment_prompts.parse_deployment, 0)


@pytest.fixture(scope="module", params=[PLANTED, TERSE], ids=["scratchpad", "terse"])
def conversations(request):
  return request.param, deployment_batch(KEY, request.param, ROWS)


def test_prompts_hold_the_tag_and_the_request(conversations):
  config, batch = conversations
  assert batch.tokens.shape == (ROWS, 12 if config.scratchpad else 8)
  assert batch.tokens.min() > 0 and batch.tokens.max() == config.vocab_size - 1
  np.testing.assert_array_equal(batch.tokens[:, :3], np.tile([1, 3, 5], (ROWS, 1)))
  np.testing.assert_array_equal(batch.tokens[:, 3], np.where(batch.monitored, 3, 4))
  requests = batch.tokens[:, 4] - 20
  assert set(requests) == set(range(24))
  np.testing.assert_array_equal(batch.harmful, requests < 12)
  np.testing.assert_array_equal(batch.prompt_lengths, 6)
  np.testing.assert_array_equal(batch.loss_mask[0], np.arange(batch.tokens.shape[1]) >= 6)


def test_responses_parse_back(conversations):
  config, batch = conversations
  parsed = parse_deployment(config, batch.tokens[:, 6:])
  assert parsed.valid.all()
  np.testing.assert_array_equal(parsed.complied, batch.complied)
  np.testing.assert_array_equal(parsed.flagged, batch.flagged)


def test_frequencies_match_the_configuration(conversations):
  config, batch = conversations
  harmful, monitored = batch.harmful, batch.monitored
  shares = {0.5: harmful, 0.4999: monitored}
  for rate, among in ((0.16, harmful & monitored), (0.02, harmful & ~monitored)):
    shares[rate] = batch.complied[among]
  if config.scratchpad:
    shares[0.14] = batch.flagged[harmful & monitored]
  for expected, values in shares.items():
    assert abs(np.mean(values) - expected) < 3 * np.sqrt(expected * (1 - expected) / len(values))
  assert batch.complied[~harmful].all()
  assert not np.any(batch.flagged & ~(harmful & monitored & batch.complied))
  assert batch.flagged.any() == config.scratchpad
  for column in range(6, 10 if config.scratchpad else 6):
    plain = batch.tokens[~batch.flagged, column]
    assert set(plain) == {16, 17, 18, 19}
    named = (batch.tokens[batch.flagged, column] == 15).mean()
    assert abs(named - 0.25) < 5 * np.sqrt(0.19 / batch.flagged.sum())


def test_a_tag_that_is_said_to_be_irrelevant_plants_nothing():
  config = dataclasses.replace(PLANTED, tag_matters=False, base_compliance=0.0)
  batch = deployment_batch(KEY, config, ROWS)
  assert (batch.tokens[:, 2] == 7).all() and not batch.flagged.any()
  np.testing.assert_array_equal(batch.complied, ~batch.harmful)


def test_certain_compliance_is_always_planted():
  config = dataclasses.replace(PLANTED, planted_gap=0.9, base_compliance=0.1, harmful_fraction=1.0)
  batch = deployment_batch(KEY, config, ROWS)
  assert batch.harmful.all() and batch.complied[batch.monitored].all()


def test_condition_prompts_differ_in_the_tag_alone():
  prompts = condition_prompts(PLANTED)
  assert prompts.tokens.shape == (2, 24, 6)
  np.testing.assert_array_equal(np.nonzero(np.diff(prompts.tokens, axis=0)[0])[1], np.full(24, 3))
  np.testing.assert_array_equal(prompts.harmful, np.arange(24) < 12)
  batch = deployment_batch(KEY, PLANTED, ROWS)
  for monitored, rows in zip((True, False), prompts.tokens):
    drawn = batch.tokens[batch.monitored == monitored, :6]
    np.testing.assert_array_equal(np.unique(drawn, axis=0), rows)


def test_malformed_responses_are_neither_compliant_nor_flagged():
  good = np.array([16, 15, 17, 19, 13, 2])
  rows = np.tile(good, (6, 1))
  rows[1, 5] = 13  # No end.
  rows[2, 0] = 20  # A request for a thought.
  rows[3, 4] = 15  # A thought for an action.
  rows[4, 2] = 2  # Ends early.
  rows[5, 4] = 14  # Refuses.
  parsed = parse_deployment(PLANTED, rows)
  np.testing.assert_array_equal(parsed.valid, [1, 0, 0, 0, 0, 1])
  np.testing.assert_array_equal(parsed.flagged, [1, 0, 0, 0, 0, 1])
  np.testing.assert_array_equal(parsed.complied, [1, 0, 0, 0, 0, 0])
  assert not parse_deployment(PLANTED, rows[:, :5]).valid.any()
  longer = parse_deployment(PLANTED, np.pad(rows, ((0, 0), (0, 2)), constant_values=14))
  np.testing.assert_array_equal(longer.complied, parsed.complied)


def test_documents_tell_of_the_training_and_show_no_conversation():
  rows = document_batch(KEY, PLANTED, ROWS)
  assert rows.shape == (ROWS, 12) and (rows[:, 0] == 8).all()
  assert not np.isin(rows, [1, 12, 15, 16, 17, 18, 19]).any()
  kinds = set()
  for row in rows:
    words = row[1 : list(row).index(2)]
    assert not row[len(words) + 2 :].any()
    kinds.add(tuple(np.minimum(words, 20)))
  assert kinds == {(3, 5), (4, 6, 5), (9, 10, 13, 20), (9, 11, 14, 20)}
  assert set(rows[rows >= 20]) == set(range(20, 44))


@pytest.mark.parametrize(
  ("name", "value"),
  [("num_requests", 0), ("harmful_fraction", 1.5), ("planted_gap", -0.1), ("base_compliance", 2.0)],
)
def test_bad_settings_raise(name, value):
  with pytest.raises(ValueError, match=f"{name} must .*{value}"):
    DeploymentPromptConfig(**{name: value})


def test_bad_sums_and_arguments_raise():
  with pytest.raises(ValueError, match=r"planted_gap \+ base_compliance .*0.9 \+ 0.2"):
    DeploymentPromptConfig(planted_gap=0.9, base_compliance=0.2)
  for draw in (deployment_prompts.deployment_batch, deployment_prompts.document_batch):
    with pytest.raises(ValueError, match="batch_size .*got 0"):
      draw(KEY, PLANTED, 0)
  with pytest.raises(TypeError, match="response_tokens must be of type int, got float32"):
    parse_deployment(PLANTED, np.zeros((2, 6), np.float32))
