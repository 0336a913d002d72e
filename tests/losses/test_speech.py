import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from jaxlab import losses, metrics

B, T, K, D, G, V = 4, 9, 6, 5, 2, 7
RNG = np.random.default_rng(0)
CONTEXT, TARGETS = (RNG.normal(size=(B, T, D)).astype(np.float32) for _ in range(2))
INDEX = RNG.integers(0, T, (B, T, K)).astype(np.int32)
MASK = np.array(RNG.uniform(size=(B, T)) < 0.6, np.int32)
MASK[3] = 0
LOGITS = RNG.normal(size=(B, T, V)).astype(np.float32)
CODES = RNG.integers(0, V, (B, T)).astype(np.int32)
PROBS = RNG.dirichlet(np.ones(V), (B, T, G)).astype(np.float32)
contrast = jax.jit(
  lambda c, t, i, m, temperature=0.1: losses.masked_contrastive_loss(
    c, t, i, m, temperature=temperature
  )
)
slopes = jax.jit(jax.grad(lambda *args: contrast(*args).sum(), argnums=(0, 1)))
predict = jax.jit(losses.masked_prediction_loss)
predict_slope = jax.jit(jax.grad(lambda x, c, m: predict(x, c, m).sum()))
diversity = jax.jit(losses.codebook_diversity_loss)
perplexity = jax.jit(metrics.codebook_perplexity)
weigh = jax.jit(losses.utterance_weighted_loss)


def slow_contrast(context, targets, temperature):
  cosine = lambda x, y: x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-8)  # noqa: E731
  context, targets = np.float64(context), np.float64(targets)
  out = np.zeros((B, T))
  for b, t in zip(*np.nonzero(MASK)):
    others = [j for j in INDEX[b, t] if np.any(targets[b, j] != targets[b, t])]
    scores = [cosine(context[b, t], targets[b, j]) / temperature for j in (t, *others)]
    out[b, t] = logsumexp(scores) - scores[0]
  return out


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("repeated", [False, True])
def test_contrastive_loss_matches_a_loop(temperature, repeated):
  """Some distractors are the frame itself, and if targets repeat, others equal it."""
  targets = TARGETS[:, [0, 0, 2, 2, 2, 5, 6, 7, 7]] if repeated else TARGETS
  result = contrast(CONTEXT, targets, INDEX, MASK, temperature)
  np.testing.assert_allclose(result, slow_contrast(CONTEXT, targets, temperature), atol=1e-5)


def test_contrastive_loss_without_collisions_is_a_log_softmax():
  index = (np.arange(T)[None, :, None] + np.arange(1, K + 1)[None, None]) % T
  index = np.broadcast_to(index, INDEX.shape).astype(np.int32)
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (CONTEXT, TARGETS)]
  cosines = np.einsum("btd,bsd->bts", *unit)
  own = np.broadcast_to(np.arange(T)[None, :, None], (B, T, 1))
  scores = np.take_along_axis(cosines, np.concatenate([own, index], -1), -1) / 0.1
  expected = np.where(MASK, -log_softmax(scores, axis=-1)[..., 0], 0)
  np.testing.assert_allclose(contrast(CONTEXT, TARGETS, index, MASK), expected, atol=1e-5)


def test_contrastive_loss_of_equal_targets_is_0_and_scale_has_no_effect():
  equal = np.repeat(TARGETS[:, :1], T, 1)
  np.testing.assert_array_equal(contrast(CONTEXT, equal, INDEX, MASK), np.zeros((B, T)))
  plain = contrast(CONTEXT, TARGETS, INDEX, MASK)
  scaled = contrast(1e4 * CONTEXT, np.float32(1e-3) * TARGETS, INDEX, MASK)
  np.testing.assert_allclose(scaled, plain, atol=1e-4)


@pytest.mark.parametrize("noise", [1e4, -1e4, np.nan])
def test_frames_that_are_not_masked_reach_neither_losses_nor_gradients(noise):
  context = np.where(MASK[..., None] == 1, CONTEXT, noise).astype(np.float32)
  used = MASK.copy()
  for b, t in zip(*np.nonzero(MASK)):
    used[b, INDEX[b, t]] = 1
  targets = np.where(used[..., None] == 1, TARGETS, noise).astype(np.float32)
  result = np.asarray(contrast(context, targets, INDEX, MASK))
  np.testing.assert_array_equal(result, contrast(CONTEXT, TARGETS, INDEX, MASK))
  assert not result[MASK == 0].any()
  of_context, of_targets = jax.device_get(slopes(context, targets, INDEX, MASK))
  assert np.isfinite(of_context).all() and np.isfinite(of_targets).all()
  assert not of_context[MASK == 0].any() and not of_targets[used == 0].any()
  assert np.all(np.any(of_context[MASK == 1] != 0, axis=-1))
  logits = np.where(MASK[..., None] == 1, LOGITS, noise).astype(np.float32)
  slope = np.asarray(predict_slope(logits, CODES, MASK))
  assert np.isfinite(slope).all() and not slope[MASK == 0].any()


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_extreme_vectors_have_finite_losses_and_gradients(value):
  spiked = CONTEXT.copy()
  spiked[0, :3] = value
  for arrays in ((spiked, TARGETS), (CONTEXT, spiked)):
    assert np.isfinite(contrast(*arrays, INDEX, MASK)).all()
    for slope in slopes(*arrays, INDEX, MASK):
      assert np.isfinite(slope).all()


def test_distractors_out_of_range_are_nan_where_traced():
  wrong = INDEX.copy()
  wrong[0, :, 0], wrong[1, :, 0] = -1, T
  result = np.asarray(contrast(CONTEXT, TARGETS, wrong, MASK))
  assert np.isnan(result[:2][MASK[:2] == 1]).all() and not result[MASK == 0].any()
  np.testing.assert_array_equal(result[2:], contrast(CONTEXT, TARGETS, INDEX, MASK)[2:])
  with pytest.raises(ValueError, match=r"negative_indices must lie in \[0, 9\), got -1 to 9"):
    losses.masked_contrastive_loss(CONTEXT, TARGETS, wrong, MASK)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_prediction_loss_is_cross_entropy_of_masked_frames(scale):
  logits = np.float32(scale) * LOGITS
  log_probs = np.take_along_axis(log_softmax(np.float64(logits), -1), CODES[..., None], -1)[..., 0]
  codes = np.where(MASK, CODES, -100)
  result = predict(logits, codes, MASK)
  np.testing.assert_allclose(result, np.where(MASK, -log_probs, 0), rtol=1e-5, atol=1e-5)
  assert np.isfinite(predict_slope(logits, codes, MASK)).all()


def test_prediction_targets_out_of_range():
  codes = np.where(MASK, CODES, 99)
  jax.eval_shape(lambda x: losses.masked_prediction_loss(x, codes, MASK), LOGITS)
  with pytest.raises(ValueError, match=r"targets must lie in \[0, 7\), got 0 to 99"):
    losses.masked_prediction_loss(LOGITS, np.full_like(CODES, 99), MASK)
  result = np.asarray(predict(LOGITS, np.full_like(CODES, -1), MASK))
  np.testing.assert_array_equal(np.isnan(result), MASK == 1)


def test_codebooks_match_their_formula():
  mean = np.float64(PROBS)[MASK == 1].mean(0)
  expected = np.exp(-(mean * np.log(mean + 1e-7)).sum(-1)).sum()
  np.testing.assert_allclose(perplexity(PROBS, MASK), expected, rtol=1e-5)
  np.testing.assert_allclose(diversity(PROBS, MASK), 1 - expected / (G * V), rtol=1e-4)
  assert G - 1e-4 <= perplexity(PROBS, MASK) <= G * V + 1e-4
  spoiled = np.where(MASK[..., None, None] == 1, PROBS, np.nan)
  np.testing.assert_array_equal(perplexity(spoiled, MASK), perplexity(PROBS, MASK))


def test_codebooks_at_the_ends():
  uniform = np.full_like(PROBS, 1 / V)
  np.testing.assert_allclose(perplexity(uniform, MASK), G * V, atol=1e-4)
  np.testing.assert_allclose(diversity(uniform, MASK), 0, atol=1e-5)
  one = np.broadcast_to(np.eye(V, dtype=np.float32)[2], PROBS.shape)
  np.testing.assert_allclose(perplexity(one, MASK), G, atol=1e-4)
  slope = jax.jit(jax.grad(losses.codebook_diversity_loss))(one, MASK)
  assert np.isfinite(slope).all()
  empty = np.zeros_like(MASK)
  np.testing.assert_allclose(perplexity(PROBS, empty), G, atol=1e-6)
  np.testing.assert_allclose(diversity(PROBS, empty), 1 - 1 / V, atol=1e-6)


def test_utterances_are_weighted():
  values = np.where(MASK, RNG.uniform(size=(B, T)), np.nan).astype(np.float32)
  weights = np.float32([1, 0.5, 0, 2])
  mean = [v[m == 1].mean() if m.any() else 0 for v, m in zip(values, MASK)]
  np.testing.assert_allclose(weigh(values, MASK, np.ones(B)), mean, rtol=1e-5)
  np.testing.assert_allclose(weigh(values, MASK, weights), weights * mean, rtol=1e-5)
  slope = jax.jit(jax.grad(lambda w: weigh(values, MASK, w).sum()))(weights)
  np.testing.assert_allclose(slope, mean, rtol=1e-5)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\), got 0"):
    losses.masked_contrastive_loss(CONTEXT, TARGETS, INDEX, MASK, temperature=0)
  with pytest.raises(ValueError, match=r"targets must have shape \[b, T, d\] with .*d = 5"):
    losses.masked_contrastive_loss(CONTEXT, TARGETS[..., 1:], INDEX, MASK)
  with pytest.raises(ValueError, match="mask must have shape"):
    losses.codebook_diversity_loss(PROBS, MASK[:, 1:])
  with pytest.raises(ValueError, match=r"weights must have shape \[b\] with b = 4, got \[3\]"):
    losses.utterance_weighted_loss(LOGITS[..., 0], MASK, jnp.ones(3))
