import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.uncertainty import bar_borders as eager_bar_borders

bar_borders = jax.jit(eager_bar_borders, static_argnums=1)


def slow_borders(values, num_bars):
  flat = [float(v) for v in np.ravel(values)]
  kept = sorted(flat[: len(flat) - len(flat) % num_bars])
  m = len(kept) // num_bars
  inner = [(kept[m * k - 1] + kept[m * k]) / 2 for k in range(1, num_bars)]
  borders = [kept[0], *inner, kept[-1]]
  for k in range(1, num_bars + 1):
    borders[k] = max(borders[k], borders[k - 1] + 1e-6 * (kept[-1] - kept[0]))
  return borders


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(0, 3), st.integers(0, 2**31))
def test_borders_match_a_slow_loop(num_bars, decimals, seed):
  # Few decimals give ties; 17 values are not divisible by all numbers of bars.
  values = np.round(np.random.default_rng(seed).normal(size=(17,)), decimals).astype(np.float32)
  got = bar_borders(values, num_bars)
  assert np.all(np.diff(got) > 0)
  np.testing.assert_allclose(got, slow_borders(values, num_bars), rtol=1e-6, atol=1e-6)


def test_the_last_values_are_left_out():
  values = np.array([[3.0, 1.0, 2.0], [0.0, 100.0, 4.0]])
  np.testing.assert_allclose(bar_borders(values, 4), [0, 0.5, 1.5, 2.5, 3])
  np.testing.assert_allclose(bar_borders(values, 2), [0, 2.5, 100])


@pytest.mark.parametrize("level", [0.0, 1.0, -3e4])
def test_borders_of_tied_values_increase(level):
  values = np.full(12, level, np.float32)
  borders = bar_borders(values, 4)
  assert borders[0] == level and np.all(np.diff(borders) > 0)
  values[3:] += 1e-3
  assert np.all(np.diff(bar_borders(values, 4)) > 0)


def test_quantile_borders_hold_equal_mass():
  values = np.random.default_rng(1).normal(size=4000).astype(np.float32)
  counts, _ = np.histogram(values, np.asarray(bar_borders(values, 8)))
  np.testing.assert_array_equal(counts, 500)


def test_borders_compile_once(caplog):
  eager_bar_borders(np.arange(12.0), 4)
  with jax.log_compiles():
    eager_bar_borders(np.arange(12.0) ** 2, 4)
  assert not [record for record in caplog.records if "Compiling" in record.message]


def test_errors():
  with pytest.raises(ValueError, match="num_bars must be at least 2, got 1"):
    bar_borders(np.arange(5.0), 1)
  with pytest.raises(ValueError, match="num_bars is 6, but there are only 5"):
    bar_borders(np.arange(5.0), 6)
