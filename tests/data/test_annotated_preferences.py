import functools

import jax
import numpy as np
import pytest

from jaxlab import data

RNG = np.random.default_rng(0)
N = 400
COUNTS = RNG.integers(0, 6, N)
ANNOTATIONS = RNG.integers(-3, 4, (N, 5))
aggregate = jax.jit(data.aggregate_preferences)
orient = jax.jit(data.orient_pairs)
draw = jax.jit(functools.partial(data.annotated_pairs, num_pairs=3000), static_argnames="shifted")


@functools.cache
def pairs(shifted=False):
  return data.AnnotatedPairs(*map(np.asarray, draw(jax.random.key(0), shifted=shifted)))


def slow(annotations):
  """Strength of one pair, 0 if it is dropped."""
  ordered = sorted(annotations)
  windows = [ordered[i : i + 3] for i in range(len(ordered) - 2)]
  if not windows:
    return 0
  middle = np.median(ordered)
  best = min(windows, key=lambda w: (w[2] - w[0], abs(np.sum(w) / 3 - middle).round(6)))
  return 0 if best[2] - best[0] > 2 else round(sum(best) / 3)


def test_aggregation_matches_a_loop():
  strength, keep = aggregate(ANNOTATIONS, COUNTS)
  expected = [slow(row[:count].tolist()) for row, count in zip(ANNOTATIONS, COUNTS)]
  np.testing.assert_array_equal(strength, expected)
  np.testing.assert_array_equal(keep, np.array(expected) != 0)
  assert 0.2 < np.mean(keep) < 0.8


@pytest.mark.parametrize(
  "annotations, expected",
  [((-3, -2, -2, 1, 3), -2), ((-3, 0, 3), 0), ((1, 1, 2, 2), 1), ((0, 0, 1), 0), ((2, 3), 0)],
)
def test_aggregation_of_some_pairs(annotations, expected):
  rows = np.zeros((N, 5), int)
  rows[:, : len(annotations)] = annotations
  strength, keep = aggregate(rows, np.full(N, len(annotations)))
  assert np.all(strength == expected) and np.all(keep == (expected != 0))


def test_the_order_of_annotations_does_not_matter():
  mixed = np.array(ANNOTATIONS)
  for row, count in zip(mixed, COUNTS):
    row[:count] = RNG.permutation(row[:count])
    row[count:] = 9
  for one, other in zip(aggregate(mixed, COUNTS), aggregate(ANNOTATIONS, COUNTS)):
    np.testing.assert_array_equal(one, other)


def test_pairs_are_oriented():
  chosen, magnitude = data.orient_pairs(np.array([-3, -1, 2, 0], np.int8))
  np.testing.assert_array_equal(chosen, [0, 0, 1, 1])
  np.testing.assert_array_equal(magnitude, [3, 1, 2, 0])


def test_ratings_become_strengths():
  first, second = np.float32([0, 0, 0, 4, 1, 2, np.nan]), np.float32([0.5, 1.5, 4, 0, 1, 1.4, 1])
  expected = [0, 2, 3, -3, 0, -1, 0]  # Halves to even.
  np.testing.assert_array_equal(data.ratings_to_strength(first, second), expected)
  clipped = data.ratings_to_strength(first, second, max_strength=2)
  np.testing.assert_array_equal(clipped, [0, 2, 2, -2, 0, -1, 0])


def test_ratings_and_strengths_follow_the_utilities():
  task = pairs()
  assert task.first_ratings.min() >= 0 and task.first_ratings.max() <= 4
  np.testing.assert_allclose(task.first_ratings * 3, np.round(task.first_ratings * 3), atol=1e-4)
  gap = task.utilities[:, 1] - task.utilities[:, 0]
  weights = np.array([0.65, 0.8, 0.45, 0.55, -0.4])
  rated = (task.second_ratings - task.first_ratings) @ weights
  assert np.corrcoef(gap, rated)[0, 1] > 0.8
  valid = np.arange(5) < task.counts[:, None]
  assert set(np.unique(task.counts)) == {3, 4, 5} and not np.any(task.strengths[~valid])
  assert np.corrcoef(np.repeat(gap, task.counts), task.strengths[valid])[0, 1] > 0.8
  strength, keep = map(np.asarray, aggregate(task.strengths, task.counts))
  _, magnitude = orient(strength[keep])
  shares = np.bincount(magnitude, minlength=4)[1:] / keep.sum()
  assert np.all(shares > 0.1) and np.mean(np.sign(strength[keep]) == np.sign(gap[keep])) > 0.9


def test_shifted_domains_lie_twice_as_far():
  near, far = pairs(), pairs(shifted=True)
  np.testing.assert_array_equal(near.domains, far.domains)
  for domain in range(4):
    rows = near.domains == domain
    mean, moved = near.first[rows].mean(0), far.first[rows].mean(0)
    # Both draws have the same noise, so that their difference is the domain's mean.
    np.testing.assert_allclose(
      (far.first - near.first)[rows], [moved - mean] * rows.sum(), atol=1e-4
    )
    np.testing.assert_allclose(mean, moved - mean, atol=4.5 / np.sqrt(rows.sum()))


def test_networks_are_fixed_and_data_are_not():
  task, other = pairs(), draw(jax.random.key(1))
  assert np.all(np.any(task.first != other.first, axis=1))

  def fit(first, utilities):
    return np.linalg.lstsq(np.asarray(first), np.asarray(utilities)[:, 0], rcond=None)[0]

  one, two = fit(task.first, task.utilities), fit(other.first, other.utilities)
  assert np.corrcoef(one, two)[0, 1] > 0.9


def test_errors():
  key = jax.random.key(0)
  for keywords, message in (
    ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
    ({"num_pairs": 1, "num_features": 0}, "num_features must be at least 1"),
    ({"num_pairs": 1, "num_domains": 0}, "num_domains must be at least 1"),
    ({"num_pairs": 1, "rating_noise": -0.1}, r"rating_noise must lie in \[0, inf\)"),
  ):
    with pytest.raises(ValueError, match=message):
      data.annotated_pairs(key, **keywords)
  with pytest.raises(ValueError, match=r"counts must lie in \[0, 5\]"):
    data.aggregate_preferences(ANNOTATIONS, COUNTS + 3)
  with pytest.raises(ValueError, match=r"^annotations must have shape \[n, 5\]"):
    data.aggregate_preferences(ANNOTATIONS[:, :3], COUNTS)
  with pytest.raises(ValueError, match=r"max_strength must lie in \[1, inf\), got 0"):
    data.ratings_to_strength(np.zeros(2), np.zeros(2), max_strength=0)
  with pytest.raises(TypeError, match="strength must be of type int"):
    data.orient_pairs(np.zeros(2))
