"""A vision transformer for small images."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays
from jaxlab.models.classifiers import Mix, ModelOutput
from jaxlab.models.convolution import Conv


class ViT(nn.Module):
  """A transformer on patches of an image, with a class token and learned positions.

  Layers are normalized before attention and before the feed-forward part. Nothing depends on the
  batch, so training and evaluation are the same.

  Attributes:
    num_classes: number k of classes.
    patch_size: height and width of a patch; it divides those of the images.
    embed_dim: width d of the tokens.
    num_layers: number of encoder layers.
    num_heads: attention heads; they divide `embed_dim`.
    mlp_ratio: hidden width of the feed-forward part over `embed_dim`.

  Reference: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021,
  https://arxiv.org/abs/2010.11929.
  """

  num_classes: int
  patch_size: int = 4
  embed_dim: int = 192
  num_layers: int = 6
  num_heads: int = 3
  mlp_ratio: int = 4

  @nn.compact
  def __call__(
    self, inputs: chex.Array, *, train: bool = False, mix: Mix | None = None
  ) -> ModelOutput:
    """Classifies.

    Args:
      inputs: images, `[b, h, w, c]`.
      train: ignored.
      mix: `(layer, hidden) -> hidden`, called with the inputs (layer 0) and with the tokens
        `[b, 1 + patches, d]` after each layer.

    Returns:
      A `ModelOutput`; the features are the normalized class token.

    Raises:
      ValueError: if `inputs` are no images, the patches do not tile them, or the heads do not
        divide `embed_dim`.
    """
    del train
    check_arrays(inputs=(inputs, "[b, h, w, c]"))
    batch, height, width, _ = inputs.shape
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(f"patch_size {self.patch_size} does not divide images {height} x {width}.")
    if self.embed_dim % self.num_heads:
      raise ValueError(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}.")
    hidden = inputs if mix is None else mix(0, inputs)
    patch = (self.patch_size, self.patch_size)
    patches = Conv(self.embed_dim, patch, strides=patch, padding="VALID", name="patches")(hidden)
    patches = patches.reshape(batch, math.prod(patches.shape[1:3]), self.embed_dim)
    class_token = self.param("class_token", nn.initializers.zeros, (1, 1, self.embed_dim))
    positions = self.param(
      "positions", nn.initializers.normal(0.02), (1, 1 + patches.shape[1], self.embed_dim)
    )
    class_tokens = jnp.broadcast_to(class_token, (batch, 1, self.embed_dim))
    tokens = jnp.concatenate([class_tokens, patches], axis=1) + positions
    for i in range(self.num_layers):
      tokens = self._layer(i, tokens)
      tokens = tokens if mix is None else mix(i + 1, tokens)
    features = nn.LayerNorm(name="head_norm")(tokens[:, 0])
    return ModelOutput(features, nn.Dense(self.num_classes, name="head")(features))

  def _layer(self, i: int, tokens: jax.Array) -> jax.Array:
    """One encoder layer."""
    normed = nn.LayerNorm(name=f"layer_{i}_norm_1")(tokens)
    attention = nn.MultiHeadDotProductAttention(self.num_heads, name=f"layer_{i}_attention")
    tokens = tokens + attention(normed)
    normed = nn.LayerNorm(name=f"layer_{i}_norm_2")(tokens)
    hidden = nn.Dense(self.mlp_ratio * self.embed_dim, name=f"layer_{i}_expand")(normed)
    hidden = nn.gelu(hidden, approximate=False)
    return tokens + nn.Dense(self.embed_dim, name=f"layer_{i}_project")(hidden)
