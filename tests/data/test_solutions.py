import numpy as np
import pytest

from jaxlab import data

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 2, (300, 4), np.int32)
CORRECT = RNG.random(300) < 0.6
PROBLEMS = RNG.integers(-3, 9, 300)


@pytest.mark.parametrize("most", [1, 4, 100])
def test_first_occurrences_are_kept(most):
  kept, expected = {}, []
  for tokens, correct, problem in zip(TOKENS, CORRECT, PROBLEMS):
    of_problem = kept.setdefault(problem, set())
    new = correct and tuple(tokens) not in of_problem and len(of_problem) < most
    if new:
      of_problem.add(tuple(tokens))
    expected.append(new)
  keep = data.unique_correct(TOKENS, CORRECT, PROBLEMS, max_per_problem=most)
  assert keep.dtype == bool
  np.testing.assert_array_equal(keep, expected)


def test_defaults_and_empty_sets():
  keep = data.unique_correct(TOKENS, CORRECT, PROBLEMS)
  four = data.unique_correct(TOKENS, CORRECT, PROBLEMS, max_per_problem=4)
  np.testing.assert_array_equal(keep, four)
  assert not data.unique_correct(TOKENS, np.zeros(300, bool), PROBLEMS).any()
  assert data.unique_correct(TOKENS[:0], CORRECT[:0], PROBLEMS[:0]).shape == (0,)


def test_narrow_tokens_and_wide_problem_ids():
  ids = np.array([2**40, 2**40 + 1, 2**40], np.int64)
  tokens = np.full((3, 2), 255, np.uint8)
  keep = data.unique_correct(tokens, np.ones(3, bool), ids)
  np.testing.assert_array_equal(keep, [True, True, False])


def test_errors():
  with pytest.raises(ValueError, match="max_per_problem must be at least 1, got 0"):
    data.unique_correct(TOKENS, CORRECT, PROBLEMS, max_per_problem=0)
  with pytest.raises(ValueError, match=r"correct must have shape \[n\] with n = 300, got \[299\]"):
    data.unique_correct(TOKENS, CORRECT[1:], PROBLEMS)
  with pytest.raises(TypeError, match="correct must be of type bool"):
    data.unique_correct(TOKENS, CORRECT.astype(float), PROBLEMS)
