import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jaxlab import models

B, Q, T, D, HEADS = 3, 4, 5, 8, 2
RNG = np.random.default_rng(0)
QUERIES, KEYS, VALUES = (RNG.normal(size=(B, n, D)).astype(np.float32) for n in (Q, T, T))
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], np.int32)
ALL, NONE = np.ones_like(MASK), np.zeros_like(MASK)
attend = jax.jit(lambda *args: models.masked_attention(*args, num_heads=HEADS))
slopes = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.square(attend(*args))), argnums=(0, 1, 2)))
pool = jax.jit(models.pool_states)

NET = models.LabelCrossAttention(num_heads=HEADS, dim=12)
LABELS = RNG.normal(size=(Q, D)).astype(np.float32)
apply = jax.jit(lambda params, *args: NET.apply({"params": params}, *args))


@pytest.fixture(scope="module")
def params():
  with jax.numpy_rank_promotion("raise"):
    return jax.jit(NET.init)(jax.random.key(0), KEYS, MASK, LABELS)["params"]


def slow_attention(queries, keys, values, mask):
  queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
  out = np.zeros(queries.shape)
  size = queries.shape[-1] // HEADS
  for row in range(len(queries)):
    seen = np.flatnonzero(mask[row])
    for head in range(HEADS if len(seen) else 0):
      part = slice(head * size, (head + 1) * size)
      scores = queries[row, :, part] @ keys[row, seen, part].T / np.sqrt(size)
      out[row, :, part] = softmax(scores, axis=-1) @ values[row, seen, part]
  return out


@pytest.mark.parametrize("mask", [MASK, ALL, NONE], ids=["some", "all", "none"])
def test_attention_matches_a_loop_over_heads_and_rows(mask):
  result = attend(QUERIES, KEYS, VALUES, mask)
  np.testing.assert_allclose(result, slow_attention(QUERIES, KEYS, VALUES, mask), atol=1e-5)


def test_attention_without_mask_is_that_of_jax():
  heads = (x.reshape(*x.shape[:2], HEADS, D // HEADS) for x in (QUERIES, KEYS, VALUES))
  expected = jax.jit(jax.nn.dot_product_attention)(*heads).reshape(QUERIES.shape)
  np.testing.assert_allclose(attend(QUERIES, KEYS, VALUES, ALL), expected, atol=1e-5)


def test_the_order_of_tokens_has_no_effect():
  order = RNG.permutation(T)
  permuted = attend(QUERIES, KEYS[:, order], VALUES[:, order], MASK[:, order])
  np.testing.assert_allclose(permuted, attend(QUERIES, KEYS, VALUES, MASK), atol=1e-5)


@pytest.mark.parametrize("noise", [1e4, np.nan])
def test_masked_tokens_reach_neither_values_nor_gradients(noise):
  keys, values = (np.where(MASK[..., None], x, np.float32(noise)) for x in (KEYS, VALUES))
  expected = attend(QUERIES, KEYS, VALUES, MASK)
  np.testing.assert_array_equal(attend(QUERIES, keys, values, MASK), expected)
  for ours, clean in zip(slopes(QUERIES, keys, values, MASK), slopes(QUERIES, KEYS, VALUES, MASK)):
    np.testing.assert_array_equal(ours, clean)
    assert np.isfinite(ours).all()


def test_one_token_and_equal_keys():
  one = attend(QUERIES, KEYS, VALUES, MASK)[2]
  np.testing.assert_allclose(one, np.tile(VALUES[2, 3], (Q, 1)), rtol=1e-6)
  equal = attend(QUERIES, np.repeat(KEYS[:, :1], T, 1), VALUES, MASK)
  mean = np.stack([v[m == 1].mean(0) for v, m in zip(VALUES, MASK)])
  np.testing.assert_allclose(equal, np.repeat(mean[:, None], Q, 1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pool(VALUES, MASK), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_rows_without_tokens_are_0_and_gradients_finite(scale):
  mask = MASK * np.array([[1], [0], [1]], np.int32)
  arrays = [np.float32(scale) * x for x in (QUERIES, KEYS, VALUES)]
  result = np.asarray(attend(*arrays, mask))
  assert np.isfinite(result).all() and not result[1].any() and result[[0, 2]].all()
  for slope in slopes(*arrays, mask):
    assert np.isfinite(slope).all() and not np.any(slope[1])
  pooled = np.asarray(pool(np.where(mask[..., None], VALUES, np.nan), mask))
  assert np.isfinite(pooled).all() and not pooled[1].any()


def test_network_matches_its_equations(params):
  at = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  dense = lambda name, x: x @ at[name]["kernel"] + at[name]["bias"]  # noqa: E731
  queries = np.repeat(dense("query", LABELS)[None], B, 0)
  read = dense("out", slow_attention(queries, dense("key", KEYS), dense("value", KEYS), MASK))
  read = read + dense("skip", LABELS)
  read = (read - read.mean(-1, keepdims=True)) / np.sqrt(read.var(-1, keepdims=True) + 1e-6)
  hidden = dense("hidden", read * at["norm"]["scale"] + at["norm"]["bias"])
  hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
  logits = apply(params, KEYS, MASK, LABELS)
  assert logits.shape == (B, Q) and logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, dense("score", hidden)[..., 0], atol=1e-4)


def test_classes_do_not_see_each_other(params):
  logits = np.asarray(apply(params, KEYS, MASK, LABELS))
  order = RNG.permutation(Q)
  np.testing.assert_allclose(apply(params, KEYS, MASK, LABELS[order]), logits[:, order], atol=1e-5)
  more = np.concatenate([LABELS, LABELS[:1] + 1])
  np.testing.assert_allclose(apply(params, KEYS, MASK, more)[:, :Q], logits, atol=1e-5)


def test_gradients_reach_parameters_and_labels_but_no_cached_states(params):
  def loss(params, tokens, labels):
    return -jnp.mean(jax.nn.log_softmax(NET.apply({"params": params}, tokens, MASK, labels))[:, 0])

  tokens = np.where(MASK[..., None], KEYS, np.nan)
  of_params, of_tokens, of_labels = jax.device_get(
    jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, tokens, LABELS)
  )
  assert not of_tokens.any() and of_labels.any(-1).all()
  # A bias of all keys changes no weight, and one of all scores no probability.
  del of_params["key"]["bias"], of_params["score"]["bias"]
  for leaf in jax.tree.leaves(of_params):
    assert np.isfinite(leaf).all() and leaf.any()


def test_training_drops_and_evaluation_does_not(params):
  @jax.jit
  def drop(key):
    rngs = {"dropout": key}
    return NET.apply({"params": params}, KEYS, MASK, LABELS, deterministic=False, rngs=rngs)

  first, second, again = (np.asarray(drop(jax.random.key(i))) for i in (0, 1, 0))
  np.testing.assert_array_equal(first, again)
  plain = apply(params, KEYS, MASK, LABELS)
  assert not np.allclose(first, second) and not np.allclose(first, plain)


def test_bad_arguments_are_named():
  attention, net = models.masked_attention, models.LabelCrossAttention
  with pytest.raises(ValueError, match="num_heads must divide the last axis D of queries, got 3"):
    attention(QUERIES, KEYS, VALUES, MASK, num_heads=3)
  with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
    attention(QUERIES, KEYS, VALUES, MASK, num_heads=0)
  with pytest.raises(ValueError, match=r"values must have shape \[b, t, D\] with .*t = 5"):
    attention(QUERIES, KEYS, VALUES[:, 1:], MASK, num_heads=2)
  with pytest.raises(ValueError, match="num_heads must divide dim, got 4 and 10"):
    net(dim=10)
  with pytest.raises(ValueError, match=r"dropout_rate must lie in \[0, 1\), got 1.0"):
    net(dropout_rate=1.0)
  with pytest.raises(ValueError, match=r"label_states must have shape \[C, D\] with D = 8"):
    jax.eval_shape(NET.init, jax.random.key(0), KEYS, MASK, LABELS[:, 1:])
  with pytest.raises(ValueError, match="mask must have shape"):
    models.pool_states(VALUES, MASK[:, 1:])
