import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers
from jaxlab.models import SpeechEncoderDecoder

MODEL = SpeechEncoderDecoder(2, 2, dim=16, vocab_size=9, num_heads=2)
B, T, F, U = 3, 21, 4, 7
RNG = np.random.default_rng(0)
LENGTHS = np.array([21, 14, 6], np.int32)
FRAMES = RNG.normal(size=(B, T, F)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (B, U)).astype(np.int32)
apply = jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs))
encode = jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs, method="encode"))


@pytest.fixture(scope="module")
def params():
  with jax.numpy_rank_promotion("raise"):
    return jax.jit(MODEL.init)(jax.random.key(0), FRAMES, LENGTHS, TOKENS)["params"]


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_token_depends_on_all_frames_and_the_tokens_before(params):
  logits = np.asarray(apply(params, FRAMES, LENGTHS, TOKENS))
  assert logits.shape == (B, U, 9) and logits.dtype == np.float32
  later, other = TOKENS.copy(), FRAMES.copy()
  later[:, 4] = (later[:, 4] + 1) % 9
  changed = np.abs(apply(params, FRAMES, LENGTHS, later) - logits).max(-1)
  assert np.all(changed[:, :4] < 1e-6) and np.all(changed[:, 4:] > 1e-6)
  other[1, 13] += 1
  changed = np.abs(apply(params, other, LENGTHS, TOKENS) - logits).max(-1)
  assert np.all(changed[1] > 1e-6) and np.all(changed[[0, 2]] < 1e-6)


@pytest.mark.parametrize("noise", [100.0, np.nan])
def test_padding_has_no_effect(params, noise):
  padded = np.where(np.arange(T)[None, :, None] < LENGTHS[:, None, None], FRAMES, noise)
  logits = apply(params, padded.astype(np.float32), LENGTHS, TOKENS)
  np.testing.assert_allclose(logits, apply(params, FRAMES, LENGTHS, TOKENS), atol=1e-5)
  # And the loss is that of the utterance alone.
  alone = apply(params, FRAMES[1:2, :14], LENGTHS[1:2], TOKENS[1:2])
  np.testing.assert_allclose(alone[0], logits[1], atol=1e-5)


def test_encoder_keeps_every_fourth_frame(params):
  states, lengths = jax.device_get(encode(params, FRAMES, LENGTHS))
  assert states.shape == (B, 6, 16)
  np.testing.assert_array_equal(lengths, [6, 4, 2])
  inside = np.arange(6)[None] < lengths[:, None]
  assert not np.any(states[~inside]) and np.all(np.any(states[inside] != 0, axis=-1))


def test_decoding_matches_one_call(params):
  prompt_lengths = np.array([4, 2, 1])

  @jax.jit
  def both(params, frames, frame_lengths, tokens, lengths):
    encoded = MODEL.apply({"params": params}, frames, frame_lengths, method="encode")
    fns = MODEL.decode_fns(params, *encoded)
    output = samplers.generate(
      jax.random.key(0), fns, tokens[:, :4], lengths, max_new_tokens=3, temperature=0.0
    )
    whole = jnp.full_like(lengths, U)
    return output, samplers.score_sequences(fns, tokens, whole, jnp.ones_like(lengths))

  output, scores = jax.device_get(both(params, FRAMES, LENGTHS, TOKENS, prompt_lengths))
  log_probs = log_softmax(apply(params, FRAMES, LENGTHS, TOKENS))
  expected = np.take_along_axis(log_probs[:, :-1], TOKENS[:, 1:, None], axis=2)[..., 0]
  np.testing.assert_allclose(scores[:, 1:], expected, atol=1e-4)
  tokens, rows = TOKENS.copy(), np.arange(B)
  for i in range(3):
    logits = np.asarray(apply(params, FRAMES, LENGTHS, tokens))
    best = np.argmax(logits[rows, prompt_lengths + i - 1], axis=-1)
    np.testing.assert_array_equal(output.tokens[:, i], best)
    tokens[rows, prompt_lengths + i] = best


def test_layers_of_the_encoder_are_smaller_than_those_of_the_decoder():
  def count(*layers):
    model = SpeechEncoderDecoder(*layers, dim=64, vocab_size=13)
    shapes = jax.eval_shape(model.init, jax.random.key(0), FRAMES, LENGTHS, TOKENS)["params"]
    return sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))

  assert 0.85 * count(3, 3) < count(5, 1) < 0.95 * count(3, 3)


def test_gradients_reach_every_parameter(params):
  def loss(params, frames):
    logits = MODEL.apply({"params": params}, frames, LENGTHS, TOKENS)
    return -jax.nn.log_softmax(logits)[:, :, 3].mean()

  slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
  of_params, of_frames = jax.device_get(slope(params, FRAMES))
  for leaf in jax.tree.leaves(of_params):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)
  heard = np.any(of_frames != 0, axis=-1)
  np.testing.assert_array_equal(heard, np.arange(T)[None] < LENGTHS[:, None])


def test_silence_is_finite(params):
  logits = apply(params, FRAMES, np.zeros(B, np.int32), TOKENS)
  assert np.all(np.isfinite(logits))


def test_bad_arguments_are_named(params):
  encoded = encode(params, FRAMES, LENGTHS)
  with pytest.raises(ValueError, match="frame_lengths must have shape"):
    MODEL.init(jax.random.key(0), FRAMES, LENGTHS[:2], TOKENS)
  with pytest.raises(ValueError, match=r"tokens must lie in \[0, 9\)"):
    MODEL.apply({"params": params}, FRAMES, LENGTHS, TOKENS + 9)
  with pytest.raises(ValueError, match="does not divide hidden_size"):
    SpeechEncoderDecoder(1, 1, dim=10, vocab_size=9)
  with pytest.raises(ValueError, match="num_decoder_layers must be at least 1, got 0"):
    SpeechEncoderDecoder(1, 0, dim=16, vocab_size=9)
  with pytest.raises(ValueError, match="one row per prompt, got 3 and 2"):
    MODEL.decode_fns(params, *encoded).init_cache(2, 4)
  with pytest.raises(ValueError, match="encoder_out must have shape"):
    MODEL.decode_fns(params, encoded.states[..., :8], encoded.lengths)
