"""Casts and range checks that every function shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import losses


@pytest.mark.parametrize(
  ("given", "wanted"),
  [("bfloat16", "float32"), ("float32", "float32"), ("int32", "float32"), ("bool", "float32")],
)
def test_casts_to_float32_at_least(given, wanted):
  cast = losses.as_accumulator(jnp.ones(3, given))
  assert cast.dtype == wanted
  np.testing.assert_array_equal(cast, np.ones(3))


def test_keeps_float64_and_shares_the_widest_type():
  with jax.enable_x64(True):
    half, double = losses.as_accumulator(jnp.ones(2, jnp.bfloat16), jnp.ones(3, jnp.float64))
  assert half.dtype == double.dtype == "float64"
  assert (half.shape, double.shape) == ((2,), (3,))


@pytest.mark.parametrize(
  ("value", "interval", "allowed"),
  [
    (0.0, "[0, 1]", True),
    (1.0, "[0, 1]", True),
    (0.0, "(0, 1)", False),
    (1.0, "(0, 1)", False),
    (1e30, "(0, inf)", True),
    (np.inf, "(0, inf)", False),
    (np.inf, "(0, inf]", True),
    (np.nan, "(-inf, inf)", False),
    ([0.2, 1.2], "[0, 1]", False),
    (3, "[1, 5]", True),
  ],
)
def test_range(value, interval, allowed):
  if allowed:
    losses.check_range("alpha", value, interval)
  else:
    with pytest.raises(ValueError, match=r"alpha must lie in") as error:
      losses.check_range("alpha", value, interval)
    assert interval in str(error.value) and str(value) in str(error.value)


def test_a_traced_value_passes():
  @jax.jit
  def scaled(alpha):
    losses.check_range("alpha", alpha, "[0, 1]")
    return 2 * alpha

  assert scaled(3.0) == 6.0


def test_a_known_array_is_checked_under_jit():
  with pytest.raises(ValueError, match="alpha"):
    jax.jit(lambda x: losses.check_range("alpha", np.float32(2), "[0, 1]") or x)(1.0)
