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

  def reword(strength):
    strengths = jnp.full(table.size, strength)
    tokens = questions.reword(CONFIG, key, benchmark, strengths).tokens
    return tokens, questions.solve(CONFIG, table, tokens)

  return table, benchmark, *jax.lax.map(reword, jnp.array(CONFIG.strengths))


TABLE, BENCHMARK, TOKENS, SOLVED = jax.tree.map(np.asarray, draw(jax.random.key(0)))


def test_choices_are_true_of_the_entity_and_one_of_the_relation():
  assert TABLE.shape == (40, 5) and all(len(set(row)) == 5 for row in TABLE)
  np.testing.assert_array_equal(BENCHMARK.answers, TABLE.ravel())
  for i, choices in enumerate(BENCHMARK.choices):
    assert len(set(choices)) == 4 and set(choices) <= set(TABLE[i // 5])
    assert BENCHMARK.answers[i] in choices
  places = np.argmax(BENCHMARK.choices == BENCHMARK.answers[:, None], axis=1)
  assert np.bincount(places).min() > 30  # Of 200 items; 50 are expected.


def test_a_solver_reads_every_wording():
  np.testing.assert_array_equal(SOLVED, np.broadcast_to(BENCHMARK.answers, SOLVED.shape))
  assert np.all(np.sum(TOKENS == questions.ANSWER_MARK, axis=-1) == 1)
  np.testing.assert_array_equal(TOKENS[0], BENCHMARK.tokens)
  assert np.all(np.any(TOKENS[-1] != BENCHMARK.tokens, axis=1))
  changed = [np.mean(tokens != BENCHMARK.tokens) for tokens in TOKENS]
  assert changed == sorted(changed)
  assert len(arms.names_of_sets(CONFIG)) == len(CONFIG.strengths) + 5


def test_parts_of_the_grammar():
  whole, words = questions.grammar(CONFIG), questions.grammar(CONFIG, ("synonyms",))
  orders, fillers = (questions.grammar(CONFIG, (part,)) for part in ("templates", "fillers"))
  assert words.synonyms == whole.synonyms and orders.templates == whole.templates
  assert np.max(orders.synonyms) == np.max(fillers.synonyms) == -1
  assert fillers.templates == whole.templates[:1] and not words.templates
  assert fillers.fillers == whole.fillers and orders.extra_length == words.extra_length == 0


def test_training_questions_are_reworded_and_leaked_as_often_as_said():
  @jax.jit
  def tokens(share, leaked):
    key, (table, benchmark) = jax.random.key(1), jax.tree.map(jnp.asarray, (TABLE, BENCHMARK))
    setting = {"share": share, "leaked": leaked}
    return questions.draw_training(CONFIG, key, 2000, table, benchmark, setting).tokens

  canonical = set(BENCHMARK.tokens.ravel())
  plain, reworded, leaked = (np.asarray(tokens(*x)) for x in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
  assert set(plain.ravel()) <= canonical
  other = ~np.isin(reworded, list(canonical)).all(1)
  assert 0.6 < other.mean() < 0.98  # Strengths are uniform.
  items = {tuple(row) for row in BENCHMARK.tokens}
  assert all(tuple(row) in items for row in leaked)
  assert np.mean([tuple(row) in items for row in plain]) < 0.2
  grammar = questions.grammar(CONFIG)
  words = {*np.unique(grammar.synonyms), *grammar.fillers} - {-1}
  rarest = np.min(np.bincount(reworded.ravel())[sorted(words)])
  assert 0.6 < rarest / (2000 * questions.RAREST) < 1


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
