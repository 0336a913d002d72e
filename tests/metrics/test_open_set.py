"""Open-set metrics against loops."""

import jax
import numpy as np
import pytest

from jaxlab import metrics

OSCR = jax.jit(metrics.open_set_classification_rate)


def _loop(known, unknown, correct):
  order = np.argsort(np.concatenate([known, unknown]), kind="stable")
  n1, n2 = len(known), len(unknown)
  hit = np.concatenate([correct, np.zeros(n2, bool)])[order]
  foreign = np.concatenate([np.zeros(n1, bool), np.ones(n2, bool)])[order]
  points = [(1.0, 1.0)]
  for t in range(n1 + n2 - 1):
    points.append((foreign[t:].sum() / n2, hit[t + 1 :].sum() / n1))
  points.append((0.0, 0.0))
  return sum((f - g) * (c + d) / 2 for (f, c), (g, d) in zip(points, points[1:]))


@pytest.mark.parametrize("levels", [4, 10**6])
def test_oscr_matches_a_loop(levels):
  rng = np.random.default_rng(levels)
  for _ in range(10):
    known, unknown = rng.integers(0, levels, 30), rng.integers(0, levels, 20)
    predictions, labels = rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    value = OSCR(known, unknown, predictions, labels)
    expected = _loop(known.astype(np.float32), unknown.astype(np.float32), predictions == labels)
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_oscr_of_separated_and_right_rows_is_1_up_to_the_trapezoid():
  labels = np.arange(8)
  value = OSCR(np.linspace(0.6, 1, 8), np.linspace(0, 0.4, 5), labels, labels)
  np.testing.assert_allclose(value, 1 - 1 / (2 * 8 * 5), atol=1e-6)


def test_oscr_of_right_rows_is_the_auroc_up_to_the_trapezoid():
  rng = np.random.default_rng(0)
  known, unknown = rng.standard_normal(40) + 1, rng.standard_normal(30)
  labels = np.zeros(40, int)
  foreign = np.concatenate([np.zeros(40), np.ones(30)])[np.argsort(np.r_[known, unknown])]
  followed = np.sum((foreign[:-1] == 1) & (foreign[1:] == 0))
  area = metrics.auroc(np.r_[known, unknown], np.r_[np.ones(40, int), np.zeros(30, int)])
  np.testing.assert_allclose(
    OSCR(known, unknown, labels, labels), area - followed / (2 * 40 * 30), atol=1e-6
  )


def test_oscr_is_0_if_all_are_wrong_and_nan_if_empty():
  rng = np.random.default_rng(0)
  known, unknown = rng.standard_normal(10), rng.standard_normal(10)
  # The curve starts at (1, 1) even if all known rows are wrong.
  known[0], unknown[0] = -9.0, 0.0
  assert OSCR(known, unknown, np.ones(10, int), np.zeros(10, int)) == 0
  none, empty = np.zeros(0), np.zeros(0, int)
  assert np.isnan(metrics.open_set_classification_rate(none, unknown, empty, empty))
  zeros = np.zeros(10, int)
  assert np.isnan(metrics.open_set_classification_rate(known, none, zeros, zeros))


def test_oscr_of_missing_and_of_integer_scores():
  labels = np.arange(3)
  assert np.isnan(OSCR(np.array([0.1, np.nan, 0.3]), np.array([0.2, 0.1]), labels, labels))
  # In float32 these would be ties.
  known, unknown = np.array([1, 3, 5]), np.array([0, 2])
  np.testing.assert_array_equal(
    OSCR(2**24 + known, 2**24 + unknown, labels, labels), OSCR(known, unknown, labels, labels)
  )


def test_closed_set_error_counts_known_rows_only():
  predictions, labels = np.array([0, 1, 2, 3]), np.array([0, 2, 2, 9])
  known = np.array([True, True, True, False])
  np.testing.assert_allclose(metrics.closed_set_error(predictions, labels, known=known), 1 / 3)
  none = metrics.closed_set_error(predictions, labels, known=np.zeros(4, bool))
  assert none == 0 and none.dtype == np.float32


def test_errors():
  with pytest.raises(ValueError, match=r"predictions must .* n1 = 3, got \[4\]"):
    metrics.open_set_classification_rate(
      np.zeros(3), np.zeros(2), np.zeros(4, int), np.zeros(3, int)
    )
  with pytest.raises(ValueError, match="known must have shape"):
    metrics.closed_set_error(np.zeros(3, int), np.zeros(3, int), known=np.ones(2, bool))
  with pytest.raises(TypeError, match="labels must be of type int"):
    metrics.closed_set_error(np.zeros(3, int), np.zeros(3), known=np.ones(3, bool))
