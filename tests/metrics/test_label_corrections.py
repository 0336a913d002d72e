"""Votes of raters against a loop, and accuracies as lines."""

import collections

import jax
import numpy as np
import pytest

from jaxlab import metrics

K = 4
CROSSING = jax.jit(metrics.crossing_prevalence)
LINES = jax.jit(metrics.prevalence_accuracy)
CONFIRM = jax.jit(metrics.confirm_errors, static_argnames=("num_classes", "majority"))


@pytest.mark.parametrize("majority", [1, 3, 5])
def test_confirmed_errors_match_a_loop(majority):
  rng = np.random.default_rng(majority)
  votes, labels = rng.integers(-1, K, (200, 5)), rng.integers(0, K, 200)
  votes[:60] = np.where(rng.random((60, 5)) < 0.7, rng.integers(-1, K, (60, 1)), votes[:60])
  result = jax.tree.map(np.asarray, CONFIRM(votes, labels, num_classes=K, majority=majority))
  for row, label, is_error, corrected in zip(votes, labels, *result):
    assert is_error == (sum(row != label) >= majority)
    counts = collections.Counter(int(v) for v in row if v not in (-1, label))
    most = max(counts.values(), default=0)
    named = min((v for v, count in counts.items() if count == most), default=-1)
    expected = (named if most >= majority else -1) if is_error else label
    assert corrected == expected
  assert result.corrected.dtype == np.int32


def test_accuracy_is_a_line_between_clean_and_corrected():
  clean, corrected = np.array([0.97, 0.93]), np.array([0.28, 0.47])
  at = CROSSING(clean[0], corrected[0], clean[1], corrected[1])
  shares = np.array([0, 1, 0.25, at])
  lines = LINES(clean, corrected, shares)
  np.testing.assert_allclose(lines[:, 0], clean, rtol=1e-6)
  np.testing.assert_allclose(lines[:, 1], corrected, rtol=1e-6)
  np.testing.assert_allclose(lines[:, 2], 0.75 * clean + 0.25 * corrected, rtol=1e-6)
  np.testing.assert_allclose(lines[0, 3], lines[1, 3], rtol=1e-6)


def test_lines_may_cross_outside_or_never():
  assert CROSSING(0.9, 0.5, 0.8, 0.5) == 1
  assert CROSSING(0.9, 0.8, 0.8, 0.5) < 0
  assert CROSSING(0.75, 0.5, 0.5, 0.25) == np.inf
  assert np.isnan(CROSSING(np.nan, 0.5, 0.5, 0.25))


def test_errors():
  votes, labels = np.zeros((6, 5), int), np.zeros(6, int)
  confirm = metrics.confirm_errors
  for majority in (0, 6):
    with pytest.raises(ValueError, match=rf"majority must lie in \[1, 5\], got {majority}"):
      confirm(votes, labels, num_classes=K, majority=majority)
  votes[4, 2] = 9
  with pytest.raises(ValueError, match=r"votes must lie in \[-1, 4\), got 9 in row 4"):
    confirm(votes, labels, num_classes=K)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\), got -1 to -1"):
    confirm(np.zeros((6, 5), int), labels - 1, num_classes=K)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    confirm(votes, labels, num_classes=1)
  with pytest.raises(ValueError, match=r"prevalence must lie in \[0, 1\]"):
    metrics.prevalence_accuracy(np.ones(2), np.ones(2), np.array([2.0]))
  with pytest.raises(ValueError, match=r"corrected_accuracy must have shape \[m\] with m = 2"):
    metrics.prevalence_accuracy(np.ones(2), np.ones(3), np.ones(1))
