"""What is remembered of unlabeled examples."""

import functools

import jax
import numpy as np
import pytest

from jaxlab import algorithms, metrics

N = 40
HISTORY = np.random.default_rng(0).exponential(size=N).astype(np.float32)
INDICES = np.array([3, 0, 17, 39])
LOSSES = np.float32([1.0, 2.0, 3.0, 4.0])
history_update = jax.jit(algorithms.history_update)
select_naive = jax.jit(algorithms.select_naive)
status = jax.jit(algorithms.flexmatch_status, static_argnames=("num_classes", "warmup"))
select = jax.jit(algorithms.flexmatch_select)


@pytest.mark.parametrize("decay", [0.001, 0.0, 1.0, 0.5])
def test_history_moves_the_batch_alone(decay):
  moved = np.asarray(history_update(HISTORY, INDICES, LOSSES, decay=decay))
  expected = HISTORY.astype(np.float64)
  expected[INDICES] = decay * HISTORY[INDICES] + (1 - decay) * LOSSES
  np.testing.assert_allclose(moved, expected, rtol=1e-6)
  others = np.setdiff1d(np.arange(N), INDICES)
  np.testing.assert_array_equal(moved[others], HISTORY[others])
  if decay in (0.0, 1.0):
    np.testing.assert_array_equal(moved[INDICES], LOSSES if decay == 0 else HISTORY[INDICES])


def test_unknown_rows_are_left_out_and_no_gradient_flows():
  outside = history_update(HISTORY, np.array([-1, 0, 40, 100]), LOSSES)
  np.testing.assert_array_equal(np.asarray(outside)[1:], HISTORY[1:])
  slope = jax.jit(jax.grad(lambda x: algorithms.history_update(HISTORY, INDICES, x).sum()))
  assert not np.any(slope(LOSSES))


def test_selection_splits_at_the_threshold():
  threshold = jax.jit(metrics.otsu_threshold)(HISTORY)
  for previous in (np.zeros(N, bool), np.ones(N, bool)):
    np.testing.assert_array_equal(select_naive(HISTORY, previous), threshold > HISTORY)
  two = np.where(np.arange(N) % 3 == 0, 0.01, 2.0).astype(np.float32)
  np.testing.assert_array_equal(select_naive(two, previous), two < 1)
  constant, kept = np.full(N, 0.3, np.float32), np.arange(N) < 7
  np.testing.assert_array_equal(select_naive(constant, kept), kept)
  broken = np.where(np.arange(N) == 1, np.nan, HISTORY).astype(np.float32)
  np.testing.assert_array_equal(select_naive(broken, kept), kept)


def test_selection_is_refreshed_when_it_is_due():
  adaptive = algorithms.sample_adaptive_augmentation(N, refresh_every=3, start_step=4)
  update, state = jax.jit(adaptive.update), adaptive.init()
  rng, history, naive = np.random.default_rng(1), np.zeros(N, np.float32), np.zeros(N, bool)
  for step in range(1, 10):
    indices = rng.permutation(N)[:4]
    losses = rng.exponential(size=4).astype(np.float32)
    state = update(state, indices, losses)
    history = np.asarray(history_update(history, indices, losses))
    if step in (6, 9):
      naive = np.asarray(select_naive(history, naive))
    np.testing.assert_allclose(state.history, history, rtol=1e-6)
    np.testing.assert_array_equal(state.naive, naive)
    assert state.step == step
  assert 0 < naive.sum() < N


def test_half_with_small_losses_is_selected_exactly():
  losses = np.where(np.arange(N) < N // 2, 0.01, 2 + np.random.default_rng(2).uniform(-0.5, 0.5, N))
  naive = select_naive(losses.astype(np.float32), np.zeros(N, bool))
  np.testing.assert_array_equal(naive, np.arange(N) < N // 2)


def test_status_counts_confident_guesses():
  selected = np.array([0, 0, 0, 1, -1, -1, -1, -1, 2, 2])
  np.testing.assert_allclose(status(selected, num_classes=4), [3 / 4, 1 / 4, 2 / 4, 0])
  full = status(selected, num_classes=4, warmup=False)
  np.testing.assert_allclose(full, [1, 1 / 3, 2 / 3, 0])
  assert not np.any(status(np.full(10, -1), num_classes=4, warmup=False))


def test_thresholds_rise_with_the_status():
  grid = np.linspace(0, 1, 20).astype(np.float32)
  values = np.asarray(jax.jit(algorithms.flexmatch_thresholds)(grid, threshold=0.9))
  np.testing.assert_allclose(values, 0.9 * grid / (2 - grid), rtol=1e-5)
  assert values[0] == 0 and np.isclose(values[-1], 0.9)
  assert np.all(np.diff(values) > 0) and np.all(np.diff(values, 2) > 0)


def test_confident_guesses_are_remembered():
  selected = np.array([-1, 2, 0, 1, -1])
  probs = np.float32([[0.97, 0.01, 0.02], [0.5, 0.4, 0.1], [0.02, 0.96, 0.02]])
  new = select(selected, np.array([1, 3, 0]), probs)
  np.testing.assert_array_equal(new, [1, 0, 0, 1, -1])
  assert new.dtype == np.int32


def test_errors():
  for arguments, message in (
    ({"refresh_every": 0}, "refresh_every must be at least 1, got 0"),
    ({"num_bins": 1}, "num_bins must be at least 2, got 1"),
    ({"decay": 2.0}, r"decay must lie in \[0, 1\], got 2.0"),
  ):
    with pytest.raises(ValueError, match=message):
      algorithms.sample_adaptive_augmentation(N, **arguments)
  with pytest.raises(ValueError, match=r"indices must lie in \[0, 40\), got 0 to 40"):
    algorithms.history_update(HISTORY, np.array([0, 1, 2, 40]), LOSSES)
  with pytest.raises(ValueError, match="num_classes must be at least 2"):
    algorithms.flexmatch_status(np.zeros(3, int), num_classes=1)
  for function in (
    algorithms.flexmatch_thresholds,
    functools.partial(algorithms.flexmatch_select, np.zeros(3, int), np.zeros(2, int)),
  ):
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 0"):
      function(np.zeros((2, 2)), threshold=0)
