import functools

import jax
import numpy as np
import pytest

from jaxlab import augment

SERIES = np.random.default_rng(0).normal(3.0, 2.0, (5, 3, 7)).astype(np.float32)
SERIES[:, 2] = 0.1  # A constant, which float32 cannot hold.
LENGTHS = np.array([7, 4, 1, 0, 6])
standardize = jax.jit(augment.standardize_channels)
measure = jax.jit(augment.channel_statistics)


@functools.cache
def results():
  scaled = standardize(SERIES), standardize(SERIES, lengths=LENGTHS)
  return jax.tree.map(np.asarray, (scaled, measure(SERIES), measure(SERIES, lengths=LENGTHS)))


def test_statistics_match_a_loop():
  _, every, some = results()
  for c in range(3):
    valid = np.concatenate([SERIES[i, c, : LENGTHS[i]] for i in range(5)]).astype(np.float64)
    np.testing.assert_allclose([some.mean[c], some.std[c]], [valid.mean(), valid.std()], rtol=1e-5)
    entries = SERIES[:, c].astype(np.float64)
    np.testing.assert_allclose(every.mean[c], entries.mean(), rtol=1e-6)
    np.testing.assert_allclose(every.std[c], entries.std(), rtol=1e-5)
  assert every.std[2] == some.std[2] == 0


def test_standardized_training_series():
  (every, some), statistics, _ = results()
  np.testing.assert_allclose(every[:, :2].mean((0, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(every[:, :2].std((0, 2)), 1, rtol=1e-5)
  assert (every[:, 2] == 0).all()
  for row, length in zip(some, LENGTHS):
    assert (row[:, length:] == 0).all() and (row[:2, :length] != 0).all()
  other = SERIES[:, ::-1] ** 2
  expected = (other - statistics.mean[:, None]) / (statistics.std[:, None] + 1e-8)
  scaled = standardize(other, statistics=statistics)
  np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_padding_is_never_read():
  padded = SERIES.copy()
  for row, length in zip(padded, LENGTHS):
    row[:, length:] = np.nan
  np.testing.assert_array_equal(standardize(padded, lengths=LENGTHS), results()[0][1])


def test_errors():
  with pytest.raises(ValueError, match=r"lengths must lie in \[0, 7\], got .*8"):
    augment.channel_statistics(SERIES, lengths=np.full(5, 8))
  with pytest.raises(ValueError, match=r"statistics.std must have shape \[3\], got \[2\]"):
    statistics = augment.ChannelStatistics(np.ones(3), np.ones(2))
    augment.standardize_channels(SERIES, statistics=statistics)
  with pytest.raises(ValueError, match="series must not be empty"):
    augment.channel_statistics(SERIES[:0])
