"""A small causal decoder that answers prompts, for the experiment on in-context learning."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Decoder(nn.Module):
  """Pre-norm transformer decoder with linear position biases, read at the answers' positions only.

  Head i of n subtracts 2^(-8 i / n) a token of distance from its scores (Press et al., Train Short,
  Test Long, ICLR 2022, https://arxiv.org/abs/2108.12409): the first heads see a sentence, the last
  ones the prompt, from the start of training.

  Attributes:
    vocab_size: number of tokens.
    embed_dim: width.
    num_layers: number of blocks.
    num_heads: attention heads; divides `embed_dim`.
    mlp_ratio: hidden width of the perceptrons over `embed_dim`.
  """

  vocab_size: int
  embed_dim: int = 64
  num_layers: int = 3
  num_heads: int = 4
  mlp_ratio: int = 4

  @nn.compact
  def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    """Scores of the next token, `[b, a, vocab_size]`.

    Args:
      tokens: prompts, int `[b, L]`, padded on the right.
      positions: where the next token is asked for, int `[b, a]`.
    """
    init = nn.initializers.normal(0.5)
    h = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=init, name="tokens")(tokens)
    slopes = 2.0 ** (-8 / self.num_heads * jnp.arange(1, self.num_heads + 1))
    places = jnp.arange(tokens.shape[1])
    bias = -slopes[:, None, None] * jnp.abs(places[:, None] - places)
    for _ in range(self.num_layers):
      normed = nn.LayerNorm()(h)
      heads = (self.num_heads, self.embed_dim // self.num_heads)
      query, key, value = (nn.DenseGeneral(heads)(normed) for _ in range(3))
      attended = jax.nn.dot_product_attention(query, key, value, bias[None], is_causal=True)
      h += nn.DenseGeneral(self.embed_dim, axis=(-2, -1))(attended)
      hidden = jax.nn.gelu(nn.Dense(self.mlp_ratio * self.embed_dim)(nn.LayerNorm()(h)))
      h += nn.Dense(self.embed_dim)(hidden)
    h = jnp.take_along_axis(h, positions[..., None], axis=1)
    return nn.Dense(self.vocab_size, name="head")(nn.LayerNorm()(h))
