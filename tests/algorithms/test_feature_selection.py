import functools

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxlab import algorithms
from jaxlab.metrics import anova_f

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(40) % 3).astype(np.int32)
FEATURES = RNG.normal(size=(40, 12)) + LABELS[:, None] * RNG.normal(size=12)
FEATURES = (FEATURES @ (np.eye(12) + 0.3 * RNG.normal(size=(12, 12)))).astype(np.float32)
FEATURES[:, 4] = 0.1
f_of = functools.partial(jax.jit(anova_f, static_argnames="num_classes"), num_classes=3)
STATISTICS = np.asarray(f_of(FEATURES, LABELS))
_SIZES = {"static_argnames": ("num_features", "num_classes")}
by_anova = functools.partial(jax.jit(algorithms.anova_select, **_SIZES), num_classes=3)
by_mrmr = functools.partial(jax.jit(algorithms.mrmr_select, **_SIZES), num_classes=3)


def slow_mrmr(features, statistics, num_features):
  """Columns in the order of their choice, and their scores."""
  likeness = np.abs(np.corrcoef(features.T.astype(np.float64)))
  left = [i for i in range(features.shape[1]) if np.ptp(features[:, i]) > 0]
  chosen, scores = [], []
  while left and len(chosen) < num_features:
    score = [
      statistics[i] / max(likeness[i, chosen].mean(), 1e-12) if chosen else statistics[i]
      for i in left
    ]
    scores.append(max(score))
    chosen.append(left.pop(int(np.argmax(score))))
  return chosen, scores


@pytest.mark.filterwarnings("ignore:invalid value")
def test_mrmr_matches_a_loop():
  selection = by_mrmr(FEATURES, LABELS, num_features=5)
  chosen, scores = slow_mrmr(FEATURES, STATISTICS, 5)
  order = np.argsort(chosen)
  np.testing.assert_array_equal(selection.indices, np.array(chosen)[order])
  np.testing.assert_allclose(selection.scores, np.array(scores)[order], rtol=1e-3)
  np.testing.assert_allclose(selection.relevance, STATISTICS[np.sort(chosen)], rtol=1e-4)


def test_too_few_features_that_vary():
  mrmr, anova = (select(FEATURES, LABELS, num_features=14) for select in (by_mrmr, by_anova))
  varying = [i for i in range(12) if i != 4]
  np.testing.assert_array_equal(mrmr.indices, [*varying, -1, -1, -1])
  np.testing.assert_array_equal(anova, [*varying, -1, -1, -1])
  assert (mrmr.scores[-3:] == 0).all() and (mrmr.relevance[-3:] == 0).all()


def test_anova_takes_the_largest_and_rounds():
  best = np.sort(np.argsort(-STATISTICS, kind="stable")[:5])
  np.testing.assert_array_equal(by_anova(FEATURES, LABELS, num_features=5), best)
  tiny = FEATURES.copy()
  tiny[:, best] *= 1e-9
  assert not set(np.asarray(by_anova(tiny, LABELS, num_features=5))) & set(best)
  twice = np.tile(FEATURES[:, best[:3]], 4)
  np.testing.assert_array_equal(by_anova(twice[:, [0] * 12], LABELS, num_features=5), range(5))


def test_a_copy_of_the_first_choice_scores_its_statistic():
  first = int(np.argmax(STATISTICS))
  features = FEATURES.copy()
  features[:, 4] = features[:, first]
  others = [i for i in range(12) if i not in (4, first)]
  features[:, others[1:]] = 0.0  # What is left: the copy, and one more.
  selection = by_mrmr(features, LABELS, num_features=5)
  chosen = dict(zip(np.asarray(selection.indices), np.asarray(selection.scores)))
  assert set(chosen) - {-1} == {4, first, others[0]}
  likeness = np.abs(np.corrcoef(features[:, first], features[:, others[0]])[0, 1])
  by_hand = STATISTICS[others[0]] / likeness
  if by_hand < STATISTICS[first]:
    np.testing.assert_allclose(chosen[max(4, first)], STATISTICS[first], rtol=1e-5)
  else:
    np.testing.assert_allclose(chosen[others[0]], by_hand, rtol=1e-3)


def test_uncorrelated_features_are_chosen_by_their_statistics():
  # Sixteen rows of a Hadamard matrix: norms and products are exact.
  features = np.zeros((40, 12), np.float32)
  features[:16] = scipy.linalg.hadamard(16)[:, 1:13]
  statistics = np.asarray(f_of(features, LABELS))
  order = np.argsort(-statistics, kind="stable")[:5]
  selection = by_mrmr(features, LABELS, num_features=5)
  np.testing.assert_array_equal(selection.indices, np.sort(order))
  scores = np.where(np.sort(order) == order[0], 1.0, 1e12) * statistics[np.sort(order)]
  np.testing.assert_allclose(selection.scores, scores, rtol=1e-5)


def transform(series, kernels):
  """Features of triples that tests can follow: functions of the three numbers and of the series."""
  angles = np.sin(kernels @ np.array([1.0, 2.3, 5.1]))[None, :, None] * np.arange(1, 9)
  return np.sin(series[:, kernels[:, 0]][:, :, None] * angles).astype(np.float32)


KERNELS = np.stack(np.unravel_index(np.arange(24), (3, 4, 2)), axis=-1).astype(np.int32)
select_kernels = functools.partial(
  algorithms.select_kernel_features,
  functools.partial(transform, FEATURES[:, :3]),
  labels=LABELS,
  num_classes=3,
  num_features=10,
  pool_size=30,
)


def test_blocks_do_not_matter():
  whole = select_kernels(kernels=KERNELS[::-1])
  assert whole.feature_mask.sum() == 10 and whole.feature_mask.any(1).all()
  np.testing.assert_array_equal(whole.kernels, np.unique(whole.kernels, axis=0))
  blocks = select_kernels(kernels=KERNELS, block_size=5)
  np.testing.assert_array_equal(blocks.kernels, whole.kernels)
  np.testing.assert_array_equal(blocks.feature_mask, whole.feature_mask)


def test_a_pool_that_holds_all_is_selection_from_all_at_once():
  flat = transform(FEATURES[:, :3], KERNELS).reshape(40, -1)
  all_at_once = np.asarray(by_mrmr(flat, LABELS, num_features=10).indices)
  mask = select_kernels(kernels=KERNELS, pool_size=192).feature_mask
  rows = np.flatnonzero(np.isin(np.arange(24), all_at_once // 8))
  np.testing.assert_array_equal(
    np.argwhere(mask), [[np.searchsorted(rows, i // 8), i % 8] for i in all_at_once]
  )


def test_levels_and_their_application():
  for features, columns in (("l1", slice(4, 8)), ("l2", slice(0, 4))):
    selection = select_kernels(kernels=KERNELS, features=features)
    assert not selection.feature_mask[:, columns].any() and selection.feature_mask.sum() == 10
  values = transform(FEATURES[:, :3], selection.kernels)
  select = functools.partial(algorithms.apply_selection, feature_mask=selection.feature_mask)
  applied = jax.jit(select)(values)
  expected = [values[:, i, j] for i, j in np.argwhere(selection.feature_mask)]
  np.testing.assert_array_equal(applied, np.stack(expected, axis=1))


def test_series_without_variance_select_nothing():
  still = algorithms.select_kernel_features(
    lambda block: np.ones((40, len(block), 8), np.float32), KERNELS, LABELS, num_classes=3
  )
  assert still.kernels.shape == (0, 3) and still.feature_mask.shape == (0, 8)


def test_errors():
  for select in (algorithms.anova_select, algorithms.mrmr_select):
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
      select(FEATURES, LABELS, num_features=0, num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
      select(FEATURES, LABELS, num_features=1, num_classes=1)
  for name, value in (("features", "l3"), ("pool_size", 0), ("block_size", 0)):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
      select_kernels(kernels=KERNELS, **{name: value})
  with pytest.raises(ValueError, match="kernels must not be empty"):
    select_kernels(kernels=KERNELS[:0])
