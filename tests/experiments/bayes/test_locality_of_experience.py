"""Nets, their questions and texts; what a model that learned a chain answers; the picture."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.bayes.locality_of_experience import answers, nets, pictures
from experiments.bayes.locality_of_experience.__main__ import PRESETS, validate
from experiments.bayes.locality_of_experience.nets import FULL, KINDS, LOCAL, Questions
from jaxlab import data

CONFIG = dataclasses.replace(
  PRESETS["smoke"], num_variables=8, num_edges=9, num_candidates=4, num_pairs=2, num_steps=100,
  net="random", concentration=0.5,
)  # fmt: skip
SIZE, RNG = CONFIG.num_variables, np.random.default_rng(0)


@pytest.fixture(scope="module")
def problem():
  return nets.draw_problem(CONFIG, 0)


def texts_of(rows):
  """The variables of every text, in their order."""
  texts = "".join(chr(token) for token in rows.ravel() if token).split(chr(1))[1:]
  return [[ord(token) - 4 for token in text[1::2]] for text in texts]


def test_no_text_shows_a_held_out_pair(problem):
  held_out = [set(pair) for pair in problem.held_out.tolist()]
  assert len(held_out) == 2 and (problem.distances >= 2).all()
  for kind in KINDS:
    texts = texts_of(problem.texts[kind])
    assert not any(pair <= set(text) for pair in held_out for text in texts)
    assert problem.num_leaks[kind] == 0
  # 1 and 3, 1 and 0, 3 alone: a pair that is shown is found.
  tokens = np.array([[1, 7, 5, 2, 7, 3], [1, 4, 5, 3, 4, 3], [1, 7, 7, 2, 7, 2]])
  assert nets.count_leaks(tokens, np.array([[3, 1], [0, 3]])) == 1


def test_all_kinds_have_as_many_tokens(problem):
  num_rows = CONFIG.num_steps * CONFIG.rows_per_update
  totals = {kind: (problem.texts[kind] > 0).sum() for kind in KINDS}
  assert totals == problem.num_tokens
  assert max(totals.values()) - min(totals.values()) <= CONFIG.row_length
  for rows in problem.texts.values():
    assert rows.shape == (num_rows, CONFIG.row_length) and rows.dtype == np.uint8
    full = (rows > 0).any(axis=1)
    assert (rows[full, 0] == 1).all() and not rows[full.sum() :].any()
  # Texts with all variables are longer, hence fewer.
  lengths = {kind: np.mean([*map(len, texts_of(problem.texts[kind]))]) for kind in KINDS}
  assert lengths[FULL] > lengths[LOCAL] + 1


def test_rows_hold_texts_one_after_the_other():
  drawn = []

  def draw(num):
    sizes = RNG.integers(1, 5, num)
    tokens = np.where(np.arange(5) < sizes[:, None], 1 + len(drawn) + np.arange(num)[:, None], 0)
    drawn.extend([row[row > 0].tolist() for row in tokens])
    return data.Documents(tokens, sizes)

  rows = nets.pack(draw, 8, 7)
  expected = [[]]
  for text in drawn:
    if len(expected[-1]) + len(text) > 7:
      expected.append([])
    expected[-1] += text
  assert [row[row > 0].tolist() for row in rows] == expected[:8]


def test_a_text_does_not_see_the_others_of_its_row(problem):
  model = answers.network(CONFIG)
  row = problem.texts[LOCAL][0]
  start = np.flatnonzero(row == 1)[1]
  alone = np.zeros_like(row)
  alone[: len(row) - start] = row[start:]

  @jax.jit
  def loss(key, rows):
    params = model.init(key, rows)["params"]
    return answers.packed_loss(model)(params, {}, (rows,), key)

  found = loss(jax.random.key(0), np.stack([row, alone]))
  np.testing.assert_array_equal(found.weights, np.stack([row, alone]) > 1)
  values = np.where(found.weights, found.values, 0)
  np.testing.assert_allclose(values[0, start:], values[1, : len(row) - start], atol=1e-5)


def test_a_chain_parts_in_two_branches():
  config = dataclasses.replace(CONFIG, net="chain", num_variables=9, flip=0.2)
  drawn = [nets.random_net(config, np.random.default_rng(seed)) for seed in (0, 1)]
  for net in drawn:
    counts = np.bincount(net.parents[net.parents >= 0], minlength=9)
    assert np.sum(net.parents < 0) == 1
    np.testing.assert_array_equal(np.bincount(counts), [2, 6, 1])
    distances = data.graph_distances(net.parents)
    (root,), ends = np.flatnonzero(net.parents[:, 0] < 0), np.flatnonzero(counts == 0)
    np.testing.assert_array_equal(distances[root, ends], [5, 5])
    assert distances[tuple(ends)] == 6
    for end in ends:  # Five edges away, where an odd number of flips exchanges the values.
      found = data.conditional_probability(*net, int(end), int(root), 1)
      np.testing.assert_allclose(found, (1 + 0.6**5) / 2, atol=1e-5)
  assert not np.array_equal(drawn[0].parents, drawn[1].parents)


def test_questions_and_steps_by_enumeration():
  rng = np.random.default_rng(3)
  net, pairs = nets.draw_net(CONFIG, rng)
  questions = nets.make_questions(CONFIG, net, pairs)
  steps = nets.make_steps(CONFIG, rng, net, questions)
  states = np.array([*itertools.product((0, 1), repeat=SIZE)], np.int32)
  probs = np.exp(np.asarray(jax.jit(data.joint_log_prob)(*net, states), np.float64))
  assert len(questions.targets) == 8 and questions.used.sum() >= 4
  for i, (target, condition, value) in enumerate(zip(*questions[:3])):
    here = states[:, condition] == value
    assert questions.used[i] == (probs[here].sum() >= CONFIG.least_probability)
    np.testing.assert_allclose(questions.marginals[i], probs @ states[:, target], atol=1e-5)
    scaffold = steps.scaffolds[i][steps.scaffolds[i] >= 0]
    negative = steps.negatives[i][steps.negatives[i] >= 0]
    assert len(scaffold) == len(negative) and not {*scaffold} & {*negative}
    assert not {target, condition} & {*scaffold, *negative, *steps.others[i]}
    if not questions.used[i]:
      continue
    truth = probs[here] @ states[here, target] / probs[here].sum()
    np.testing.assert_allclose(questions.probs[i], truth, atol=1e-5)
    # The scaffold says all that the condition says of the target.
    np.testing.assert_allclose(steps.chained[i], truth, atol=1e-5)
    second = 0.0
    for values in itertools.product((0, 1), repeat=len(scaffold)):
      cell = (states[:, scaffold] == values).all(axis=1)
      weight = probs[cell & here].sum() / probs[here].sum()
      if weight > 0:
        second += weight * (probs[cell] @ states[cell, target] / probs[cell].sum()) ** 2
    np.testing.assert_allclose(steps.variances[i], second - truth**2, atol=1e-5)


def test_questions_that_do_not_count_add_no_error():
  probs, marginals, found = RNG.random((3, 6)).astype(np.float32)
  used = np.array([1, 0, 1, 1, 0, 1], bool)
  none = np.zeros(6, np.int32)
  questions = Questions(none, none, none, probs, marginals, used)
  errors = jax.jit(answers.errors_of)(found, questions)
  for name, truth in ((answers.MSE, probs), (answers.TO_MARGINAL, marginals)):
    expected = np.mean([(found[i] - truth[i]) ** 2 for i in range(6) if used[i]])
    np.testing.assert_allclose(errors[name], expected, rtol=1e-5)


def test_traces_separate_where_the_graph_says_so():
  chain = np.array([[-1], [0], [1], [2], [-1]], np.int32)  # 0 -> 1 -> 2 -> 3, and 4.
  both = np.array([3, 0], np.int32), np.array([0, 3], np.int32), np.array([1, 1], np.int32)
  half = np.full(2, 0.5)
  questions = Questions(*both, half, half, np.array([True, False]))
  traces = np.full((2, 5, 5), -1)
  traces[0, 0, :1] = 1  # Separates.
  traces[0, 1, :3] = 0, 4, 2  # Repeats the condition, and separates.
  traces[0, 2, :1] = 4  # Does not.
  traces[0, 3] = 1, 2, 1, 2, 4  # Never the target.
  found = answers.describe_traces(chain, questions, traces)
  assert found == {
    answers.REACHED: 4 / 5,
    answers.SEPARATE: 2 / 4,
    answers.STARTED: 3 / 4,
    answers.NUMBER: 5 / 4,
  }


def test_variables_are_placed_as_in_the_graph():
  path = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
  places = pictures.place_variables(path)
  found = np.linalg.norm(places[:, None] - places, axis=-1)
  np.testing.assert_allclose(found, path, atol=0.02)
  apart = np.array([[0, 1, -1], [1, 0, -1], [-1, -1, 0]])
  places = pictures.place_variables(apart)
  assert np.linalg.norm(places[0] - places[2]) > 1.5 * np.linalg.norm(places[0] - places[1])


@pytest.mark.parametrize(
  "change, message",
  [
    ({"num_edges": 10, "net": "random"}, "num_edges must be at most 9"),
    ({"num_pairs": 6}, "num_pairs must be at most 5"),
    ({"num_pairs": 5, "net": "random"}, "num_pairs must be at most 4"),
    ({"net": "tree"}, "net must be among chain, random"),
    ({"flip": 1.5}, "flip must lie in"),
    ({"radius": "uniform"}, "radius must be among geometric, zipf"),
    ({"radius": "zipf"}, "radius_parameter must lie in"),
    ({"decoder": (9, 1)}, "decoder must be a multiple of 2"),
    ({"keep_prob": 0.0}, "keep_prob must lie in"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    validate(dataclasses.replace(PRESETS["smoke"], **change))
