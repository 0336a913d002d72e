"""Functions for optimization at points where their values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import data

X = np.linspace(-1, 2, 3001).astype(np.float32)


@jax.jit
def evaluate(line, plane, cube):
  return {
    "multi_optima": data.multi_optima(line),
    "sinusoid": data.sinusoid(line),
    "levy_n13": data.levy_n13(plane),
    "booth": data.booth(plane),
    "ackley": data.ackley(cube),
  }


def test_values_and_maxima():
  plane = np.random.default_rng(0).uniform(-4, 4, (3001, 2)).astype(np.float32)
  plane[:2] = [[1, 1], [1, 3]]
  cube = np.random.default_rng(1).uniform(-5, 10, (3001, 10)).astype(np.float32)
  cube[:2] = [[0] * 10, [1] * 10]
  found = {name: np.asarray(x) for name, x in evaluate(X[:, None], plane, cube).items()}
  assert {*found} == {*data.BOUNDS}
  x, (a, b) = X.astype(np.float64), plane.T.astype(np.float64)
  expected = {
    "multi_optima": np.sin(x) * np.cos(5 * x) * np.cos(22 * x),
    "sinusoid": -np.sin(5 * x**2) - x**4 + 0.3 * x**3 + 2 * x**2 + 4.1 * x,
    "levy_n13": -(np.sin(3 * np.pi * a) ** 2)
    - (a - 1) ** 2 * (1 + np.sin(3 * np.pi * b) ** 2)
    - (b - 1) ** 2 * (1 + np.sin(2 * np.pi * b) ** 2),
    "booth": -((a + 2 * b - 7) ** 2) - (2 * a + b - 5) ** 2,
  }
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found["multi_optima"].max(), 0.949, atol=1e-3)
  np.testing.assert_allclose(found["levy_n13"][0], 0, atol=1e-9)
  assert found["booth"][1] == 0 and (found["booth"] <= 0).all() and (found["levy_n13"] <= 0).all()
  np.testing.assert_allclose(found["ackley"][0], 0, atol=1e-6)
  np.testing.assert_allclose(found["ackley"][1], 20 * np.exp(-0.2) - 20, rtol=1e-5)
  norm = np.sqrt(np.mean(cube[2:].astype(np.float64) ** 2, axis=1))
  waves = np.mean(np.cos(2 * np.pi * cube[2:].astype(np.float64)), axis=1)
  rest = 20 * np.exp(-0.2 * norm) + np.exp(waves) - 20 - np.e
  np.testing.assert_allclose(found["ackley"][2:], rest, rtol=1e-4, atol=1e-4)


def test_bounds_gradients_and_errors():
  for name, (dim, low, high) in data.BOUNDS.items():
    assert low < high
    shape = jax.eval_shape(getattr(data, name), jax.ShapeDtypeStruct((4, dim), jnp.float32))
    assert shape.shape == (4,) and shape.dtype == jnp.float32
  slope = jax.jit(jax.grad(lambda x: data.ackley(x).sum()))(np.zeros((3001, 10), np.float32))
  np.testing.assert_array_equal(slope, 0)
  with pytest.raises(ValueError, match=r"x must have shape \[n, 1\], got \[4, 2\]"):
    data.multi_optima(np.zeros((4, 2)))
  with pytest.raises(ValueError, match=r"x must have shape \[n, 2\], got \[4, 1\]"):
    data.booth(np.zeros((4, 1)))
