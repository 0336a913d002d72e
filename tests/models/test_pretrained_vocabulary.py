import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models import DecoderLM, add_tokens, decoder_config


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean(tied):
  config = decoder_config(
    vocab_size=7, hidden_size=8, num_layers=1, num_heads=2, tie_embeddings=tied
  )
  tokens = jnp.array([[1, 5, 2]])
  model = DecoderLM(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  grown, wide = add_tokens(params, config, 2)
  assert wide.vocab_size == 9
  table = grown["embed"]["embedding"]
  np.testing.assert_array_equal(table[:7], params["embed"]["embedding"])
  np.testing.assert_allclose(table[7:], np.tile(table[:7].mean(0), (2, 1)), atol=1e-6)
  matrix = table.T if tied else grown["lm_head"]["kernel"]
  out = jax.jit(lambda: model.apply({"params": params}, tokens, return_hidden=True))()
  new = np.asarray(out.hidden) @ np.asarray(matrix)
  np.testing.assert_allclose(new[..., :7], out.logits, rtol=1e-4, atol=1e-4)
  mean = np.asarray(out.logits).mean(-1, keepdims=True)
  np.testing.assert_allclose(new[..., 7:], np.tile(mean, 2), rtol=1e-4, atol=1e-4)
  assert DecoderLM(wide).init_cache(1, 2).keys.shape == (1, 2, 1, 2, 4)
  with pytest.raises(ValueError, match="num_tokens .* got 0"):
    add_tokens(params, config, 0)
  with pytest.raises(ValueError, match="embed/embedding has shape"):
    add_tokens(grown, config, 1)
