import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers
from jaxlab.models import SceneQuestionAnswerer

MODEL = SceneQuestionAnswerer(vocab_size=11, dim=16, num_layers=2, num_heads=2)
B, T = 3, 8
RNG = np.random.default_rng(0)
IMAGES = RNG.random((B, 24, 24, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (B, T)).astype(np.int32)
apply = jax.jit(lambda params, images, tokens: MODEL.apply({"params": params}, images, tokens))


@pytest.fixture(scope="module")
def params():
  with jax.numpy_rank_promotion("raise"):
    return jax.jit(MODEL.init)(jax.random.key(0), IMAGES, TOKENS)["params"]


def test_text_sees_the_picture_and_the_text_before(params):
  logits = apply(params, IMAGES, TOKENS)
  assert logits.shape == (B, T, 11) and logits.dtype == jnp.float32
  later, turned = TOKENS.copy(), IMAGES.copy()
  later[:, 3] = (later[:, 3] + 1) % 11
  turned[1] = turned[1, ::-1]
  changed = np.abs(apply(params, IMAGES, later) - logits).max(-1)
  assert np.all(changed[:, :3] < 1e-6) and np.all(changed[:, 3:] > 1e-5)
  changed = np.abs(apply(params, turned, TOKENS) - logits).max(-1)
  assert np.all(changed[1] > 1e-5) and np.all(changed[[0, 2]] < 1e-6)


def test_visual_tokens_see_one_another(params):
  @jax.jit
  def first_hidden(images):
    variables = {"params": params}
    _, state = MODEL.apply(variables, images, TOKENS, mutable=["intermediates"])
    return state["intermediates"]["layers_0"]["hidden_states"][0][:, 0]

  # No convolution reaches from the last corner of the picture to its first visual token.
  moved = IMAGES.copy()
  moved[:, -1, -1] = 0
  assert np.all(np.abs(first_hidden(moved) - first_hidden(IMAGES)).max(-1) > 1e-6)


def test_decoding_matches_one_call(params):
  lengths = np.array([5, 3, 1])

  @jax.jit
  def both(params, images, tokens, lengths):
    fns = MODEL.decode_fns(params, images)
    output = samplers.generate(
      jax.random.key(0), fns, tokens[:, :5], lengths, max_new_tokens=3, temperature=0.0
    )
    return output, samplers.score_sequences(fns, tokens, lengths, jnp.ones_like(lengths))

  output, scores = jax.device_get(both(params, IMAGES, TOKENS, lengths))
  logits = np.asarray(apply(params, IMAGES, TOKENS))
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for row, length in enumerate(lengths):
    for t in range(1, length):
      np.testing.assert_allclose(
        scores[row, t], log_probs[row, t - 1, TOKENS[row, t]], atol=1e-4, rtol=1e-4
      )
  # Without a cache; what stands behind the text is not seen.
  tokens, rows = TOKENS.copy(), np.arange(B)
  for i in range(3):
    best = np.argmax(np.asarray(apply(params, IMAGES, tokens))[rows, lengths + i - 1], axis=-1)
    np.testing.assert_array_equal(output.tokens[:, i], best)
    tokens[rows, lengths + i] = best


def test_size_of_the_papers_setting():
  model = SceneQuestionAnswerer(vocab_size=60)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)["params"]
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert 140_000 < count < 180_000


def test_gradients_reach_every_parameter(params):
  def loss(params):
    logits = MODEL.apply({"params": params}, IMAGES, TOKENS)
    return -jax.nn.log_softmax(logits)[:, :, 3].mean()

  for leaf in jax.tree.leaves(jax.device_get(jax.jit(jax.grad(loss))(params))):
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


def test_bad_arguments_are_named(params):
  with pytest.raises(ValueError, match="images must have shape"):
    MODEL.init(jax.random.key(0), IMAGES[:, :20], TOKENS)
  with pytest.raises(ValueError, match=r"tokens must lie in \[0, 11\)"):
    MODEL.apply({"params": params}, IMAGES, TOKENS + 11)
  with pytest.raises(ValueError, match="does not divide hidden_size"):
    SceneQuestionAnswerer(vocab_size=11, dim=10, num_heads=4)
  with pytest.raises(ValueError, match="one row per prompt, got 3 and 2"):
    MODEL.decode_fns(params, IMAGES).init_cache(2, 4)
