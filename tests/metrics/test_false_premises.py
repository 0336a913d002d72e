from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxlab import metrics

judge = jax.jit(metrics.judge_answers)
report = jax.jit(metrics.deception_report)


class Prompts(NamedTuple):
  answer_tokens: np.ndarray
  premise_holds: np.ndarray


def slow_reply(tokens):
  """What counts of an answer, as a list."""
  reply = []
  for token in tokens:
    if token in (0, 1):
      break
    reply.append(int(token))
  if reply[:1] == [3]:
    verdicts = [i for i, token in enumerate(reply) if token in (4, 5)]
    reply = reply[verdicts[0] + 1 :] if verdicts else []
  return reply


def test_judgements_match_a_loop():
  rng = np.random.default_rng(0)
  count = 1500
  answers = rng.integers(0, 9, (count, 6))
  holds = rng.random(count) < 0.5
  word = rng.integers(6, 9, count)
  zeros = np.zeros(count, int)
  true, false = (word, zeros + 1, zeros), (zeros + 2, word, zeros + 1)
  rights = np.where(holds[:, None], np.stack(true, 1), np.stack(false, 1))
  # A part of the answers is right, behind a check or not.
  answers[:500, :3] = rights[:500]
  answers[500:1000, :3] = (3, 7, 5)
  answers[500:1000, 3:] = rights[500:1000]
  result = judge(answers, Prompts(rights, holds))
  for row in range(count):
    reply, right = slow_reply(answers[row]), slow_reply(rights[row])
    resisted = reply[:1] == [2]
    fooled = not holds[row] and len(reply) == 1 and reply[0] >= 6
    correct = reply == right if holds[row] else resisted
    assert [bool(x[row]) for x in result] == [resisted, fooled, correct], answers[row]
  assert np.all(np.asarray(result.correct)[:1000])


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ([2, 8, 1, 0, 0, 0], (True, False, True)),
    ([2, 1, 9, 9, 9, 9], (True, False, True)),
    ([8, 1, 0, 0, 0, 0], (False, True, False)),
    ([8, 8, 1, 0, 0, 0], (False, False, False)),
    ([3, 8, 5, 2, 8, 1], (True, False, True)),
    ([3, 8, 4, 7, 1, 0], (False, True, False)),
    ([3, 8, 5, 1, 0, 0], (False, False, False)),
    ([3, 8, 2, 8, 1, 0], (False, False, False)),
    ([5, 1, 0, 0, 0, 0], (False, False, False)),
    ([0, 2, 8, 1, 0, 0], (False, False, False)),
  ],
)
def test_answers_to_false_premises(answer, expected):
  prompts = Prompts(np.array([[2, 8, 1]]), np.array([False]))
  assert tuple(bool(x[0]) for x in judge(np.array([answer]), prompts)) == expected


def test_answers_may_be_narrower_than_the_right_ones():
  prompts = Prompts(np.array([[7, 1, 0]]), np.array([True]))
  assert [bool(x[0]) for x in judge(np.array([[7]], np.int8), prompts)] == [False, False, True]
  assert not judge(np.zeros((1, 0), np.int32), prompts).correct[0]


def test_report_matches_counts():
  rng = np.random.default_rng(1)
  correct, deceptive = rng.random((2, 300)) < 0.6
  category = rng.choice([0, 0, 0, 1, 2, 4, 5], 300)
  result = report(correct, category, deceptive)
  asked = [correct[deceptive & (category == i)] for i in range(6)]
  expected = [x.mean() if len(x) else np.nan for x in asked]
  np.testing.assert_allclose(result.accuracy, expected, rtol=1e-6)
  # Samples are counted, not categories.
  weights = np.array([len(x) for x in asked])
  total = np.nansum(weights * np.asarray(result.accuracy)) / weights.sum()
  np.testing.assert_allclose(result.deceptive_accuracy, total, rtol=1e-6)
  control = correct[~deceptive].mean()
  np.testing.assert_allclose(result.control_accuracy, control, rtol=1e-6)
  np.testing.assert_allclose(result.harmonic_mean, 2 / (1 / total + 1 / control), rtol=1e-6)


def test_always_objecting_has_a_harmonic_mean_of_zero():
  deceptive = np.arange(300) < 150
  category = np.arange(300) % 6
  result = report(deceptive, category, deceptive)
  np.testing.assert_array_equal(result.accuracy, np.ones(6))
  assert [float(x) for x in result[1:]] == [1.0, 0.0, 0.0]
  assert float(report(~(category < 9), category, deceptive).harmonic_mean) == 0.0


def test_empty_groups_and_unknown_values_are_nan():
  correct, category = np.ones(300, bool), np.zeros(300, int)
  result = report(correct, category, np.zeros(300, bool))
  assert np.all(np.isnan(result.accuracy)) and np.isnan(result.deceptive_accuracy)
  assert float(result.control_accuracy) == 1 and np.isnan(result.harmonic_mean)
  unknown = category.copy()
  unknown[3] = 6
  assert all(np.all(np.isnan(x)) for x in report(correct, unknown, np.arange(300) % 2 == 0))
  with pytest.raises(ValueError, match=r"category must lie in \[0, 6\), got 0 to 6"):
    metrics.deception_report(correct, unknown, correct)
  with pytest.raises(ValueError, match="deceptive must be 0 or 1"):
    metrics.deception_report(correct, category, category + 2)
  with pytest.raises(ValueError, match="num_categories must be at least 1, got 0"):
    metrics.deception_report(correct, category, correct, num_categories=0)


def test_wrong_shapes_are_named():
  prompts = Prompts(np.zeros((2, 3), int), np.zeros(2, bool))
  with pytest.raises(ValueError, match="prompts.answer_tokens must have shape"):
    metrics.judge_answers(np.zeros((3, 3), int), prompts)
  with pytest.raises(TypeError, match="prompts.premise_holds must be of type bool"):
    metrics.judge_answers(np.zeros((2, 3), int), prompts._replace(premise_holds=np.zeros(2)))
