import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from jaxlab.models.rotary import RotaryConfig, apply_rotary, rotary_frequencies

D = 16
rotate = jax.jit(apply_rotary)


def slow_frequencies(rope_type, *, theta=10000.0, factor=1.0, original=64, longest=None):
  """One pair of coordinates at a time."""
  if rope_type == "dynamic" and longest is not None and longest > original:
    theta *= (factor * longest / original - (factor - 1)) ** (D / (D - 2))
  actual = []
  for j in range(D // 2):
    f = theta ** (-2 * j / D)
    if rope_type == "linear":
      f /= factor
    elif rope_type == "llama3":
      wavelength = 2 * math.pi / f
      if wavelength > original / 1.0:
        f /= factor
      elif wavelength >= original / 4.0:
        s = (original / wavelength - 1.0) / (4.0 - 1.0)
        f *= (1 - s) / factor + s
    elif rope_type == "yarn":
      dim = lambda r: D * math.log(original / (2 * math.pi * r)) / (2 * math.log(theta))  # noqa: E731
      low, high = max(math.floor(dim(32)), 0), min(math.ceil(dim(1)), D - 1)
      ramp = min(max((j - low) / (high - low if high != low else 0.001), 0), 1)
      f = f * (1 - ramp) + f / factor * ramp
    actual.append(f)
  return np.array(actual)


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "llama3", "yarn"])
@pytest.mark.parametrize("longest", [None, 64, 300])
def test_frequencies_match_a_slow_loop(rope_type, longest):
  actual = rotary_frequencies(
    head_dim=D,
    theta=500.0,
    rope_type=rope_type,
    factor=4.0,
    original_max_positions=64,
    max_positions=longest,
  )
  expected = slow_frequencies(rope_type, theta=500.0, factor=4.0, longest=longest)
  np.testing.assert_allclose(actual.inv_freq, expected, rtol=1e-6)
  assert actual.inv_freq.dtype == jnp.float32
  attention = 0.1 * math.log(4) + 1 if rope_type == "yarn" else 1.0
  assert actual.attention_factor == pytest.approx(attention)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "llama3", "yarn"])
def test_factor_one_is_the_default(rope_type):
  # Beyond the original context "dynamic" stretches even then.
  longest = 64 if rope_type == "dynamic" else 300
  settings = {"head_dim": D, "original_max_positions": 64, "max_positions": longest}
  plain = rotary_frequencies(**settings)
  actual = rotary_frequencies(rope_type=rope_type, factor=1.0, **settings)
  np.testing.assert_allclose(actual.inv_freq, plain.inv_freq, rtol=1e-6)
  assert actual.attention_factor == plain.attention_factor == 1.0


def test_a_given_attention_factor_is_kept():
  for rope_type in ("default", "yarn"):
    actual = rotary_frequencies(head_dim=D, rope_type=rope_type, factor=4.0, attention_factor=1.5)
    assert actual.attention_factor == 1.5


def test_yarn_where_its_bounds_meet():
  turns = 1.01 * 8192 / (2 * math.pi)
  actual = rotary_frequencies(
    head_dim=D, rope_type="yarn", factor=2.0, beta_fast=turns, beta_slow=turns
  )
  plain = rotary_frequencies(head_dim=D).inv_freq
  np.testing.assert_allclose(actual.inv_freq[0], plain[0], rtol=1e-6)
  np.testing.assert_allclose(actual.inv_freq[1:], plain[1:] / 2, rtol=1e-6)


def test_rotation_matches_a_slow_loop():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4, D)).astype(np.float32)
  positions = rng.integers(0, 50, (2, 3))
  inv_freq = rotary_frequencies(head_dim=D).inv_freq
  actual = rotate(x, positions, inv_freq, attention_factor=1.3)
  expected = np.empty_like(x)
  for b, t, h in np.ndindex(2, 3, 4):
    for j in range(D // 2):
      turn = np.exp(1j * positions[b, t] * float(inv_freq[j])) * 1.3
      pair = (x[b, t, h, j] + 1j * x[b, t, h, j + D // 2]) * turn
      expected[b, t, h, j], expected[b, t, h, j + D // 2] = pair.real, pair.imag
  np.testing.assert_allclose(actual, expected, atol=2e-5)
  rowwise = jax.vmap(lambda x, p: apply_rotary(x, p, inv_freq, attention_factor=1.3))
  np.testing.assert_allclose(rowwise(x, positions), actual, atol=1e-6)


@limits(deadline=None, max_examples=25)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_products_depend_on_position_differences_only(p, k, shift):
  rng = np.random.default_rng(0)
  q, key = rng.normal(size=(2, 1, 1, D)).astype(np.float32)
  inv_freq = rotary_frequencies(head_dim=D).inv_freq

  def score(p, k):
    turned = rotate(q, np.array([p]), inv_freq), rotate(key, np.array([k]), inv_freq)
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(p, k) == pytest.approx(score(p + shift, k + shift), abs=2e-4)


def test_half_precision_is_rotated_in_float32():
  x = jnp.ones((1, 1, 1, D), jnp.bfloat16)
  inv_freq = rotary_frequencies(head_dim=D).inv_freq
  actual = rotate(x, jnp.array([[1000]]), inv_freq)
  wide = rotate(x.astype(jnp.float32), jnp.array([[1000]]), inv_freq)
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_array_equal(actual, wide.astype(jnp.bfloat16))


def test_errors():
  for settings, words in (
    ({"head_dim": 7}, "head_dim .* got 7"),
    ({"head_dim": 2, "rope_type": "dynamic"}, "head_dim .* got 2"),
    ({"rope_type": "longrope"}, "longrope"),
    ({"theta": 0.0}, "theta .* got 0"),
    ({"factor": -1.0}, "factor .* got -1"),
    ({"original_max_positions": 0}, "original_max_positions .* got 0"),
    ({"rope_type": "llama3", "low_freq_factor": 4.0}, "low_freq_factor 4.0"),
  ):
    with pytest.raises(ValueError, match=words):
      rotary_frequencies(**{"head_dim": D} | settings)
  with pytest.raises(ValueError, match="longrope"):
    RotaryConfig(rope_type="longrope")
  with pytest.raises(ValueError, match="inv_freq must have shape"):
    apply_rotary(jnp.ones((1, 1, 1, D)), jnp.zeros((1, 1)), jnp.ones(D))
