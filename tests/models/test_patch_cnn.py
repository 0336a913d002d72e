"""The patch network: closed forms, pairs without mixtures, homogeneity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment, metrics, models

_K, _M, _D, _N, _P = 3, 2, 5, 4, 3


@pytest.fixture(scope="module")
def example():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(_K, _M, _D)).astype(np.float32)
  return weights, rng.normal(size=(_N, _P, _D)).astype(np.float32)


def test_logits_equal_a_loop(example):
  weights, patches = example
  expected = np.zeros((_N, _K))
  for i in range(_N):
    for c in range(_K):
      for r in range(_M):
        for p in range(_P):
          expected[i, c] += float(weights[c, r] @ patches[i, p]) ** 2
  logits = jax.jit(models.patch_cnn_logits)(weights, patches)
  np.testing.assert_allclose(logits, expected, rtol=1e-5)
  assert (np.asarray(logits) >= 0).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_pairs_equal_the_logits_of_mixtures(example, ratio):
  weights, patches = example
  pairs = models.all_pairs_patch_logits(weights, patches, ratio=ratio)
  mixed = augment.all_pairs_mix(patches, ratio=ratio)
  expected = jax.vmap(lambda row: models.patch_cnn_logits(weights, row))(mixed)
  np.testing.assert_allclose(pairs, expected, rtol=2e-4, atol=2e-5)


def test_degree_two_and_order_of_patches(example):
  weights, patches = example
  logits = models.patch_cnn_logits(weights, patches)
  np.testing.assert_allclose(models.patch_cnn_logits(weights, 3.0 * patches), 9 * logits, rtol=1e-5)
  np.testing.assert_allclose(models.patch_cnn_logits(weights, patches[:, ::-1]), logits, rtol=1e-5)


def test_half_precision_is_summed_in_float32(example):
  weights, patches = (jnp.asarray(array, jnp.bfloat16) for array in example)
  logits = models.patch_cnn_logits(weights, patches)
  assert logits.dtype == jnp.float32
  wide = models.patch_cnn_logits(weights.astype(jnp.float32), patches.astype(jnp.float32))
  np.testing.assert_allclose(logits, wide, rtol=1e-6)


def test_gradient_equals_finite_differences(example):
  with jax.enable_x64(True):
    weights, patches = (jnp.asarray(array, jnp.float64) for array in example)

    def objective(w):
      return jnp.sum(jnp.sin(models.all_pairs_patch_logits(w, patches, ratio=0.7)))

    grad = jax.grad(objective)(weights)
    for index in [(0, 0, 0), (2, 1, 4)]:
      step = jnp.zeros_like(weights).at[index].set(1e-6)
      slope = (objective(weights + step) - objective(weights - step)) / 2e-6
      np.testing.assert_allclose(grad[index], slope, rtol=1e-5)


def test_large_logits_stay_finite(example):
  weights, patches = example
  logits, grads = jax.jit(
    jax.value_and_grad(
      lambda w: jax.nn.log_softmax(
        models.all_pairs_patch_logits(w, 30.0 * patches, ratio=0.6)
      ).min()
    )
  )(weights)
  assert np.isfinite(logits) and np.isfinite(grads).all()


def test_weights_equal_to_a_feature_are_aligned_with_it(example):
  feature = np.eye(_D, dtype=np.float32)[1]
  weights = np.broadcast_to(feature, (_K, _M, _D))
  aligned = metrics.feature_alignment(weights, np.eye(_D, dtype=np.float32)[:2])
  np.testing.assert_allclose(aligned, np.tile([0.0, _M], (_K, 1)))


def test_initial_weights():
  weights = models.init_patch_cnn(jax.random.key(0), dim=1000, scale=0.1)
  assert weights.shape == (2, 10, 1000)
  np.testing.assert_allclose(weights.std(), 0.1, rtol=0.03)


def test_bad_arguments(example):
  weights, patches = example
  for ratio in (-0.1, 1.1):
    with pytest.raises(ValueError, match=f"ratio must lie in .*{ratio}"):
      models.all_pairs_patch_logits(weights, patches, ratio=ratio)
  with pytest.raises(ValueError, match="scale must lie in .* got -1"):
    models.init_patch_cnn(jax.random.key(0), dim=3, scale=-1.0)
  with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
    models.init_patch_cnn(jax.random.key(0), dim=0)
  with pytest.raises(ValueError, match="patches must have shape"):
    models.patch_cnn_logits(weights, patches[..., 1:])
