"""Requests, answers and the lines that judge them; judges that are turned over."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.rain import dialogues as texts
from experiments.inference.rain import search

TASK = texts.Dialogues(
  num_types=2, num_topics=3, num_words=4, num_fillers=3, num_clauses=3, harm_words=(1, 3)
)
N, ROOM = 400, texts.REQUEST + TASK.answer_length
BAD = range(TASK.first_word + TASK.num_words, TASK.first_word + 2 * TASK.num_words)
RNG = np.random.default_rng(0)
LENGTHS = texts.REQUEST + 4 * RNG.integers(1, TASK.num_clauses + 1, N)
FIRST = RNG.random(N) < 0.5
FLIPS = 0.0, 0.35, 1.0


@jax.jit
def programs(key):
  laws = texts.draw_laws(key, TASK)
  requests = texts.draw_requests(key, TASK, N)
  answers = texts.draw_answers(key, TASK, laws, requests)
  whole = jnp.concatenate([requests, answers], axis=1)
  harmful, topic = texts.is_harmful(TASK, answers), texts.has_topic(requests, answers)
  asked = texts.ask(TASK, whole, jnp.array(LENGTHS), jnp.array(FIRST))
  drawn = [
    texts.draw_texts(key, dataclasses.replace(TASK, wrong_share=wrong), laws, N)
    for wrong in (0.0, 0.3)
  ]
  rows = jnp.concatenate([whole, whole])
  verdicts = jnp.zeros(2 * N).at[::2].set(1.0)
  judges = [search.Search(flips=flips) for flips in FLIPS] + [
    search.Search(perfect=True, flips=0.0)
  ]
  settled = [search.settle(TASK, key, judge, verdicts, rows) for judge in judges]
  return laws, whole, harmful, topic, asked, drawn, verdicts, settled


LAWS, WHOLE, HARMFUL, TOPIC, ASKED, DRAWN, VERDICTS, SETTLED = jax.device_get(
  programs(jax.random.key(0))
)


def test_answers_have_clauses_whose_first_word_decides():
  assert WHOLE.shape == (N, ROOM)
  assert LAWS.shape == (TASK.num_types, TASK.num_words)
  for law in LAWS:
    assert sorted(law) == list(range(TASK.num_words))
  rates = np.zeros((2, 2))
  for row, harmful, topic in zip(WHOLE, HARMFUL, TOPIC):
    clauses = row[texts.REQUEST :].reshape(TASK.num_clauses, -1)
    assert (clauses[:, -1] == texts.COMMA).all()
    bad = [word in BAD for word in clauses[:, 0]]
    known = LAWS[row[0] - 9][: TASK.harm_words[int(row[1] == texts.ATTACK)]]
    assert {word - BAD.start for word in clauses[bad, 0]} <= set(known.tolist())
    assert all(TASK.first_word <= word < BAD.stop for word in clauses[:, 0])
    others = clauses[:, 1:-1].ravel()
    assert all(word == row[2] or word >= BAD.stop for word in others)
    assert harmful == any(bad) and topic == (row[2] in others)
    rates[int(row[1] == texts.ATTACK)] += sum(bad), len(bad)
  np.testing.assert_allclose(rates[:, 0] / rates[:, 1], TASK.harm_rates, atol=0.06)


def question(first):
  pairs = [texts.HARMLESS, texts.HARMFUL] if first else [texts.HARMFUL, texts.HARMLESS]
  return [texts.LETTER_A, pairs[0], texts.LETTER_B, pairs[1]]


def test_a_question_follows_what_is_judged():
  for row, length, first, line, last in zip(WHOLE.tolist(), LENGTHS, FIRST, *ASKED):
    expected = [texts.JUDGE, *row[:length], *question(first)]
    assert last == len(expected) - 1
    padded = expected + [texts.PAD] * (TASK.line_length - 1 - len(expected))
    assert line.tolist() == padded


def test_texts_are_half_dialogues_and_half_judgements():
  for (tokens, weights), wrong in zip(DRAWN, (0.0, 0.3)):
    spoken, lines = np.split(tokens, 2)
    assert tokens.shape == weights.shape == (N, TASK.line_length)
    inside = np.arange(TASK.line_length)
    is_answer = (inside >= texts.REQUEST) & (inside < ROOM)
    np.testing.assert_array_equal(weights[: N // 2], np.tile(is_answer, (N // 2, 1)))
    assert not spoken[:, ROOM:].any()
    errors = 0
    for line, weight in zip(lines.tolist(), weights[N // 2 :]):
      (place,) = np.flatnonzero(weight)
      assert weight[place] == TASK.letter_weight and line[0] == texts.JUDGE
      says = line[place - 3] if line[place] == texts.LETTER_A else line[place - 1]
      harmful = any(token in BAD for token in line[1 : place - 4])
      errors += says != (texts.HARMFUL if harmful else texts.HARMLESS)
      assert not any(line[place + 1 :])
    assert abs(errors / len(lines) - wrong) < (0.12 if wrong else 1e-9)


def test_a_text_always_gets_the_same_verdict():
  right, some, every, perfect = SETTLED
  np.testing.assert_array_equal(right, VERDICTS)
  np.testing.assert_array_equal(every, -VERDICTS)
  np.testing.assert_array_equal(perfect, np.where(np.tile(HARMFUL, 2), -1, 1))
  turned = (some != VERDICTS)[VERDICTS != 0]
  assert abs(turned.mean() - 0.35) < 0.1
  both = (VERDICTS[:N] != 0) & (VERDICTS[N:] != 0)
  assert both.sum() == N // 2
  np.testing.assert_array_equal((some != VERDICTS)[:N][both], (some != VERDICTS)[N:][both])
