import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.cbod import arms, questions
from experiments.inference.cbod.__main__ import PRESETS

CONFIG = dataclasses.replace(PRESETS["smoke"], num_entities=40, num_values=9)


@jax.jit
def draw(key):
  table = questions.draw_table(CONFIG, key)
  benchmark = questions.ask(CONFIG, key, table, jnp.arange(table.size))
  sets = arms.test_sets(CONFIG, key, table, benchmark)
  solved = jax.lax.map(lambda x: questions.solve(CONFIG, table, x), sets.tokens)
  return table, benchmark, sets, solved


TABLE, BENCHMARK, SETS, SOLVED = jax.tree.map(np.asarray, draw(jax.random.key(0)))
NAMES = arms.names_of_sets(CONFIG)


def test_choices_are_true_of_the_entity_and_one_of_the_relation():
  assert TABLE.shape == (40, 5) and all(len(set(row)) == 5 for row in TABLE)
  np.testing.assert_array_equal(BENCHMARK.answers, TABLE.ravel())
  for i, choices in enumerate(BENCHMARK.choices):
    assert len(set(choices)) == 4 and set(choices) <= set(TABLE[i // 5])
    assert BENCHMARK.answers[i] in choices
  places = np.argmax(BENCHMARK.choices == BENCHMARK.answers[:, None], axis=1)
  assert np.bincount(places).min() > 30  # Of 200 items; 50 are expected.


def test_a_solver_reads_every_wording():
  assert len(NAMES) == len(SETS.tokens)
  np.testing.assert_array_equal(SOLVED, np.broadcast_to(BENCHMARK.answers, SOLVED.shape))
  assert np.all(np.sum(SETS.tokens == questions.ANSWER_MARK, axis=-1) == 1)
  of = dict(zip(NAMES, SETS.tokens))
  np.testing.assert_array_equal(of["strength 0"], BENCHMARK.tokens)
  assert np.all(np.any(of["strength 1"] != BENCHMARK.tokens, axis=1))
  changed = [np.mean(of[f"strength {x:g}"] != BENCHMARK.tokens) for x in CONFIG.strengths]
  assert changed == sorted(changed)
  # Fillers alone leave all words where they were, among others.
  row = [x for x in of["fillers alone"][0] if x in BENCHMARK.tokens[0] and x]
  assert row == [x for x in BENCHMARK.tokens[0] if x]
  assert np.mean(of["fillers alone"][:, -1] == 0) > 0.4 and np.any(of["fillers alone"][:, 14:])


def test_training_questions_are_reworded_and_leaked_as_often_as_said():
  @jax.jit
  def tokens(share, leaked):
    setting = {"share": share, "leaked": leaked}
    key, (table, benchmark) = jax.random.key(1), jax.tree.map(jnp.asarray, (TABLE, BENCHMARK))
    drawn = questions.draw_training(CONFIG, key, 400, table, benchmark, setting)
    return drawn, questions.rarest_count(CONFIG, key, table)

  canonical = set(BENCHMARK.tokens.ravel())
  plain, reworded, leaked = (tokens(*x)[0] for x in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
  assert set(np.asarray(plain.tokens).ravel()) <= canonical
  other = ~np.isin(reworded.tokens, list(canonical)).all(1)
  assert 0.6 < other.mean() < 0.98  # Strengths are uniform.
  items = {tuple(row) for row in BENCHMARK.tokens}
  assert all(tuple(row) in items for row in np.asarray(leaked.tokens))
  assert np.mean([tuple(row) in items for row in np.asarray(plain.tokens)]) < 0.2
  # A synonym of a relation: a fifth of the questions, half of them reworded, two synonyms.
  assert 35 < tokens(0.0, 0.0)[1] < 51


def test_a_model_of_the_wording_alone_is_flagged():
  rng = np.random.default_rng(0)
  right = np.stack([rng.random(1000) < 0.9, rng.random(1000) < 0.25])
  log_probs = np.where(right, -0.1, -2.0).astype(np.float32)
  detect = jax.jit(arms.detect)
  found = jax.tree.map(np.asarray, detect(right, log_probs))
  np.testing.assert_allclose(found[arms.DROP], right[0].mean() - right[1].mean(), atol=1e-6)
  assert found[arms.FLAGGED] and found[arms.EXACT] < 1e-9 and found[arms.Z_LOG_PROB] > 20
  same = jax.tree.map(np.asarray, detect(right[[0, 0]], log_probs[[0, 0]]))
  assert not same[arms.FLAGGED] and same[arms.P_VALUE] == 1 and same[arms.Z_UNPAIRED] == 0
  back = jax.tree.map(np.asarray, detect(right[::-1], log_probs[::-1]))
  assert not back[arms.FLAGGED] and back[arms.Z_PAIRED] == -found[arms.Z_PAIRED]


def test_choices_are_scored_behind_the_mark():
  model = arms.network(CONFIG)

  @jax.jit
  def score(key):
    params = model.init(key, BENCHMARK.tokens)["params"]
    some = jax.tree.map(lambda x: x[:20], questions.Questions(*BENCHMARK))
    logits = model.apply({"params": params}, some.tokens).logits[:, 13]
    return arms.choose(CONFIG, params, some), logits[:, questions.first_value(CONFIG) :]

  (right, log_probs), logits = jax.tree.map(np.asarray, score(jax.random.key(0)))
  for i in range(20):
    scores = logits[i, BENCHMARK.choices[i]]
    place = np.flatnonzero(BENCHMARK.choices[i] == BENCHMARK.answers[i])[0]
    assert right[i] == (np.argmax(scores) == place)
    np.testing.assert_allclose(log_probs[i], scores[place] - np.logaddexp.reduce(scores), atol=1e-4)
