import itertools

import jax
import numpy as np
import pytest

from jaxlab import models

RNG = np.random.default_rng(0)
LENGTH = 37  # Odd, and more than one word of bits.
SERIES = RNG.normal(size=(4, 2, LENGTH)).astype(np.float32)
KERNELS = models.scattering_kernels(num_channels=2)
SOME = KERNELS[np.sort(RNG.choice(len(KERNELS), 60, replace=False))]
SOME[:6] = [
  (c, k, j) for c, k, j in ((0, 0, 0), (1, 83, 5), (0, 40, 2), (1, 9, 3), (0, 5, 4), (1, 50, 1))
]
scatter = jax.jit(models.scatter_features, static_argnames="num_levels")


TAPS = sorted(
  {tuple(2 if i in ends else -1 for i in range(9)) for ends in itertools.combinations(range(9), 3)}
)


def slow_filter(x, index, exponent):
  out = np.zeros(len(x))
  for t in range(len(x)):
    for i, weight in enumerate(TAPS[index]):
      at = t + (i - 4) * 2**exponent
      if 0 <= at < len(x):
        out[t] += weight * x[at]
  return out * 2 ** (-1.5 * exponent)


def slow_run(values):
  longest = run = 0
  for value in values:
    if value > 0:
      run += 1
    else:
      longest, run = max(longest, run), 0
  return longest / len(values)


def slow_level(c):
  return [np.mean(c > 0), np.abs(c).max(), slow_run(c), np.abs(c).min()]


def slow_features(x, index, exponent):
  c = slow_filter(x, index, exponent)
  every_second = np.abs(c)[::2][: len(x) // 2]
  return slow_level(c) + slow_level(slow_filter(every_second, index, exponent))


def features_of(series, kernels=SOME, num_levels=2):
  return np.asarray(scatter(series, kernels, num_levels=num_levels))


def test_base_kernels():
  every = np.asarray(jax.jit(models.base_kernels)(np.arange(84)))
  np.testing.assert_array_equal(every, TAPS)
  assert (every.sum(1) == 0).all()
  assert every[0].tolist() == [-1] * 6 + [2] * 3 and every[83].tolist() == [2] * 3 + [-1] * 6
  assert KERNELS.shape == (1008, 3) and KERNELS.dtype == np.int32
  np.testing.assert_array_equal(
    KERNELS[[0, 1, 6, 504]], [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
  )


def test_features_match_a_loop():
  fast = features_of(SERIES)
  for b, (n, (c, k, j)) in itertools.product(range(4), enumerate(SOME)):
    slow = slow_features(SERIES[b, c].astype(np.float64), k, j)
    np.testing.assert_allclose(fast[b, n], slow, atol=1e-5)
  np.testing.assert_array_equal(features_of(SERIES, num_levels=1), fast[..., :4])


def test_all_features_are_those_of_every_kernel():
  every = np.asarray(models.scatter_all_features(SERIES))
  rows = [int(np.flatnonzero((kernel == KERNELS).all(1))[0]) for kernel in SOME]
  np.testing.assert_allclose(every[:, rows], features_of(SERIES), atol=1e-5)


def test_a_constant_matters_only_near_the_borders():
  kernels = np.full((60, 3), (0, 20, 1), np.int32)
  moved = SERIES.copy()
  moved[:, 0] += 8.0
  step = 4 * 2
  bump = np.zeros_like(SERIES)  # The largest value inside decides.
  bump[:, 0, LENGTH // 2] = 1e3
  np.testing.assert_allclose(
    features_of(moved + bump, kernels)[..., 1],
    features_of(SERIES + bump, kernels)[..., 1],
    rtol=1e-4,
  )
  level = np.full_like(SERIES, 0.1)
  inside = slow_filter(level[0, 0], 20, 1)[step:-step]
  np.testing.assert_allclose(inside, 0, atol=1e-6)
  # Where nothing changes the filter gives exactly 0, whatever the rounding of the taps' sum.
  flat = np.cumsum(np.ones(LENGTH)) > 18
  steps = np.broadcast_to(np.float32(0.1) + np.float32(0.2) * flat, SERIES.shape)
  assert (features_of(np.ascontiguousarray(steps), kernels)[..., 3] == 0).all()


def test_scale_and_sign():
  base, scaled, negated = (features_of(factor * SERIES) for factor in (1.0, 4.0, -1.0))
  shares, sizes = [0, 2, 4, 6], [1, 3, 5, 7]
  np.testing.assert_array_equal(scaled[..., shares], base[..., shares])
  np.testing.assert_allclose(scaled[..., sizes], 4 * base[..., sizes], rtol=1e-5)
  # No value of level 1 is 0.
  np.testing.assert_allclose(negated[..., 0], 1 - base[..., 0], atol=1e-6)


def test_reversed_series_and_mirrored_kernels():
  mirrored = SOME.copy()
  mirrored[:, 1] = [TAPS.index(TAPS[k][::-1]) for k in SOME[:, 1]]
  ours, theirs = features_of(SERIES), features_of(SERIES[:, :, ::-1].copy(), mirrored)
  np.testing.assert_allclose(theirs[..., [0, 1, 3]], ours[..., [0, 1, 3]], atol=1e-5)


@pytest.mark.parametrize("kind", ["positive", "alternating", "trailing", "leading", "negative"])
def test_runs(kind):
  # The last kernel at dilation 32 sees a series of 37 steps through its middle tap alone, with
  # weight -1, but for the first and last five steps.
  steps = np.arange(LENGTH)
  signs = {
    "positive": steps >= 0,
    "alternating": steps % 2 == 0,
    "trailing": steps >= 5,
    "leading": steps < 35,
    "negative": steps < 0,
  }[kind]
  series = np.zeros_like(SERIES)
  series[:, 0] = np.where(signs, -1.0, 1.0)
  kernels = np.full((60, 3), (0, 83, 5), np.int32)
  values = slow_filter(series[0, 0], 83, 5)
  np.testing.assert_allclose(features_of(series, kernels)[0, 0, 2], slow_run(values), atol=1e-6)
  assert slow_run([1, 1, 1]) == slow_run([-1, -1]) == 0
  assert slow_run([1, 1, 0, 1, 1, 1]) == 2 / 6 and slow_run([1, 0, 1, 0]) == 1 / 4


def test_short_series_and_gradients():
  short = np.ascontiguousarray(SERIES[:, :, :3])
  fast = np.asarray(models.scatter_features(short, SOME))
  for b, (n, (c, k, j)) in itertools.product(range(4), enumerate(SOME)):
    np.testing.assert_allclose(fast[b, n], slow_features(short[b, c], k, j), atol=1e-5)
  size = jax.jit(jax.grad(lambda x: models.scatter_features(x, SOME)[..., 1].sum()))(SERIES)
  assert np.isfinite(size).all() and (np.asarray(size) != 0).any()


def test_errors():
  for column, name, limit in ((0, "channels", 2), (1, "indices", 84), (2, "exponents", 6)):
    kernels = SOME.copy()
    kernels[3, column] = limit
    with pytest.raises(ValueError, match=rf"{name} of kernels must lie in \[0, {limit}\)"):
      models.scatter_features(SERIES, kernels)
  with pytest.raises(ValueError, match=r"indices must lie in \[0, 84\), got -1"):
    models.base_kernels(-1)
  for function, arguments in (
    (models.scatter_features, (SERIES[..., :1], SOME)),
    (models.scatter_all_features, (SERIES[..., :1],)),
  ):
    with pytest.raises(ValueError, match="number T of steps of series must be at least 2, got 1"):
      function(*arguments)
  with pytest.raises(ValueError, match="num_levels must be one of 1, 2, got 3"):
    models.scatter_features(SERIES, SOME, num_levels=3)
  with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
    models.scattering_kernels(num_channels=0)
