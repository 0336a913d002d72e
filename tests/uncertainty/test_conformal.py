import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mstats

from jaxlab.uncertainty.conformal import (
  conformal_quantile,
  exit_conformal_thresholds,
  prediction_sets,
  set_statistics,
)


def slow_quantile(scores, alpha):
  rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
  return sorted(scores)[rank - 1] if rank <= len(scores) else np.inf


@pytest.mark.parametrize(("num", "alpha"), [(9, 0.1), (8, 0.1), (1, 0.5), (19, 0.05), (50, 0.3)])
def test_quantile_matches_a_slow_one(num, alpha):
  scores = np.random.default_rng(num).uniform(size=num).astype(np.float32)
  assert conformal_quantile(scores, alpha=alpha) == np.float32(slow_quantile(scores, alpha))


def test_quantile_at_and_beyond_the_largest_rank():
  quantile = jax.jit(conformal_quantile, static_argnames="alpha")
  scores = np.arange(9.0)
  assert quantile(scores, alpha=0.1) == 8
  assert quantile(scores[:8], alpha=0.1) == np.inf
  assert np.isnan(quantile(np.append(scores[:7], np.nan), alpha=0.1))
  assert np.isnan(quantile(np.append(scores[:8], np.nan), alpha=0.1))
  assert conformal_quantile(jnp.ones(5, jnp.bfloat16), alpha=0.5).dtype == jnp.float32


@pytest.mark.parametrize("num", [1, 2, 5, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.5, 0.9])
def test_interpolated_quantile_matches_scipy(num, alpha):
  scores = np.random.default_rng(num).uniform(size=num)
  level = min((1 - alpha) * (1 + 1 / num), 1)
  want = mstats.mquantiles(scores, prob=level)[0] if num > 1 else scores[0]
  np.testing.assert_allclose(
    conformal_quantile(scores, alpha=alpha, method="mquantiles"), want, rtol=1e-5
  )


def test_coverage_of_exchangeable_scores():
  num, alpha, trials = 30, 0.1, 2000
  scores = np.random.default_rng(0).uniform(size=(trials, num + 1)).astype(np.float32)
  thresholds = jax.jit(jax.vmap(lambda s: conformal_quantile(s, alpha=alpha)))(scores[:, 1:])
  coverage = np.mean(scores[:, 0] <= thresholds)
  slack = 3 * np.sqrt(alpha * (1 - alpha) / trials)
  assert 1 - alpha - slack <= coverage <= 1 - alpha + 1 / (num + 1) + slack


def test_sets_and_their_statistics():
  scores = np.array([[0.1, 0.5, 0.9], [0.5, 0.2, 0.3], [0.9, 0.9, 0.9]])
  sets = prediction_sets(scores, 0.5)
  np.testing.assert_array_equal(sets, [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
  got = jax.jit(set_statistics)(sets, np.array([2, 0, 1]))
  np.testing.assert_allclose(got, [1 / 3, 5 / 3, 3], rtol=1e-6)
  none = jax.jit(set_statistics)(sets[:1], np.array([2]))
  assert none.coverage == 0 and none.size == 2 and np.isnan(none.size_covered)
  for label in (-1, 3):
    outside = jax.jit(set_statistics)(sets, np.array([2, label, 1]))
    assert np.isnan(outside.coverage) and np.isnan(outside.size_covered)
  by_row = prediction_sets(scores, np.array([[0.1], [0.3], [1.0]]))
  np.testing.assert_array_equal(by_row.sum(1), [1, 2, 3])


@pytest.fixture(scope="module")
def exits():
  rng = np.random.default_rng(4)
  # Exits 0 to 3 with 60, 21, 20 and 0 samples.
  levels = rng.permutation(np.repeat([0, 1, 2], [60, 21, 20]))
  return rng.uniform(size=(101, 4)).astype(np.float32), levels


@pytest.mark.parametrize("alpha", [0.1, 0.02])
def test_exit_thresholds_match_a_loop(exits, alpha):
  scores, levels = exits
  want = []
  for l in range(4):
    own = scores[levels == l, l]
    own = own if len(own) > 20 else scores[:, l]
    want.append(min(slow_quantile(own, alpha), own.max()))
  got = jax.jit(lambda s, l: exit_conformal_thresholds(s, l, alpha=alpha))(scores, levels)
  np.testing.assert_array_equal(got, np.float32(want))
  assert np.all(np.isfinite(got))


def test_exit_thresholds_of_missing_scores_and_levels(exits):
  scores, levels = exits
  fn = jax.jit(lambda s, l: exit_conformal_thresholds(s, l, alpha=0.1))
  missing = np.where(
    np.arange(4) == levels[:, None], np.where(levels == 1, np.nan, 0)[:, None], scores
  )
  np.testing.assert_array_equal(np.isnan(fn(missing, levels)), [False, True, False, False])
  assert np.isnan(fn(scores, np.where(levels == 1, 4, levels))).all()


def test_exit_thresholds_of_few_samples(exits):
  scores, levels = exits
  thresholds = jax.jit(exit_conformal_thresholds, static_argnames=("alpha", "min_points"))
  assert np.all(np.isfinite(thresholds(scores[:1], levels[:1], alpha=0.1)))
  alone = thresholds(scores, levels, alpha=0.1, min_points=0)
  np.testing.assert_array_equal(alone[3], min(slow_quantile(scores[:, 3], 0.1), scores[:, 3].max()))


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: conformal_quantile(np.ones(3), alpha=0.0), "alpha.*0.0"),
    (lambda: conformal_quantile(np.ones(3), alpha=1.0), "alpha.*1.0"),
    (lambda: conformal_quantile(np.ones(3), alpha=math.nan), "alpha.*nan"),
    (lambda: conformal_quantile(np.ones(0), alpha=0.1), "scores"),
    (lambda: conformal_quantile(np.ones(3), alpha=0.1, method="lower"), "method.*'lower'"),
    (lambda: exit_conformal_thresholds(np.ones((0, 2)), np.ones(0, int), alpha=0.1), "scores"),
    (lambda: exit_conformal_thresholds(np.ones((3, 2)), np.ones(3, int), alpha=2.0), "alpha"),
    (
      lambda: exit_conformal_thresholds(np.ones((3, 2)), np.ones(3, int), alpha=0.1, min_points=-1),
      "min_points.*-1",
    ),
    (lambda: set_statistics(np.ones((3, 2), bool), [0, 1, 2]), r"labels must lie in \[0, 2\)"),
    (lambda: exit_conformal_thresholds(np.ones((2, 2)), [0, -1], alpha=0.1), "levels must lie"),
    (lambda: prediction_sets(np.ones((3, 2)), np.ones((1, 1))), r"threshold must .* b = 3"),
    (lambda: set_statistics(np.ones((3, 2), bool), np.ones(2, int)), "labels must have shape"),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
