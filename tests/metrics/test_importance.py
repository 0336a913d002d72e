import jax
import numpy as np
import pytest

from jaxlab import metrics

size_of = jax.jit(metrics.effective_sample_size, static_argnames="axis")


@pytest.mark.parametrize("axis", [0, 1])
def test_size_matches_its_formula_and_lies_between_1_and_the_number(axis):
  log_w = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32) * 3
  weights = np.exp(log_w) / np.exp(log_w).sum(axis, keepdims=True)
  sizes = np.asarray(size_of(log_w, axis=axis))
  np.testing.assert_allclose(sizes, 1 / np.square(weights).sum(axis), rtol=1e-5)
  assert (sizes >= 1).all() and (sizes <= 6).all()
  np.testing.assert_allclose(size_of(log_w + 1e3, axis=axis), sizes, rtol=1e-3)


def test_equal_and_single_weights():
  log_w = np.full((6, 6), -1e4, np.float32)
  np.testing.assert_allclose(size_of(log_w), 6, rtol=1e-2)
  log_w[:, 2] = 0
  np.testing.assert_array_equal(size_of(log_w), 1)
