"""The bound of zero-one regret, on problems where both regrets are known."""

import jax
import numpy as np
import pytest

from jaxlab import metrics

T = np.concatenate([np.linspace(0, 1, 999), [1e-6]]).astype(np.float32)
transform, bound = jax.jit(metrics.logistic_h_transform), jax.jit(metrics.zero_one_bound)


def slow(t):
  first = 0.0 if t == -1 else (1 + t) * np.log1p(t)
  return 0.5 * (first + (0.0 if t == 1 else (1 - t) * np.log1p(-t)))


def test_the_transform_is_convex_and_above_its_parabola():
  values = np.asarray(transform(T))
  expected = np.array([slow(t) for t in T.astype(np.float64)])
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert values[0] == 0 and values[998] == np.float32(np.log(2))
  assert (values >= T.astype(np.float64) ** 2 / 2 * (1 - 1e-5)).all()
  assert (np.diff(values[:999], 2) > -1e-6).all()


def test_the_bound_lies_above_the_inverse_transform():
  regrets = np.linspace(-0.2, 0.8, 1000).astype(np.float32)
  values = np.asarray(bound(regrets))
  np.testing.assert_allclose(values, np.minimum(1, np.sqrt(2 * np.maximum(regrets, 0))), rtol=1e-6)
  # T(R01) <= regret and T(t) >= t²/2, so that R01 <= bound: T(bound) reaches the regret.
  tight = (values < 1) & (regrets > 0)
  assert (np.asarray(transform(values))[tight] >= regrets[tight] * (1 - 1e-5)).all()


def test_no_regret_exceeds_the_bound():
  """Binary labels on four inputs: the best and any other scores, with exact expectations."""
  rng = np.random.default_rng(0)
  for _ in range(1000):
    mass, positive = rng.dirichlet(np.ones(4)), rng.beta(0.5, 0.5, 4)
    score = rng.normal(size=4) * rng.choice([0.01, 1, 5])
    loss = mass @ (positive * np.logaddexp(0, -score) + (1 - positive) * np.logaddexp(0, score))
    entropy = -positive * np.log(positive) - (1 - positive) * np.log1p(-positive)
    error = mass @ np.where(score > 0, 1 - positive, positive)
    regret = error - mass @ np.minimum(positive, 1 - positive)
    surplus = loss - mass @ entropy
    assert regret <= float(metrics.zero_one_bound(surplus)) + 1e-6
    assert slow(regret) <= surplus + 1e-9


def test_gradients_nan_and_errors():
  slopes = jax.jit(jax.vmap(jax.grad(metrics.logistic_h_transform)))(T)
  assert np.isfinite(slopes).all()
  np.testing.assert_allclose(slopes[1:998], np.arctanh(T[1:998]), rtol=2e-3)
  regrets = np.resize(np.array([-1, 0, 0.1, 0.6, 1e4], np.float32), 1000)
  slopes = jax.jit(jax.vmap(jax.grad(metrics.zero_one_bound)))(regrets)
  np.testing.assert_allclose(slopes[:5], [0, 0, 1 / np.sqrt(0.2), 0, 0], rtol=1e-5)
  spoiled = np.where(np.arange(1000) == 3, np.nan, T)
  for function in (transform, bound):
    np.testing.assert_array_equal(np.isnan(function(spoiled)), np.arange(1000) == 3)
  with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
    metrics.logistic_h_transform(1.5)
