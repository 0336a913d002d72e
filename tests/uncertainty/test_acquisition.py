import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxlab.uncertainty import expected_improvement_gaussian


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
