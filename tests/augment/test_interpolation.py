import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import augment

B = 6
KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 300)
IMAGES = np.random.default_rng(0).normal(size=(B, 8, 6, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0])


def test_interpolate_pairs_gradient_dtype_and_errors():
  order = np.array([1, 0, 2, 3, 5, 4])
  mix = jax.jit(augment.interpolate_pairs)
  gradient = jax.jit(jax.grad(lambda x: mix(x, order, 0.25)[0].sum()))(IMAGES)
  gradient = np.asarray(gradient)
  np.testing.assert_allclose(gradient[:2], np.stack([IMAGES[0] * 0 + 0.25, IMAGES[0] * 0 + 0.75]))
  whole = mix(np.array([[2], [4]]), np.array([1, 0]), 0.5)
  assert whole.dtype == jnp.float32 and np.all(np.asarray(whole) == 3)
  for bad in (-0.5, 1.5):
    with pytest.raises(ValueError, match="ratio"):
      augment.interpolate_pairs(IMAGES, order, bad)
  with pytest.raises(TypeError, match="permutation must be of type int"):
    augment.interpolate_pairs(IMAGES, order / 2, 0.5)
  with pytest.raises(ValueError, match="permutation must have shape"):
    augment.interpolate_pairs(IMAGES, order[:2], 0.5)


@pytest.mark.parametrize("row", [-1, 6])
def test_rows_outside_the_batch_raise_or_give_nan(row):
  order = np.array([1, 0, row, 3, 5, 4], np.int8)
  with pytest.raises(ValueError, match=r"permutation must lie in \[0, 6\)"):
    jax.eval_shape(lambda: augment.interpolate_pairs(IMAGES, order, 0.5))
  mixed = jax.jit(augment.interpolate_pairs)(IMAGES, order, 0.25)
  np.testing.assert_array_equal(np.isnan(mixed).all((1, 2, 3)), np.arange(B) == 2)
  targets = LABELS[:, None]
  mix = functools.partial(augment.mix_regression_pairs, KEY, IMAGES, targets, [0, 1, 2])
  with pytest.raises(ValueError, match=r"partners must lie in \[0, 6\)"):
    jax.eval_shape(lambda: mix(order[:3], ratio=0.5))
  pairs = jax.jit(augment.mix_regression_pairs)(
    KEY, IMAGES, targets, np.arange(6), order, ratio=0.5
  )
  np.testing.assert_array_equal(np.isnan(pairs.targets), (np.arange(B) == 2)[:, None])


def test_regression_pairs_mix_inputs_and_targets_in_one_ratio():
  rng = np.random.default_rng(0)
  inputs, slope = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(3, 2))
  targets = (inputs @ slope).astype(np.float32)
  indices, partners = rng.integers(20, size=(2, 8))
  mix = jax.jit(augment.mix_regression_pairs)
  result = jax.device_get(mix(KEY, inputs, targets, indices, partners))
  share = float(result.ratio)
  expected = share * inputs[indices] + (1 - share) * inputs[partners]
  np.testing.assert_allclose(result.inputs, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(result.targets, result.inputs @ slope, rtol=1e-3, atol=1e-5)
  itself = mix(KEY, inputs, targets, indices, indices)
  np.testing.assert_allclose(itself.inputs, inputs[indices], rtol=1e-5)
  ratios = jax.jit(jax.vmap(lambda key: mix(key, inputs, targets, indices, partners).ratio))(KEYS)
  assert stats.kstest(np.asarray(ratios), stats.beta(2, 2).cdf).pvalue > 1e-3
  given = mix(KEY, inputs, targets, indices, partners, ratio=0.25)
  expected = 0.25 * inputs[indices] + 0.75 * inputs[partners]
  np.testing.assert_allclose(given.inputs, expected, rtol=1e-4, atol=1e-6)
  assert given.ratio == 0.25
  for arguments in ({"alpha": 0.0}, {"ratio": 1.5}):
    with pytest.raises(ValueError, match="alpha|ratio"):
      augment.mix_regression_pairs(KEY, inputs, targets, indices, partners, **arguments)
  with pytest.raises(ValueError, match="targets must have shape"):
    augment.mix_regression_pairs(KEY, inputs, targets[:5], indices, partners)
  with pytest.raises(ValueError, match="partners must have shape"):
    augment.mix_regression_pairs(KEY, inputs, targets, indices, partners[:5])


def test_multi_mixup_mixes_several_examples_per_row():
  # Each example is a unit vector, so that a mixed row shows its weights.
  mix = jax.jit(augment.multi_mixup, static_argnames="num_mixed")
  result = jax.device_get(mix(KEY, np.eye(B, dtype=np.float32), np.arange(B), num_mixed=3))
  np.testing.assert_array_equal(result.labels[0], np.arange(B))
  np.testing.assert_array_equal(np.sort(result.labels), np.tile(np.arange(B), (3, 1)))
  expected = np.zeros((B, B))
  for weight, order in zip(result.weights, result.labels):
    expected[np.arange(B), order] += weight
  np.testing.assert_allclose(result.inputs, expected, rtol=1e-6)
  np.testing.assert_allclose(result.weights.sum(), 1, rtol=1e-6)
  draw = lambda key: mix(key, np.eye(2), np.arange(2)).weights[0]  # noqa: E731
  two = jax.jit(jax.vmap(draw))(KEYS)
  assert stats.kstest(np.asarray(two), "uniform").pvalue > 1e-3
  for arguments in ({"num_mixed": 1}, {"alpha": 0.0}):
    with pytest.raises(ValueError, match="num_mixed|alpha"):
      augment.multi_mixup(KEY, IMAGES, LABELS, **arguments)


def test_all_pairs_match_a_loop():
  points = np.array([[0.0], [1.0], [10.0]], np.float32)
  result = jax.jit(augment.all_pairs_mix)(points, ratio=0.8)
  expected = [[[0.8 * a + 0.2 * b] for b in (0, 1, 10)] for a in (0, 1, 10)]
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert jax.jit(augment.all_pairs_mix)(IMAGES[:3], ratio=0.5).shape == (3, 3, 8, 6, 2)
  with pytest.raises(ValueError, match="ratio"):
    augment.all_pairs_mix(points, ratio=1.2)
