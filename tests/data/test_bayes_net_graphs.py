import itertools

import jax
import numpy as np
import pytest

from jaxlab import data

KEY = jax.random.key(0)
NETS = [
  data.random_bayes_net(jax.random.key(seed), num_variables=7, num_edges=8, max_parents=3)
  for seed in range(5)
]
# 0 -> 1 <- 2, 1 -> 3; 4 -> 5 apart.
COLLIDER = np.array([[-1, -1], [0, 2], [-1, -1], [-1, 1], [-1, -1], [4, -1]], np.int32)
CHAIN = np.array([[-1], [0], [1], [2], [3]], np.int32)


def edges_of(parents):
  return {(int(p), i) for i, row in enumerate(parents) for p in row if p >= 0}


def descendants(edges, node):
  found = {node}
  while more := {b for a, b in edges if a in found} - found:
    found |= more
  return found


def slow_d_separated(parents, first, second, given):
  """By all simple paths: one is open if its colliders alone lead to given variables."""
  edges, given = edges_of(parents), set(given)

  def open_from(path):
    node = path[-1]
    if node == second:
      return all(
        bool(descendants(edges, b) & given) if {(a, b), (c, b)} <= edges else b not in given
        for a, b, c in zip(path, path[1:], path[2:])
      )
    neighbors = {b for a, b in edges if a == node} | {a for a, b in edges if b == node}
    return any(open_from([*path, x]) for x in neighbors - set(path))

  return not open_from([first])


@pytest.mark.parametrize("net", NETS)
def test_d_separation_matches_all_paths_and_independence(net):
  information = data.pairwise_mutual_information(net.parents, net.cpt)
  for first, second in itertools.combinations(range(7), 2):
    others = [i for i in range(7) if i not in (first, second)]
    for size in (0, 1, 2):
      for given in itertools.combinations(others, size):
        ours = data.d_separated(net.parents, first, second, given)
        assert ours == slow_d_separated(net.parents, first, second, given)
    if data.d_separated(net.parents, first, second, []):
      assert information[first, second] < 1e-6


def test_a_collider_opens_with_its_descendant():
  assert data.d_separated(COLLIDER, 0, 2, [])
  assert not data.d_separated(COLLIDER, 0, 2, [1])
  assert not data.d_separated(COLLIDER, 0, 2, [3])
  assert data.d_separated(COLLIDER, 0, 3, [1]) and data.d_separated(COLLIDER, 0, 5, [3])


@pytest.mark.parametrize("net", NETS)
def test_scaffolds_are_smallest_separating_sets(net):
  distances = data.graph_distances(net.parents)
  for target, condition in itertools.permutations(range(7), 2):
    scaffold = data.reasoning_scaffold(net.parents, target, condition)
    if not scaffold:
      continue
    assert data.d_separated(net.parents, target, condition, scaffold)
    assert scaffold == sorted(scaffold, key=lambda i: (distances[condition, i], i))
    others = [i for i in range(7) if i not in (target, condition)]
    for size in range(len(scaffold)):
      for given in itertools.combinations(others, size):
        assert not data.d_separated(net.parents, target, condition, given)
    negative = data.negative_scaffold(KEY, net.parents, target, condition)
    assert not {*negative} & {*scaffold, target, condition}
    assert len({*negative}) == len(negative) == min(len(scaffold), 5 - len(scaffold))


def test_of_several_cuts_the_one_nearest_the_condition():
  assert data.reasoning_scaffold(CHAIN, 4, 0) == [1]
  assert data.reasoning_scaffold(CHAIN, 0, 4) == [3]
  assert data.reasoning_scaffold(CHAIN, 1, 0) == []
  assert data.reasoning_scaffold(COLLIDER, 0, 5) == []
  assert data.reasoning_scaffold(COLLIDER, 0, 2) == []  # Their child is no ancestor.
  # Two ways from 0 to 5: both are cut, next to the condition.
  ways = np.array([[-1, -1], [0, -1], [0, -1], [1, -1], [2, -1], [3, 4]], np.int32)
  assert data.reasoning_scaffold(ways, 5, 0) == [1, 2]
  assert data.reasoning_scaffold(ways, 0, 5) == [3, 4]


def test_distances():
  np.testing.assert_array_equal(
    data.graph_distances(COLLIDER)[:4],
    [[0, 1, 2, 2, -1, -1], [1, 0, 1, 1, -1, -1], [2, 1, 0, 2, -1, -1], [2, 1, 2, 0, -1, -1]],
  )


def test_held_out_pairs():
  information = np.zeros((5, 5))
  distances = data.graph_distances(CHAIN)
  for value, (i, j) in enumerate([(0, 2), (1, 3), (2, 4), (0, 3), (1, 4), (0, 4)]):
    information[i, j] = information[j, i] = 6 - value
  seen = set()
  for seed in range(8):
    pairs = data.select_held_out_pairs(jax.random.key(seed), information, distances, num_pairs=2)
    assert pairs.shape == (2, 2) and (pairs[:, 0] < pairs[:, 1]).all()
    seen |= {tuple(map(int, pair)) for pair in pairs}
  assert seen == {(0, 2), (1, 3), (2, 4), (0, 3)}
  with pytest.raises(ValueError, match=r"num_pairs must lie in \[1, 3\], got 4"):
    data.select_held_out_pairs(KEY, information, distances, num_pairs=4)


def test_errors():
  with pytest.raises(ValueError, match="second must differ from first, got 1 for both"):
    data.d_separated(CHAIN, 1, 1, [])
  with pytest.raises(ValueError, match=r"given\[1\] must differ from first, got 0 for both"):
    data.d_separated(CHAIN, 0, 1, [2, 0])
  with pytest.raises(ValueError, match="condition must differ from target, got 3 for both"):
    data.reasoning_scaffold(CHAIN, 3, 3)
  with pytest.raises(ValueError, match=r"given\[0\] must lie in \[0, 5\), got -1"):
    data.d_separated(CHAIN, 0, 1, [-1])
