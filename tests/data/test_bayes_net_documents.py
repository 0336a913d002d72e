import functools

import jax
import numpy as np
import pytest

from jaxlab import data

KEY = jax.random.key(1)
SIZE = 5
# 0 -> 1 -> 2 -> 3, and 4 apart.
CHAIN = np.array([[-1], [0], [1], [2], [-1]], np.int32)
CPT = np.array([[0.3, 0], [0.2, 0.9], [0.1, 0.8], [0.25, 0.6], [0.5, 0]], np.float32)
PAIRS = np.array([[0, 2], [1, 3]])
draw = functools.partial(data.local_documents, KEY, CHAIN, CPT, num_documents=4000)


def parsed(documents):
  """Variables and values of each text, after checking its form."""
  for tokens, length in zip(*documents):
    assert tokens[0] == 1 and (tokens[length:] == 0).all() and (tokens[:length] > 0).all()
    names, values = tokens[2:length:2] - 4, tokens[3:length:2] - 2
    assert tokens[1] - 4 == names[-1] and ((values == 0) | (values == 1)).all()
    known = dict(zip(names.tolist(), values.tolist()))
    assert len(names) == max(len(known), 2)
    yield known


def test_texts_show_neighborhoods_without_held_out_pairs():
  documents = draw(held_out_pairs=PAIRS, keep_prob=1.0, radius_parameter=1.0)
  assert documents.tokens.shape == (4000, 2 * SIZE + 4)
  shown = {frozenset(known) for known in parsed(documents)}
  # Within a distance of 1: {0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3} and {4}.
  assert shown == {frozenset(x) for x in ((0, 1), (1, 2), (2, 3), (4,))}


def test_values_follow_the_net():
  for radius, parameter in (("geometric", 0.5), ("zipf", 2.0)):
    texts = [*parsed(draw(radius=radius, radius_parameter=parameter))]
    for child, parent in ((1, 0), (2, 1), (3, 2)):
      for value in (0, 1):
        values = [x[child] for x in texts if child in x and x.get(parent) == value]
        expected = CPT[child, value]
        assert abs(np.mean(values) - expected) < 5 * np.sqrt(expected / len(values))
    assert len(set(map(len, texts))) > 2


def test_other_neighborhoods_with_the_values_of_this_net():
  other = np.array([[-1], [-1], [0], [-1], [3]], np.int32)
  documents = draw(neighborhood_parents=other, keep_prob=1.0)
  texts = [*parsed(documents)]
  assert {frozenset(known) for known in texts} == {frozenset(x) for x in ((0, 2), (1,), (3, 4))}
  both = [x[2] for x in texts if x.get(0) == 1]
  expected = data.conditional_probability(CHAIN, CPT, 2, 0, 1)
  assert abs(np.mean(both) - expected) < 5 * np.sqrt(expected / len(both))


def test_fully_observed_texts():
  texts = [*parsed(draw(fully_observed=True, keep_prob=0.1))]
  assert all(len(known) == SIZE for known in texts)
  split = [*parsed(draw(fully_observed=True, held_out_pairs=PAIRS))]
  assert {frozenset(x) for x in split} == {frozenset((a, b, 4)) for a in (0, 2) for b in (1, 3)}


def test_order_and_seed():
  first, again = draw(fully_observed=True), draw(fully_observed=True)
  np.testing.assert_array_equal(first.tokens, again.tokens)
  firsts = np.bincount(first.tokens[:, 2] - 4, minlength=SIZE) / 4000
  np.testing.assert_allclose(firsts, 1 / SIZE, atol=0.04)


def test_errors():
  for name, value, message in (
    ("radius", "fixed", "radius must be one of 'geometric', 'zipf', got 'fixed'"),
    ("keep_prob", 0.0, r"keep_prob must lie in \(0, 1\], got 0.0"),
    ("num_documents", 0, "num_documents must be at least 1, got 0"),
    ("radius_parameter", 1.5, r"radius_parameter must lie in \(0, 1\], got 1.5"),
    ("held_out_pairs", np.array([[0, 5]]), r"held_out_pairs must lie in \[0, 5\)"),
    ("neighborhood_parents", CHAIN[:4], "neighborhood_parents must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      draw(**{name: value})
  with pytest.raises(ValueError, match=r"radius_parameter must lie in \(1, inf\), got 0.5"):
    draw(radius="zipf")
