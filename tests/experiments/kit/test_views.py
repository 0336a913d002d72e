"""Views move, scale and blank, each row by itself."""

import jax
import numpy as np
import pytest

from experiments.kit import datasets, views

SIGNALS = 5 + np.random.default_rng(0).normal(size=(300, 40, 1)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.5, 1, size=(200, 8, 8, 1)).astype(np.float32)


def test_weak_views_of_signals_move_and_zeros_enter():
  moved = np.asarray(jax.jit(views.shift_signals)(jax.random.key(0), SIGNALS))
  padded = np.pad(SIGNALS, ((0, 0), (2, 2), (0, 0)))
  starts = [
    next(s for s in range(5) if np.array_equal(padded[i, s : s + 40], moved[i])) for i in range(300)
  ]
  assert set(starts) == set(range(5))


@pytest.mark.parametrize("magnitude, window", [(0.0, 0), (1.0, 8), (1.3, 10)])
def test_strong_views_of_signals_blank_a_window(magnitude, window):
  jitter = jax.jit(views.jitter)
  strong = np.asarray(jitter(jax.random.key(0), SIGNALS, magnitude=magnitude))[..., 0]
  blank = strong == 0
  # What a shift brings in may lie next to the window; with noise it is not 0.
  longest = [max(map(len, "".join("x" if b else " " for b in row).split()), default=0)
             for row in blank]  # fmt: skip
  assert all(window <= x <= window + 2 for x in longest)
  if magnitude:
    middle = np.where(blank, np.nan, strong)[:, 2:-2]
    gains = np.nanmean(middle, axis=1) / SIGNALS[:, :, 0].mean(1)
    assert 1 - 0.5 * magnitude < gains.min() < 0.75 and 1.25 < gains.max() < 1 + 0.5 * magnitude
    assert np.ptp(longest) <= 2


def test_views_of_images():
  fns = views.views_of(datasets.describe("digits"))
  weak = np.asarray(jax.jit(fns.weak)(jax.random.key(0), IMAGES))
  assert {int(x) for x in (weak == 0).sum((1, 2, 3))} == {0, 8, 15}  # One pixel along either axis.
  strong = np.asarray(jax.jit(fns.strong)(jax.random.key(0), IMAGES))
  blank = (strong == 0)[..., 0]
  squares = np.lib.stride_tricks.sliding_window_view(blank, (3, 3), axis=(1, 2)).all((-1, -2))
  assert squares.any((1, 2)).all() and strong.max() > 1.1
  np.testing.assert_array_equal(fns.clean(IMAGES), IMAGES)


def test_views_of_signals():
  fns = views.views_of(datasets.describe("mnist1d"), magnitude=1.3)
  assert fns.weak is views.shift_signals
  strong = jax.jit(fns.strong)(jax.random.key(0), SIGNALS)
  expected = jax.jit(views.jitter)(jax.random.key(0), SIGNALS, magnitude=1.3)
  np.testing.assert_allclose(strong, expected, rtol=1e-5)
