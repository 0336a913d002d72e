import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

from jaxlab import samplers

label_similarity_logits = jax.jit(samplers.label_similarity_logits, static_argnames="kernel")
label_similarity_probabilities = jax.jit(
  samplers.label_similarity_probabilities, static_argnames="kernel"
)


@pytest.fixture(scope="module")
def labels():
  return np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def probabilities():
  return lambda labels, bandwidth: label_similarity_probabilities(labels, bandwidth=bandwidth)


def test_equals_a_kernel_density_fitted_on_each_label(labels, probabilities):
  for bandwidth in (0.3, 1.0, 5.0):
    density = KernelDensity(kernel="gaussian", bandwidth=bandwidth)
    slow = np.exp([density.fit(labels[i : i + 1]).score_samples(labels) for i in range(9)])
    slow /= slow.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(labels, bandwidth), slow, rtol=2e-5)


def test_equals_loops(labels):
  n, bandwidth = len(labels), 0.9
  for kernel in ("gaussian", "tophat"):
    slow = np.zeros((n, n))
    for i in range(n):
      for j in range(n):
        distance = np.linalg.norm(labels[i].astype(np.float64) - labels[j])
        slow[i, j] = np.exp(-(distance**2) / (2 * bandwidth**2))
        if kernel == "tophat":
          slow[i, j] = distance < bandwidth
    logits = label_similarity_logits(labels, labels[3:5], bandwidth=0.9, kernel=kernel)
    np.testing.assert_allclose(np.exp(logits), slow[3:5], rtol=1e-5)
    fast = label_similarity_probabilities(labels, bandwidth=0.9, kernel=kernel)
    np.testing.assert_allclose(fast, slow / slow.sum(1, keepdims=True), rtol=1e-5)


def test_rows_sum_to_one_and_the_kernel_is_symmetric(labels, probabilities):
  np.testing.assert_allclose(np.sum(probabilities(labels, 0.5), axis=1), 1.0, rtol=1e-6)
  logits = label_similarity_logits(labels, labels, bandwidth=0.5)
  np.testing.assert_array_equal(logits, np.transpose(logits))


def test_does_not_depend_on_origin_and_unit(labels, probabilities):
  base = probabilities(labels, 0.5)
  np.testing.assert_allclose(probabilities(labels + 3.0, 0.5), base, rtol=1e-4)
  np.testing.assert_allclose(probabilities(labels * 7.0, 3.5), base, rtol=1e-4)


def test_limits_of_the_bandwidth(labels, probabilities):
  for wide in (1e6, np.inf):
    np.testing.assert_allclose(probabilities(labels, wide), 1 / 9, atol=1e-6)
  np.testing.assert_array_equal(probabilities(labels, 1e-6), np.eye(9))
  tied = labels.copy()
  tied[4] = tied[0]
  narrow = np.eye(9)
  narrow[np.ix_([0, 4], [0, 4])] = 0.5
  np.testing.assert_array_equal(probabilities(tied, 1e-6), narrow)


def test_tophat_is_strict_and_includes_the_example_itself():
  labels = np.array([[0.0], [1.0], [3.0]], np.float32)
  result = label_similarity_probabilities(labels, bandwidth=1.0, kernel="tophat")
  np.testing.assert_array_equal(result, np.eye(3))
  result = label_similarity_probabilities(labels, bandwidth=1.5, kernel="tophat")
  np.testing.assert_array_equal(result, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])


def test_far_labels_stay_finite(probabilities):
  labels = np.array([[0.0], [1.0], [1e4], [3e38], [-3e38]], np.float32)
  result = probabilities(np.tile(labels, (2, 1))[:9], 1.0)
  assert np.all(np.isfinite(result))
  np.testing.assert_allclose(np.sum(result, axis=1), 1.0, rtol=1e-6)


def test_half_precision_is_computed_in_float32(labels):
  half = jnp.asarray(labels, jnp.bfloat16)
  result = label_similarity_probabilities(half, bandwidth=0.5)
  assert result.dtype == jnp.float32
  wide = label_similarity_probabilities(np.asarray(half, np.float32), bandwidth=0.5)
  np.testing.assert_array_equal(result, wide)


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_partners_follow_the_probabilities(labels, kernel):
  probabilities = np.asarray(label_similarity_probabilities(labels, bandwidth=1.0, kernel=kernel))
  draws, row = 100_000, 2
  partners = jax.jit(
    lambda key: samplers.sample_partners(
      key, labels, jnp.full(draws, row), bandwidth=1.0, kernel=kernel
    )
  )(jax.random.key(1))
  assert partners.dtype == jnp.int32
  shares = np.bincount(partners, minlength=9) / draws
  error = np.sqrt(probabilities[row] * (1 - probabilities[row]) / draws)
  assert np.all(np.abs(shares - probabilities[row]) <= 3 * error + 1e-6)


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
def test_a_table_of_partners_follows_the_probabilities(labels, kernel):
  missing = labels.copy()
  missing[2, 1] = np.nan
  arguments = {"bandwidth": 1.0, "kernel": kernel}
  probabilities = np.asarray(samplers.label_similarity_probabilities(missing, **arguments))
  draws = 20_000
  table = samplers.sample_partner_table(jax.random.key(1), missing, num_draws=draws, **arguments)
  assert table.shape == (9, draws) and table.dtype == jnp.int32
  for row in range(9):
    shares = np.bincount(table[row], minlength=9) / draws
    expected = np.eye(9)[2] if row == 2 else probabilities[row]
    error = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(shares - expected) <= 4 * error + 1e-6)
  with pytest.raises(ValueError, match="num_draws"):
    samplers.sample_partner_table(jax.random.key(1), labels, num_draws=-1, **arguments)


def test_partners_over_many_bandwidths_at_once(labels):
  indices = np.arange(9)

  def draw(bandwidth):
    return samplers.sample_partners(jax.random.key(1), labels, indices, bandwidth=bandwidth)

  many = np.asarray(jax.jit(jax.vmap(draw))(np.array([1e-6, 0.5], np.float32)))
  np.testing.assert_array_equal(many[0], indices)
  np.testing.assert_array_equal(many[1], jax.jit(draw)(0.5))


def test_nan_label_is_never_a_partner(labels):
  missing = labels.copy()
  missing[2, 1] = np.nan
  probabilities = np.asarray(samplers.label_similarity_probabilities(missing, bandwidth=1.0))
  others = np.delete(probabilities, 2, axis=0)
  np.testing.assert_array_equal(others[:, 2], 0.0)
  np.testing.assert_allclose(others.sum(axis=1), 1.0, rtol=1e-6)
  assert np.all(np.isnan(probabilities[2]))
  partners = jax.jit(
    lambda key: samplers.sample_partners(key, missing, jnp.arange(1000) % 9, bandwidth=1.0)
  )(jax.random.key(0))
  np.testing.assert_array_equal(partners[2::9], 2)
  assert not np.any(np.delete(np.asarray(partners), np.s_[2::9]) == 2)


def test_batch_of_one():
  result = samplers.sample_partners(
    jax.random.key(0), jnp.ones((1, 1)), jnp.array([0]), bandwidth=1
  )
  np.testing.assert_array_equal(result, [0])


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, np.nan])
def test_bandwidth_must_be_positive(labels, bandwidth):
  with pytest.raises(ValueError, match="bandwidth"):
    samplers.label_similarity_probabilities(labels, bandwidth=bandwidth)


def test_bad_arguments(labels):
  with pytest.raises(ValueError, match="kernel.*'linear'"):
    samplers.label_similarity_probabilities(labels, bandwidth=1.0, kernel="linear")
  with pytest.raises(ValueError, match=r"labels must have shape \[n, d\]"):
    samplers.label_similarity_probabilities(labels[:, 0], bandwidth=1.0)
  with pytest.raises(ValueError, match="queries"):
    samplers.label_similarity_logits(labels, labels[:, :1], bandwidth=1.0)
  with pytest.raises(ValueError, match="indices"):
    samplers.sample_partners(jax.random.key(0), labels, np.array([9]), bandwidth=1.0)
  with pytest.raises(TypeError, match="indices must be of type int"):
    samplers.sample_partners(jax.random.key(0), labels, jnp.array([0.0]), bandwidth=1.0)


def test_indices_outside_and_empty_labels(labels):
  draw = jax.jit(
    lambda indices: samplers.sample_partners(jax.random.key(0), labels, indices, bandwidth=1e-3)
  )
  np.testing.assert_array_equal(draw(jnp.array([3, -1, 9, 200])), [3, 9, 9, 200])
  np.testing.assert_array_equal(draw(jnp.array([3, 255], jnp.uint8)), [3, 255])
  with pytest.raises(ValueError, match="number of labels must be at least 1, got 0"):
    samplers.label_similarity_probabilities(labels[:0], bandwidth=1.0)
