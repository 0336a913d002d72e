import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.losses.early_exit import exit_distribution
from jaxlab.metrics import early_exit as metrics

B, L = 40, 3


@pytest.fixture(scope="module")
def probs():
  gates = np.random.default_rng(0).uniform(0, 0.8, (B, L)).astype(np.float32)
  gates[0], gates[1], gates[2] = 1, 0, [0.5, 0, 0]
  return np.asarray(exit_distribution(gates))


def slow_level(row, threshold):
  left = 1.0
  for l in range(len(row) - 1):
    if left > 1e-12 and row[l] / left >= threshold:
      return l
    left -= row[l]
  return len(row) - 1


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_exit_levels_match_a_loop(probs, threshold):
  got = jax.jit(metrics.exit_levels)(probs, threshold=threshold)
  np.testing.assert_array_equal(got, [slow_level(row, threshold) for row in probs])
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got[:2], [0, L])
  np.testing.assert_array_equal(
    jax.vmap(lambda row: metrics.exit_levels(row, threshold=threshold))(probs), got
  )


def test_threshold_exits_match_a_loop():
  confidence = np.random.default_rng(1).uniform(size=(B, L)).astype(np.float32)
  thresholds = np.array([0.9, 0.6, 2.0], np.float32)
  want = [next((l for l in range(L) if row[l] >= thresholds[l]), L) for row in confidence]
  got = jax.jit(metrics.threshold_exits)(confidence, thresholds=thresholds)
  np.testing.assert_array_equal(got, want)
  assert metrics.threshold_exits(np.full((1, L), np.nan), thresholds=thresholds)[0] == L


def test_exited_values_are_those_of_each_samples_exit():
  rng = np.random.default_rng(2)
  values, levels = rng.normal(size=(B, L + 1, 2, 3)), rng.integers(0, L + 1, B)
  got = jax.jit(metrics.exited_values)(values, levels)
  np.testing.assert_allclose(got, values[np.arange(B), levels], rtol=1e-6)
  assert metrics.exited_values(values[:1], levels[:1]).shape == (1, 2, 3)


@pytest.mark.parametrize("level", [-1, L + 1])
def test_traced_levels_that_are_no_exit_give_nan(level):
  values, levels = np.ones((B, L + 1), np.float32), np.full(B, L)
  levels[3] = level
  got = jax.jit(metrics.exited_values)(values, levels)
  np.testing.assert_array_equal(np.isnan(got), np.arange(B) == 3)
  point = jax.jit(metrics.cost_accuracy)(levels, values, np.arange(L + 1.0))
  assert all(np.isnan(value).all() for value in point)


def test_narrow_levels():
  levels, values = np.array([100, 3], np.int8), np.arange(600.0).reshape(2, 300)
  np.testing.assert_array_equal(jax.jit(metrics.exited_values)(values, levels), [100, 303])
  share = jax.jit(metrics.cost_accuracy)(levels, values, np.arange(300.0)).exit_share
  np.testing.assert_array_equal(np.flatnonzero(share), [3, 100])


def test_cost_and_accuracy():
  rng = np.random.default_rng(3)
  levels, correct = rng.integers(0, L + 1, B), rng.integers(0, 2, (B, L + 1)).astype(bool)
  costs = np.array([0.1, 0.4, 0.8, 1.0])
  got = jax.jit(metrics.cost_accuracy)(levels, correct, costs)
  np.testing.assert_allclose(got.cost, costs[levels].mean(), rtol=1e-6)
  np.testing.assert_allclose(got.accuracy, correct[np.arange(B), levels].mean(), rtol=1e-6)
  np.testing.assert_allclose(got.exit_share, np.bincount(levels, minlength=L + 1) / B, rtol=1e-6)


def test_area_under_cost_curve():
  area = jax.jit(metrics.area_under_cost_curve)
  cost, accuracy = np.array([0.7, 0.1, 0.4]), np.array([0.9, 0.5, 0.8])
  np.testing.assert_allclose(area(cost, accuracy), (0.3 * 0.65 + 0.3 * 0.85) / 0.6, rtol=1e-6)
  np.testing.assert_allclose(area(np.full(3, 0.2), accuracy), accuracy.mean(), rtol=1e-6)
  np.testing.assert_allclose(area(cost[:1], accuracy[:1]), 0.9, rtol=1e-6)
  np.testing.assert_allclose(area(cost, np.full(3, 0.6)), 0.6, rtol=1e-6)
  assert np.isnan(area(np.array([0.1, np.nan, 0.2]), accuracy))
  assert np.all(np.isfinite(jax.grad(area, argnums=(0, 1))(jnp.full(3, 0.2), accuracy)))


def test_rank_promotion_may_be_forbidden():
  with jax.numpy_rank_promotion("raise"):
    jax.eval_shape(lambda c: metrics.threshold_exits(c, thresholds=np.ones(L)), np.ones((B, L)))
    jax.eval_shape(metrics.cost_accuracy, np.ones(B, int), np.ones((B, L)), np.ones(L))


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: metrics.exit_levels(np.ones((1, 3)), threshold=0.0), "threshold.*0.0"),
    (lambda: metrics.exit_levels(np.ones((1, 3)), threshold=1.0), "threshold.*1.0"),
    (lambda: metrics.threshold_exits(np.ones((1, 3)), thresholds=np.ones(2)), "thresholds"),
    (lambda: metrics.cost_accuracy(np.ones(2, int), np.ones((2, 3)), np.ones(4)), "costs"),
    (lambda: metrics.area_under_cost_curve(np.ones(0), np.ones(0)), "cost"),
    (
      lambda: metrics.cost_accuracy([0, 3], np.ones((2, 3)), np.ones(3)),
      r"levels must lie in \[0, 3\), got 0 to 3",
    ),
    (lambda: metrics.exited_values(np.ones((3, 2)), np.ones(2, int)), "levels .* b = 3"),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
