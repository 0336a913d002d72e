import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models.decoder_blocks import KVCache, Linear, Norm, cache_slots, product, write_cache


def test_products_accumulate_in_float32():
  x = jnp.full((1, 4096), 0.1, jnp.bfloat16)
  kernel = jnp.ones((4096, 1), jnp.bfloat16)
  actual = product(x, kernel)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, 4096 * float(x[0, 0]), rtol=1e-5)
  np.testing.assert_array_equal(product(x, kernel.T, transposed=True), actual)


def test_linear_is_an_affine_map():
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
  params = jax.tree.map(np.float32, params)
  x = rng.normal(size=(2, 3)).astype(np.float32)
  actual = Linear(5, use_bias=True).apply({"params": params}, x)
  np.testing.assert_allclose(actual, x @ params["kernel"] + params["bias"], rtol=1e-5)
  half = Linear(5, use_bias=True, dtype=jnp.bfloat16)
  assert half.apply({"params": params}, x).dtype == jnp.bfloat16


def test_norms_match_their_formulas():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (2, 8)).astype(np.float32)
  scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
  layer = Norm("layer_norm", 0.1).apply({"params": {"scale": scale, "bias": bias}}, x)
  centered = x - x.mean(-1, keepdims=True)
  expected = centered / np.sqrt(x.var(-1, keepdims=True) + 0.1) * scale + bias
  np.testing.assert_allclose(layer, expected, rtol=1e-5, atol=1e-5)
  rms = Norm("rms_norm", 0.1).apply({"params": {"scale": scale}}, x)
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
  np.testing.assert_allclose(rms, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norms_of_extreme_rows(kind):
  module = Norm(kind, 1e-6)
  x = jnp.array([[0.0, 0.0], [1e4, -1e4], [1e4, 1e4]])
  params = module.init(jax.random.key(0), x)
  slope = jax.jit(jax.grad(lambda x: jnp.square(module.apply(params, x)).sum()))(x)
  assert np.isfinite(module.apply(params, x)).all() and np.isfinite(slope).all()


def test_the_last_writer_of_a_slot_wins():
  positions = jnp.array([[1, 3, 1], [-1, 9, 4]])
  slots = cache_slots(positions, 5)
  np.testing.assert_array_equal(slots, [[5, 3, 1], [5, 5, 4]])

  rng = np.random.default_rng(0)
  old = rng.normal(size=(2, 5, 2, 1, 3)).astype(np.float32)
  new = rng.normal(size=(2, 3, 1, 3)).astype(np.float32)
  actual = jax.jit(write_cache)(KVCache(old, -old), KVCache(new, -new), slots, 1)
  expected = old.copy()
  for row, column, slot in ((0, 1, 3), (0, 2, 1), (1, 2, 4)):
    expected[row, slot, 1] = new[row, column]
  np.testing.assert_array_equal(actual.keys, expected)
  np.testing.assert_array_equal(actual.values, -expected)


def test_cache_keeps_its_type():
  old = jnp.zeros((1, 2, 1, 1, 1), jnp.bfloat16)
  new = jnp.ones((1, 1, 1, 1))
  actual = write_cache(KVCache(old, old), KVCache(new, new), jnp.array([[0]]), 0)
  assert actual.keys.dtype == jnp.bfloat16
  np.testing.assert_array_equal(actual.keys[0, :, 0, 0, 0], [1, 0])
