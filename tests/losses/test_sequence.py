import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.losses import sequence

B, T, V = 3, 5, 7
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (B, T, V)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T))
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)

token_log_probs = jax.jit(sequence.token_log_probs)
causal = jax.jit(sequence.causal_token_log_probs)
log_prob = jax.jit(sequence.sequence_log_prob, static_argnames="normalize_length")
nll = jax.jit(sequence.sequence_nll, static_argnames="normalize_length")
segments = jax.jit(sequence.segment_log_probs, static_argnames="num_segments")
log1mexp = jax.jit(sequence.log1mexp)


def slow_log_probs(logits, tokens):
  """One token at a time, in double precision."""
  values = np.zeros(tokens.shape)
  for index in np.ndindex(*tokens.shape):
    scores = np.asarray(logits[index], np.float64)
    log_total = scores.max() + np.log(np.sum(np.exp(scores - scores.max())))
    values[index] = scores[tokens[index]] - log_total
  return values


def test_token_log_probs_match_a_loop():
  expected = slow_log_probs(LOGITS, TOKENS)
  np.testing.assert_allclose(token_log_probs(LOGITS, TOKENS), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(token_log_probs(LOGITS[0, 0], TOKENS[0, 0]), expected[0, 0], rtol=1e-5)


def test_gradient_is_one_hot_minus_probabilities():
  slope = jax.jit(jax.grad(lambda z: sequence.token_log_probs(z, TOKENS).sum()))(LOGITS)
  expected = np.eye(V)[TOKENS] - jax.nn.softmax(LOGITS)
  np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_causal_log_probs_are_those_of_the_next_token():
  result = causal(LOGITS, TOKENS)
  np.testing.assert_array_equal(result[:, 0], 0)
  expected = slow_log_probs(LOGITS[:, :-1], TOKENS[:, 1:])
  np.testing.assert_allclose(result[:, 1:], expected, rtol=1e-5, atol=1e-6)
  # The last logits predict nothing, and a sequence of one token has no prediction at all.
  slope = jax.grad(lambda z: causal(z, TOKENS).sum())(LOGITS)
  np.testing.assert_array_equal(slope[:, -1], 0)
  np.testing.assert_array_equal(causal(LOGITS[:, :1], TOKENS[:, :1]), np.zeros((B, 1)))


def test_masked_sum_and_mean_match_a_loop():
  values = slow_log_probs(LOGITS, TOKENS)
  total = np.array([sum(v for v, m in zip(*rows) if m) for rows in zip(values, MASK)])
  mean = total / np.array([3, 1, 5])
  tokens = token_log_probs(LOGITS, TOKENS)
  for mask in (MASK, MASK.astype(np.float32)):
    np.testing.assert_allclose(log_prob(tokens, mask), total, rtol=1e-5)
    np.testing.assert_allclose(log_prob(tokens, mask, normalize_length=True), mean, rtol=1e-5)
  np.testing.assert_allclose(nll(LOGITS, TOKENS, MASK), -total, rtol=1e-5)
  np.testing.assert_allclose(nll(LOGITS, TOKENS, MASK, normalize_length=True), -mean, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_masked_tokens_affect_neither_value_nor_gradient(bad):
  slope = jax.jit(
    jax.value_and_grad(lambda x: sequence.sequence_log_prob(x, MASK, normalize_length=True).sum())
  )
  values = np.asarray(token_log_probs(LOGITS, TOKENS))
  for result, expected in zip(slope(np.where(MASK, values, bad)), slope(values)):
    np.testing.assert_array_equal(result, expected)
  slope = jax.jit(jax.value_and_grad(lambda z: sequence.sequence_nll(z, TOKENS, MASK).sum()))
  hidden = np.where(MASK[..., None], LOGITS, bad).astype(np.float32)
  for result, expected in zip(slope(hidden), slope(LOGITS)):
    np.testing.assert_array_equal(result, expected)


def test_tokens_outside_the_vocabulary_are_nan_until_masked():
  tokens = np.where(MASK, TOKENS, -100)
  np.testing.assert_array_equal(np.isnan(token_log_probs(LOGITS, tokens)), ~MASK)
  np.testing.assert_array_equal(np.isnan(token_log_probs(LOGITS, np.where(MASK, TOKENS, V))), ~MASK)
  np.testing.assert_allclose(nll(LOGITS, tokens, MASK), nll(LOGITS, TOKENS, MASK), rtol=1e-6)
  # The vocabulary size, 256, does not fit into the type of the tokens.
  wide = np.zeros((2, 256), np.float32)
  np.testing.assert_allclose(
    token_log_probs(wide, np.uint8([0, 255])), np.full(2, -np.log(256)), rtol=1e-6
  )


def test_unsigned_sentinels_are_outside_the_vocabulary():
  tokens = np.where(MASK, TOKENS, -100).astype(np.uint32)
  np.testing.assert_array_equal(np.isnan(token_log_probs(LOGITS, tokens)), ~MASK)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits(scale):
  logits = np.float32([[[1, 0, 0], [0, 1, 1], [0, 0, 0]]]) * np.float32(scale)
  tokens, mask = np.zeros((1, 3), int), np.ones((1, 3))
  value, slope = jax.jit(
    jax.value_and_grad(lambda z: sequence.sequence_nll(z, tokens, mask).sum())
  )(logits)
  np.testing.assert_allclose(value, -slow_log_probs(logits, tokens).sum(), rtol=1e-6)
  assert np.isfinite(slope).all()


def test_half_precision_accumulates_in_float32():
  half = jnp.asarray(LOGITS, jnp.bfloat16)
  result = nll(half, TOKENS, MASK)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, nll(half.astype(jnp.float32), TOKENS, MASK), rtol=1e-6)
  ones = jnp.ones((1, 1000), jnp.bfloat16)
  assert float(log_prob(ones, np.ones((1, 1000)))[0]) == 1000.0


def test_segments_match_a_loop():
  ids = np.array([[0, 0, 1, -1, 3], [2, 5, -7, 2, 2], [1, 1, 1, 1, 1]])
  values = RNG.normal(size=(B, T)).astype(np.float32)
  expected = np.zeros((B, 4))
  for row, t in np.ndindex(B, T):
    if 0 <= ids[row, t] < 4:
      expected[row, ids[row, t]] += values[row, t]
  hidden = np.where((ids < 0) | (ids >= 4), np.nan, values).astype(np.float32)
  np.testing.assert_allclose(segments(hidden, ids, num_segments=4), expected, rtol=1e-6)
  slope = jax.grad(lambda x: segments(x, ids, num_segments=4)[:, 1].sum())(hidden)
  np.testing.assert_array_equal(slope, ids == 1)


def test_log1mexp_is_accurate_to_all_digits():
  x = -np.concatenate([np.logspace(-30, 2, 60), [np.log(2.0), 1e4]]).astype(np.float32)
  wide = np.asarray(x, np.float64)
  with np.errstate(divide="ignore"):
    expected = np.where(wide < -0.5, np.log1p(-np.exp(wide)), np.log(-np.expm1(wide)))
  np.testing.assert_allclose(log1mexp(x), expected, rtol=1e-6, atol=1e-38)
  slope = jax.vmap(jax.grad(log1mexp))(x)
  np.testing.assert_allclose(slope, -1 / np.expm1(np.minimum(-wide, 700)), rtol=1e-5, atol=1e-37)
  assert log1mexp(0.0) == -np.inf and np.isnan(log1mexp(1.0))


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, -1e-6))
def test_log1mexp_is_its_own_inverse(x):
  x = float(np.float32(x))
  once = float(log1mexp(x))
  if once < -1e-30:
    # The effect of rounding the first result.
    slack = 1e-5 * abs(x) + 2e-6 * abs(once) * np.exp(once - x)
    assert abs(float(log1mexp(once)) - x) <= slack


def chunked_and_whole(dtype, shape, vocabulary, chunk_size):
  """Compiled values and gradients of the chunked and the unchunked sum, and their arguments."""
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], shape, dtype)
  kernel = jax.random.normal(keys[1], (shape[-1], vocabulary), dtype)
  tokens = jax.random.randint(keys[2], shape[:-1], 0, vocabulary)
  weights = jax.random.normal(keys[3], shape[:-1])

  def whole(hidden, kernel):
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    result = sequence.token_log_probs(logits, tokens)
    return jnp.sum(weights * result), result

  def chunked(hidden, kernel):
    result = sequence.chunked_token_log_probs(hidden, kernel, tokens, chunk_size=chunk_size)
    return jnp.sum(weights * result), result

  compiled = (
    jax.jit(jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)).lower(hidden, kernel).compile()
    for fn in (chunked, whole)
  )
  return (*compiled, hidden, kernel)


@pytest.mark.parametrize(
  ("dtype", "chunk_size", "tolerance"),
  [
    (jnp.float32, 3, 1e-6),
    (jnp.float32, 99, 1e-6),
    (jnp.bfloat16, 4, 1e-2),
  ],
)
def test_chunked_log_probs_match_the_unchunked_ones(dtype, chunk_size, tolerance):
  chunked, whole, *arguments = chunked_and_whole(dtype, (2, 8, 6), 11, chunk_size)
  (result, slopes), (expected, wanted) = chunked(*arguments), whole(*arguments)
  assert result[1].shape == (2, 8) and result[1].dtype == jnp.float32
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), result, expected
  )
  for slope, want, argument in zip(slopes, wanted, arguments):
    assert slope.dtype == argument.dtype
    slope, want = (np.asarray(x, np.float32) for x in (slope, want))
    np.testing.assert_allclose(slope, want, atol=tolerance * np.abs(want).max())


def test_kernel_gradient_is_summed_in_float32():
  """With many chunks of a half-precision kernel, a half-precision sum would be off by percents."""
  hidden = jnp.ones((400, 1), jnp.bfloat16)
  kernel, tokens = jnp.zeros((1, 2), jnp.bfloat16), jnp.zeros(400, int)

  def loss(kernel):
    return sequence.chunked_token_log_probs(hidden, kernel, tokens, chunk_size=1).sum()

  np.testing.assert_array_equal(jax.jit(jax.grad(loss))(kernel), [[200, -200]])


def test_chunks_of_empty_batches():
  def log_probs(hidden, tokens):
    return sequence.chunked_token_log_probs(hidden, np.eye(V), tokens, chunk_size=2)

  for shape in ((0, T), (B, 0)):
    hidden, tokens = jnp.zeros((*shape, V)), jnp.zeros(shape, int)
    assert jax.eval_shape(log_probs, hidden, tokens).shape == shape


@pytest.mark.shipping
def test_chunks_take_at_most_a_quarter_of_the_memory():
  chunked, whole, *_ = chunked_and_whole(jnp.float32, (4, 64, 8), 4096, 4)
  peaks = [c.memory_analysis().temp_size_in_bytes for c in (chunked, whole)]
  assert peaks[1] >= 4 * 64 * 4096 * 4
  assert peaks[0] <= peaks[1] / 4


def test_vmap_matches_the_batched_call():
  ids = np.tile(np.arange(T) % 2, (B, 1))
  for fn in (
    lambda z, t, i: sequence.causal_token_log_probs(z, t),
    lambda z, t, i: sequence.sequence_nll(z, t, i == 0),
    lambda z, t, i: sequence.segment_log_probs(z[..., 0], i, num_segments=2),
    lambda z, t, i: sequence.chunked_token_log_probs(z, jnp.eye(V), t, chunk_size=2),
  ):
    whole = jax.jit(fn)(LOGITS, TOKENS, ids)
    mapped = jax.jit(jax.vmap(fn))(LOGITS, TOKENS, ids)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
    sequence.chunked_token_log_probs(LOGITS, np.eye(V), TOKENS, chunk_size=0)
  with pytest.raises(ValueError, match="num_segments must be at least 1, got 0"):
    sequence.segment_log_probs(LOGITS[..., 0], TOKENS, num_segments=0)
  chunked = functools.partial(sequence.chunked_token_log_probs, chunk_size=2)
  for name, call in (
    ("tokens", lambda: sequence.token_log_probs(LOGITS, TOKENS[:, :-1])),
    ("tokens", lambda: sequence.causal_token_log_probs(LOGITS, TOKENS[0])),
    ("mask", lambda: sequence.sequence_log_prob(LOGITS[..., 0], MASK[0])),
    ("mask", lambda: sequence.sequence_nll(LOGITS, TOKENS, MASK[:2])),
    ("segment_ids", lambda: sequence.segment_log_probs([0.5], [[0]], num_segments=2)),
    ("kernel", lambda: chunked(LOGITS, np.eye(V + 1), TOKENS)),
    ("tokens", lambda: chunked(LOGITS, np.eye(V), TOKENS[:1])),
  ):
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
      call()
  with pytest.raises(TypeError, match="tokens must be of type int, got float32"):
    sequence.token_log_probs(LOGITS, TOKENS.astype(np.float32))
  with pytest.raises(TypeError, match="kernel must be of type float"):
    chunked(LOGITS, np.eye(V, dtype=int), TOKENS)
