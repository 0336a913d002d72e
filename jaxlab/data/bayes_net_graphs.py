"""Graphs of Bayes nets: what separates two variables, and how far apart they are. On the host."""

from collections.abc import Sequence

import chex
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab.data.bayes_nets import ancestors_of, check_parents, check_variables, host_generator


def graph_distances(parents: chex.Array) -> np.ndarray:
  """Number of edges between variables, whatever their direction.

  Args:
    parents: parents of each variable, -1 for none, int `[N, P]`.

  Returns:
    i32 `[N, N]`; -1 where no path leads.

  Raises:
    ValueError: if parents are no variables, or contain a cycle.

  Reference: Prystawski et al., Why Think Step by Step?, NeurIPS 2023, section 3.1,
  https://arxiv.org/abs/2304.03843.
  """
  check_parents(parents)
  edges = _edges(np.asarray(parents))
  distances = csgraph.shortest_path(sparse.csr_matrix(edges), directed=False, unweighted=True)
  return np.where(np.isinf(distances), -1, distances).astype(np.int32)


def d_separated(parents: chex.Array, first: int, second: int, given: Sequence[int]) -> bool:
  """Whether the graph alone makes two variables independent given others.

  Args:
    parents: int `[N, P]`.
    first: a variable.
    second: another one.
    given: variables that are known.

  Returns:
    Whether no path joins the two in the moral graph of their ancestors and those of the given
    variables once these are deleted.

  Raises:
    ValueError: if parents are no variables or contain a cycle, or variables lie outside [0, N), are
      the same, or are among the given ones.

  Reference: Lauritzen et al., Independence Properties of Directed Markov Fields, 1990.
  """
  check_parents(parents)
  check_variables(len(parents), first=first, second=second)
  for i, variable in enumerate(given):
    check_variables(len(parents), first=first, second=second, **{f"given[{i}]": variable})
  adjacent = _moral_graph(np.asarray(parents), (first, second, *given))
  adjacent[list(given)] = adjacent[:, list(given)] = False
  return not _reached(adjacent, first)[second]


def reasoning_scaffold(parents: chex.Array, target: int, condition: int) -> list[int]:
  """The fewest variables between a condition and a target, to be inferred one after the other.

  They are the smallest set that separates the two in the moral graph of their ancestors; of several
  such sets, the one nearest the condition.

  Args:
    parents: int `[N, P]`.
    target: the variable that is asked for.
    condition: the variable that is known.

  Returns:
    Variables by their distance from the condition in the whole graph, equally distant ones in
    order. Empty if no path joins the two, or if they are adjacent in the moral graph.

  Raises:
    ValueError: if parents are no variables or contain a cycle, or the two lie outside [0, N) or are
      the same.

  Reference: as `graph_distances`, section 3.4.
  """
  check_parents(parents)
  parents = np.asarray(parents)
  check_variables(len(parents), target=target, condition=condition)
  adjacent = _moral_graph(parents, (target, condition))
  if adjacent[target, condition] or not _reached(adjacent, condition)[target]:
    return []
  # Each variable is an edge of capacity 1 from its way in to its way out.
  size = len(parents)
  capacity = np.zeros((2 * size, 2 * size), np.int32)
  capacity[size:, :size] = size * adjacent
  capacity[np.arange(size), np.arange(size) + size] = 1
  flow = csgraph.maximum_flow(sparse.csr_matrix(capacity), size + condition, target).flow
  reached = _reached(capacity - flow.toarray() > 0, size + condition)
  cut = np.flatnonzero(reached[:size] & ~reached[size:])
  distances = graph_distances(parents)[condition]
  return sorted(map(int, cut), key=lambda variable: (distances[variable], variable))


def negative_scaffold(
  key: chex.PRNGKey, parents: chex.Array, target: int, condition: int
) -> list[int]:
  """As many random variables as the scaffold has, none of which is in it.

  Args:
    key: random key.
    parents: int `[N, P]`.
    target: the variable that is asked for.
    condition: the variable that is known.

  Returns:
    Variables in random order; fewer if there are not enough.

  Raises:
    ValueError: as `reasoning_scaffold`.

  Reference: as `graph_distances`, section 3.4.
  """
  scaffold = reasoning_scaffold(parents, target, condition)
  others = np.setdiff1d(np.arange(len(parents)), [*scaffold, target, condition])
  return [int(x) for x in host_generator(key).permutation(others)[: len(scaffold)]]


def select_held_out_pairs(
  key: chex.PRNGKey,
  mutual_information: chex.Array,
  distances: chex.Array,
  *,
  num_pairs: int = 25,
) -> np.ndarray:
  """Draws pairs of variables that depend on each other, but are not adjacent.

  Args:
    key: random key.
    mutual_information: of every pair, `[N, N]`.
    distances: number of edges between the variables, -1 for no path, int `[N, N]`.
    num_pairs: number of pairs, drawn from twice as many that have the largest mutual information
      among those at a distance of 2 or more.

  Returns:
    Pairs in ascending order, i32 `[num_pairs, 2]`, the smaller variable first.

  Raises:
    ValueError: if `num_pairs` < 1 or above half of the pairs at such a distance, or shapes do not
      agree.

  Reference: as `graph_distances`, section 3.2.
  """
  check_at_least(1, num_pairs=num_pairs)
  check_arrays(
    mutual_information=(mutual_information, "[N, N]"), distances=(distances, "int [N, N]")
  )
  pairs = np.argwhere(np.triu(np.asarray(distances) > 1, 1))
  check_range("num_pairs", num_pairs, f"[1, {len(pairs) // 2}]")
  order = np.argsort(-np.asarray(mutual_information)[tuple(pairs.T)], kind="stable")
  drawn = host_generator(key).permutation(order[: 2 * num_pairs])[:num_pairs]
  return pairs[np.sort(drawn)].astype(np.int32)


def _edges(parents: np.ndarray) -> np.ndarray:
  """Whether an edge leads from the variable of the row to that of the column."""
  edges = np.zeros((len(parents),) * 2, bool)
  child, place = np.nonzero(parents >= 0)
  edges[parents[child, place], child] = True
  return edges


def _moral_graph(parents: np.ndarray, variables: Sequence[int]) -> np.ndarray:
  """Undirected: children to parents and parents to each other, of these variables' ancestors."""
  edges = _edges(parents)
  edges[:, ~ancestors_of(parents, variables)] = False
  married = edges @ edges.T
  np.fill_diagonal(married, False)
  return edges | edges.T | married


def _reached(edges: np.ndarray, start: int) -> np.ndarray:
  """Which places paths lead to."""
  reached = np.zeros(len(edges), bool)
  order = csgraph.breadth_first_order(sparse.csr_matrix(edges), start, return_predecessors=False)
  reached[order] = True
  return reached
