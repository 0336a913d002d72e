import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.samplers.contexts import context_size_probs, sample_context_size


@pytest.mark.parametrize("n", [1, 2, 40])
def test_weighted_sizes_have_equal_expected_queries(n):
  probs = np.asarray(context_size_probs(n), np.float64)
  shares = probs * (n - np.arange(n))
  np.testing.assert_allclose(shares, shares[0], rtol=1e-6)
  np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)
  assert context_size_probs(n).dtype == jnp.float32


def test_uniform():
  np.testing.assert_allclose(context_size_probs(5, scheme="uniform"), 0.2)


@pytest.mark.parametrize("scheme", ["weighted", "uniform"])
@pytest.mark.parametrize("min_context", [0, 3])
def test_draws_follow_the_renormalized_probabilities(scheme, min_context):
  keys = jax.random.split(jax.random.key(0), 20_000)
  draw = jax.jit(
    jax.vmap(
      lambda key, low: sample_context_size(key, 6, scheme=scheme, min_context=low), (0, None)
    )
  )
  sizes = draw(keys, min_context)
  assert sizes.dtype == jnp.int32
  counts = np.bincount(sizes, minlength=6)
  probs = np.asarray(context_size_probs(6, scheme=scheme), np.float64)
  probs[:min_context] = 0
  probs /= probs.sum()
  assert len(counts) == 6 and counts[:min_context].sum() == 0
  errors = np.sqrt(probs * (1 - probs) / len(keys))
  np.testing.assert_array_less(np.abs(counts / len(keys) - probs), 4.5 * errors + 1e-12)


def test_same_key_same_size():
  key = jax.random.key(1)
  assert sample_context_size(key, 9) == jax.jit(sample_context_size, static_argnums=1)(key, 9)
  assert sample_context_size(key, 9, min_context=8) == 8
  known = jnp.int32(8)  # closed over, which makes its comparisons traced
  assert jax.jit(lambda key: sample_context_size(key, 9, min_context=known))(key) == 8


def test_errors():
  with pytest.raises(ValueError, match="max_context must be at least 1, got 0"):
    context_size_probs(0)
  with pytest.raises(ValueError, match="scheme .* got 'even'"):
    context_size_probs(3, scheme="even")
  for low in (-1, 4):
    with pytest.raises(ValueError, match=f"min_context .* got {low}"):
      sample_context_size(jax.random.key(0), 4, min_context=low)
