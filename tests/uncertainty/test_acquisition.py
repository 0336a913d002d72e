import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxlab.uncertainty import (
  expected_improvement_gaussian,
  probability_of_improvement_gaussian,
  upper_confidence_bound_gaussian,
)


def test_expected_improvement_matches_the_integral():
  mean, std = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, 2.0])
  values = jax.jit(expected_improvement_gaussian)(mean, std, 0.4)
  for value, m, s in zip(values, mean, std):
    density = stats.norm(float(m), float(s)).pdf
    expected, _ = integrate.quad(lambda y: (y - 0.4) * density(y), 0.4, float(m) + 12 * float(s))  # noqa: B023
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_expected_improvement_at_the_edges():
  mean, std = jnp.array([1.0, -1.0, 1e4, -1e4, 0.0]), jnp.array([0.0, 0.0, 1.0, 1.0, 2.0])

  def total(mean, std):
    values = expected_improvement_gaussian(mean, std, 0.0)
    return values.sum(), values

  (_, values), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
    mean, std
  )
  np.testing.assert_allclose(values, [1.0, 0.0, 1e4, 0.0, 2 * stats.norm.pdf(0)], rtol=1e-5)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  half = jax.jit(expected_improvement_gaussian)(
    mean.astype(jnp.bfloat16), std.astype(jnp.bfloat16), 0.0
  )
  assert half.dtype == jnp.float32


def test_missing_values_and_infinite_best():
  mean, std = np.array([np.nan, 0.0, 0.0, 0.0]), np.array([1.0, np.nan, 1.0, 0.0])
  fn = jax.jit(expected_improvement_gaussian)
  np.testing.assert_array_equal(np.isnan(fn(mean, std, 0.0)), [True, True, False, False])
  np.testing.assert_array_equal(fn(mean, std, np.inf)[2:], 0)
  np.testing.assert_array_equal(fn(mean, std, -np.inf)[2:], np.inf)
  assert jax.eval_shape(lambda: expected_improvement_gaussian([0.0, 1], [1, 1], [2, 3])).shape == (
    2,
  )


def test_errors():
  with pytest.raises(ValueError, match="std must lie in"):
    expected_improvement_gaussian(0.0, -1.0, 0.0)
  with pytest.raises(ValueError, match=r"std must have shape \[...\] with ... = \[3\], got \[2\]"):
    expected_improvement_gaussian(np.zeros(3), np.zeros(2), 0.0)
  with pytest.raises(ValueError, match="std must lie in"):
    probability_of_improvement_gaussian(0.0, -1.0, 0.0)
  with pytest.raises(ValueError, match=r"beta must lie in \[0, inf\), got -1.0"):
    upper_confidence_bound_gaussian(0.0, 1.0, beta=-1.0)


MEAN = np.array([1.0, -1.0, 0.3, 0.3, 1e4, -1e4, np.nan, 0.0], np.float32)
STD = np.array([0.0, 0.0, 0.0, 2.0, 1.0, 1e-30, 0.0, np.nan], np.float32)


def test_probability_of_improvement():
  values = jax.jit(probability_of_improvement_gaussian)(MEAN, STD, np.float32(0.3))
  np.testing.assert_allclose(values, [1, 0, 0, 0.5, 1, 0, np.nan, np.nan], atol=1e-6)
  slopes = jax.jit(
    jax.grad(lambda *args: probability_of_improvement_gaussian(*args).sum(), (0, 1))
  )(MEAN[:6], STD[:6], np.float32(0.3))
  assert all(np.isfinite(slope).all() for slope in slopes)


def test_upper_confidence_bound():
  values = jax.jit(upper_confidence_bound_gaussian)(MEAN, STD)
  np.testing.assert_allclose(values, MEAN + 2 * STD, rtol=1e-6)


def test_improvement_grows_with_the_standard_deviation():
  stds = np.linspace(0, 3, 8).astype(np.float32)
  for mean in (-1.0, 0.0, 0.5):
    values = np.asarray(
      jax.jit(expected_improvement_gaussian)(np.full(8, mean, np.float32), stds, np.float32(0))
    )
    assert (np.diff(values) > 0).all() and values[0] == max(mean, 0)
