"""Choice of sampled solutions to train on."""

import chex
import numpy as np

from jaxlab._checks import check_arrays, check_at_least


def unique_correct(
  tokens: chex.Array, correct: chex.Array, problem_ids: chex.Array, *, max_per_problem: int = 4
) -> np.ndarray:
  """Chooses right solutions that differ, a few of every problem, on the host.

  Training on them is rejection-sampling fine-tuning.

  Args:
    tokens: sampled solutions, int `[n, T]`. Two are the same if all their tokens are, so that what
      follows the end must be padded alike.
    correct: whether each has the right answer, bool `[n]`.
    problem_ids: the problem of each, int `[n]`, in any order.
    max_per_problem: how many solutions of a problem to keep at most.

  Returns:
    Which solutions to keep, bool `[n]`: the first occurrences.

  Raises:
    ValueError: if `max_per_problem` < 1 or shapes do not fit.
    TypeError: if an array is of another type.

  Reference: Yuan et al., Scaling Relationship on Learning Mathematical Reasoning with Large
  Language Models, 2023, https://arxiv.org/abs/2308.01825; Setlur et al., NeurIPS 2024,
  https://arxiv.org/abs/2406.14532.
  """
  check_at_least(1, max_per_problem=max_per_problem)
  check_arrays(
    tokens=(tokens, "int [n, T]"),
    correct=(correct, "bool [n]"),
    problem_ids=(problem_ids, "int [n]"),
  )
  rows = np.flatnonzero(np.asarray(correct))
  ids = np.asarray(problem_ids)[rows]
  solutions = np.column_stack([ids, np.asarray(tokens)[rows]])
  _, first = np.unique(solutions, axis=0, return_index=True)
  first.sort()
  rows, ids = rows[first], ids[first]
  # Stable: the solutions of a problem stay in their order.
  order = np.argsort(ids, kind="stable")
  starts = np.searchsorted(ids[order], ids[order])
  kept = order[np.arange(len(order)) - starts < max_per_problem]
  keep = np.zeros(np.shape(correct), bool)
  keep[rows[kept]] = True
  return keep
