import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics

BASE = np.float32([0.2, 0.5, 0.7, -1.0])
TARGET = np.float32([0.8, 0.9, 0.3, 2.0])
VALUE = np.float32([0.5, 0.4, 0.2, 2.5])
gap = jax.jit(metrics.gap_closed)
slopes = jax.jit(jax.grad(lambda *scores: metrics.gap_closed(*scores).sum(), argnums=(0, 1, 2)))


def test_it_matches_its_formula_and_is_not_clipped():
  expected = (VALUE - BASE) / (TARGET - BASE)
  np.testing.assert_allclose(gap(VALUE, BASE, TARGET), expected, rtol=1e-6)
  assert expected.min() < 0 and expected.max() > 1
  np.testing.assert_array_equal(gap(BASE, BASE, TARGET), np.zeros(4))
  np.testing.assert_array_equal(gap(TARGET, BASE, TARGET), np.ones(4))


def test_affine_maps_of_all_scores_change_nothing():
  moved = (np.float32(3 * x - 5) for x in (VALUE, BASE, TARGET))
  np.testing.assert_allclose(gap(*moved), gap(VALUE, BASE, TARGET), rtol=1e-5)


def test_without_a_gap_it_is_0_with_finite_gradients():
  target = np.where(np.arange(4) == 1, BASE, TARGET)
  result = gap(VALUE, BASE, target)
  assert result[1] == 0 and (np.asarray(result)[[0, 2, 3]] != 0).all()
  for slope in map(np.asarray, slopes(VALUE, BASE, target)):
    assert np.isfinite(slope).all() and slope[1] == 0


def test_types_and_errors():
  assert gap(*(jnp.asarray(x, jnp.bfloat16) for x in (VALUE, BASE, TARGET))).dtype == jnp.float32
  with pytest.raises(ValueError, match="target must have shape"):
    metrics.gap_closed(VALUE, BASE, TARGET[:2])
