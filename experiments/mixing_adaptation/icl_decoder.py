"""A small causal decoder that answers prompts, for the experiment on in-context learning."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Decoder(nn.Module):
  """Pre-norm transformer decoder with learned positions, read at the answers' positions only.

  Attributes:
    vocab_size: number of tokens.
    max_length: most tokens of a prompt.
    embed_dim: width.
    num_layers: number of blocks.
    num_heads: attention heads; divides `embed_dim`.
    mlp_ratio: hidden width of the perceptrons over `embed_dim`.
  """

  vocab_size: int
  max_length: int
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
    h = nn.Embed(self.vocab_size, self.embed_dim, name="tokens")(tokens)
    places = self.param("positions", nn.initializers.normal(0.02), (self.max_length, h.shape[-1]))
    h += places[: tokens.shape[1]]
    # Branches that start at zero let training set in at once.
    zeros = nn.initializers.zeros
    for _ in range(self.num_layers):
      normed = nn.LayerNorm()(h)
      heads = (self.num_heads, self.embed_dim // self.num_heads)
      query, key, value = (nn.DenseGeneral(heads)(normed) for _ in range(3))
      attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
      h += nn.DenseGeneral(self.embed_dim, axis=(-2, -1), kernel_init=zeros)(attended)
      hidden = jax.nn.gelu(nn.Dense(self.mlp_ratio * self.embed_dim)(nn.LayerNorm()(h)))
      h += nn.Dense(self.embed_dim, kernel_init=zeros)(hidden)
    h = jnp.take_along_axis(h, positions[..., None], axis=1)
    return nn.Dense(self.vocab_size, name="head")(nn.LayerNorm()(h))
