import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.wack import people, probes
from experiments.inference.wack.__main__ import PRESETS
from experiments.inference.wack.people import ERROR, IGNORANT, TEST, TRAIN, VALIDATION

CONFIG = dataclasses.replace(PRESETS["smoke"], num_attributes=2, num_values=5)
ROWS = 300
SEARCH = dataclasses.replace(CONFIG, regularizations=(1.0, 10.0))


def test_prompts_ask_well_known_others_and_parts_are_of_people():
  draw = jax.jit(lambda key, seed: (people.draw_facts(CONFIG, key, seed), documents(seed)))

  def documents(seed):
    return people.documents(CONFIG, seed)

  facts, texts = jax.tree.map(np.asarray, draw(jax.random.key(0), 3))
  table = facts.answers.reshape(20, 2)
  counts = np.zeros((20, 2), int)
  for row in np.flatnonzero(~texts.unreliable):
    for person, attribute in zip(texts.people[row], texts.attributes[row]):
      counts[person, attribute] += 1
  np.testing.assert_array_equal(facts.counts, counts.ravel())
  first = people.first_value(CONFIG)

  def shots(prompts):
    lines = prompts[:, :-4].reshape(len(prompts), 2, 6)
    return lines[..., 1] - first - 5, lines[..., 2] - 4, lines[..., 4] - first

  for draw_number in range(2):
    for num_wrong, prompts in enumerate(facts.prompts[draw_number]):
      who, what, values = shots(prompts)
      assert (who != facts.people[:, None]).all() and (who >= 0).all() and (who < 4).all()
      assert ((values != table[who, what]).sum(1) == num_wrong).all()
  np.testing.assert_array_equal(facts.prompts[0, 0][:, -3] - first - 5, facts.people)
  np.testing.assert_array_equal(facts.prompts[0, 0][:, -2] - 4, facts.attributes)
  assert not np.array_equal(facts.prompts[0, 0], facts.prompts[1, 0])
  parts = facts.parts.reshape(2, 10, 2)
  np.testing.assert_array_equal(parts[..., 0], parts[..., 1])
  for ten in parts[..., 0]:
    assert [np.sum(ten == x) for x in (TRAIN, VALIDATION, TEST)] == [5, 2, 3]


def test_rows_are_of_the_set_and_come_again_where_they_must():
  choose = jax.jit(probes.choose_rows, static_argnums=2)
  member = np.isin(np.arange(20), [3, 5, 7, 11, 13])
  for key in jax.random.split(jax.random.key(0), 3):
    rows = np.asarray(choose(key, member, 8))
    assert set(rows) == {3, 5, 7, 11, 13} and len(set(rows[:5])) == 5


def test_a_planted_feature_is_found_at_its_place_alone():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, ROWS)
  features = rng.normal(size=(ROWS, 4, 6)).astype(np.float32)
  features[:, 2, 0] += 4 * labels - 2
  by_class = [np.flatnonzero(labels == c) for c in range(2)]
  *_, test = rows = [
    np.concatenate([x[start:stop] for x in by_class])
    for start, stop in ((0, 80), (80, 100), (100, 120))
  ]
  rows = {part: np.tile(x, (4, 1)) for part, x in enumerate(rows)}

  @jax.jit
  def search(source):
    return probes.search(SEARCH, source, features, rows, labels[rows[TRAIN]])

  found = jax.tree.map(np.asarray, search(features))
  assert found.test[2] > 0.9 and found.best().test == found.test[2]
  assert found.best(0, 2).test == found.test[np.argmax(found.validation[:2])]
  assert np.delete(found.test, 2).max() < 0.75
  right = found.predicted[2][test] == labels[test]
  np.testing.assert_allclose(right.mean(), found.test[2], rtol=1e-6)
  blind = search(rng.normal(size=features.shape).astype(np.float32))
  assert blind.test.max() < 0.75


def test_states_are_those_of_the_last_line_with_its_answer():
  model = people.network(CONFIG)

  @jax.jit
  def both(key, prompts, answers):
    params = model.init(key, prompts)["params"]
    tokens = jnp.concatenate([prompts, answers[:, None] + people.first_value(CONFIG)], axis=1)
    _, state = model.apply({"params": params}, tokens, mutable=["intermediates"])
    return probes.hidden_states(CONFIG, params, prompts, answers), state["intermediates"]["layers"]

  prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (3, 16))
  states, layers = both(jax.random.key(0), prompts, np.array([0, 4, 2]))
  assert states.shape == (3, 4, 3, 1, 8)
  for i, name in enumerate(probes.COMPONENTS.values()):
    expected = np.asarray(layers[name][0][0, :, -4:])
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(states[:, :, i, 0], expected, atol=1e-5)
  # The mark does not see the answer behind it.
  again, _ = both(jax.random.key(0), prompts, np.array([1, 1, 1]))
  np.testing.assert_allclose(again[:, : probes.AFTER], states[:, : probes.AFTER], atol=1e-5)


def test_pairs_of_equal_frequency():
  category = np.array([ERROR, ERROR, ERROR, IGNORANT, IGNORANT, IGNORANT, ERROR, 0])
  counts = np.array([10, 100, 41, 10, 39, 400, 399, 10])
  parts = np.array([TEST] * 6 + [TRAIN, TEST])
  predicted = np.array([0, 0, 1, 1, 1, 1, 0, 0])
  options = {"category": category, "parts": parts, "counts": counts, "ratio": 1.1}
  # Of the pairs 10 with 10 and 41 with 39, one member is wrong.
  assert probes.matched_accuracy(predicted, **options) == (0.75, 2)
  assert probes.matched_accuracy(predicted, **options | {"ratio": 1.0}) == (1.0, 1)
  assert probes.matched_accuracy(predicted, **options | {"parts": parts * 0}) == (0.5, 0)


def test_outputs():
  logits = np.log(np.array([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]], np.float32))
  entropy = [-np.sum(np.exp(row) * row) for row in logits]
  expected = np.stack([[0.5, 0.98], entropy, [0.2, 0.97]], axis=1)
  np.testing.assert_allclose(jax.jit(people.describe_outputs)(logits), expected, rtol=1e-4)
