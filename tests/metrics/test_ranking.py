"""Ranking metrics against scikit-learn and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from jaxlab import metrics

AUROC = jax.jit(metrics.auroc)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auroc_matches_scikit_learn(levels):
  rng = np.random.default_rng(levels)
  for _ in range(10):
    scores = rng.integers(0, levels, 64).astype(np.float32)
    labels = rng.integers(0, 2, 64)
    np.testing.assert_allclose(AUROC(scores, labels), roc_auc_score(labels, scores), atol=1e-6)
    np.testing.assert_allclose(AUROC(-scores, labels), 1 - AUROC(scores, labels), atol=1e-6)


def test_auroc_counts_pairs():
  scores = np.array([0.1, 0.4, 0.4, 0.8, np.inf, -np.inf])
  labels = np.array([0, 1, 0, 1, 1, 0])
  pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
  np.testing.assert_allclose(AUROC(scores, labels), np.mean(pairs))


def test_auroc_of_large_sets_and_of_half_precision():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 200_000)
  scores = (rng.standard_normal(200_000) + labels).astype(np.float32)
  np.testing.assert_allclose(AUROC(scores, labels), roc_auc_score(labels, scores), atol=1e-5)
  half = jnp.asarray(scores[:64], jnp.bfloat16)
  expected = roc_auc_score(labels[:64], np.asarray(half, np.float32))
  value = AUROC(half, labels[:64])
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, atol=1e-6)


def test_auroc_of_one_class_or_missing_scores_is_nan():
  for scores, labels in (([0.1, 0.2], [1, 1]), ([0.1, 0.2], [0, 0]), ([0.1, np.nan], [0, 1])):
    assert np.isnan(AUROC(np.array(scores), np.array(labels)))
  assert np.isnan(AUROC(np.zeros(0), np.zeros(0, int)))
  assert AUROC(np.zeros(2), np.array([True, False])) == 0.5
  assert np.isnan(AUROC(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 2])))


def test_auroc_under_vmap():
  rng = np.random.default_rng(0)
  scores, labels = rng.standard_normal((3, 16)), rng.integers(0, 2, (3, 16))
  np.testing.assert_allclose(
    jax.jit(jax.vmap(metrics.auroc))(scores, labels),
    [roc_auc_score(b, a) for a, b in zip(scores, labels)],
    atol=1e-6,
  )


ranks, spearman = jax.jit(metrics.average_ranks), jax.jit(metrics.spearman_correlation)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_ranks_and_their_correlation_match_scipy(levels):
  rng = np.random.default_rng(levels)
  a, b = rng.integers(0, levels, (2, 64)).astype(np.float32)
  b += a
  np.testing.assert_array_equal(ranks(a), stats.rankdata(a))
  np.testing.assert_allclose(spearman(a, b), stats.spearmanr(a, b).statistic, atol=1e-5)
  np.testing.assert_allclose(spearman(a, -b), -spearman(a, b), atol=1e-6)
  # The logarithm of a positive number keeps the order.
  np.testing.assert_allclose(spearman(np.log1p(a), b**3), spearman(a, b), atol=1e-5)


def test_correlation_of_constants_and_missing_values():
  a = np.arange(64, dtype=np.float32)
  assert spearman(a, np.ones(64, np.float32)) == 0 and spearman(np.ones(64, np.float32), a) == 0
  spoiled = np.where(a == 3, np.nan, a)
  assert np.isnan(spearman(spoiled, a)) and np.isnan(spearman(a, spoiled))
  expected = np.where(a == 3, np.nan, np.where(a < 3, a + 1, a))
  np.testing.assert_array_equal(ranks(spoiled), expected)


def test_errors():
  with pytest.raises(ValueError, match="b must have shape"):
    metrics.spearman_correlation(np.zeros(3), np.zeros(2))
  with pytest.raises(ValueError, match="labels must be 0 or 1"):
    metrics.auroc(np.zeros(3), np.array([-1, 1, 1]))
  with pytest.raises(ValueError, match="labels must have shape"):
    metrics.auroc(np.zeros(3), np.zeros(4, int))
  with pytest.raises(ValueError, match=r"scores must have shape \[n\], got \[3, 2\]"):
    metrics.auroc(np.zeros((3, 2)), np.zeros((3, 2), int))
