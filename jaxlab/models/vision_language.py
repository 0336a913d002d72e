"""A transformer that answers questions about small pictures, token by token."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_classes, check_arrays, check_at_least
from jaxlab.models.convolution import Conv
from jaxlab.models.decoder_architecture import decoder_config
from jaxlab.models.decoder_blocks import (
  AttentionContext,
  Block,
  KVCache,
  Linear,
  Norm,
  cache_slots,
  product,
)
from jaxlab.models.linen_methods import with_params
from jaxlab.models.rotary import rotary_frequencies
from jaxlab.samplers.decode_fns import DecodeFns

_WIDTHS, _STRIDES = (32, 64, 64), (2, 2, 1)
_IMAGE_SIDE = 24
_NUM_VISUAL = (_IMAGE_SIDE // 4) ** 2


class SceneQuestionAnswerer(nn.Module):
  """Three convolutions make 36 tokens of a picture, and a decoder reads them before the text.

  Visual tokens attend to one another, tokens of the text to the picture and to the text before
  them. Parameters: `conv_0` to `conv_2`, `project`, `place` (of the visual tokens), `embed` (also
  the output matrix), `layers_0` and so on, `final_norm`.

  Attributes:
    vocab_size: number v of tokens.
    dim: width of a token; `num_heads` divides it.
    num_layers: number of blocks.
    num_heads: attention heads.

  Example::

    model = SceneQuestionAnswerer(vocab_size=len(data.PROMPT_WORDS))
    params = model.init(key, scenes.images, prompts.tokens)["params"]
    fns = model.decode_fns(params, scenes.images)
    lengths = (prompts.tokens != 0).sum(1)
    output = samplers.generate(key, fns, prompts.tokens, lengths, max_new_tokens=3, eos_token_id=1)

  Raises:
    ValueError: if a size is below 1, or `num_heads` does not divide `dim`.

  Reference: the model of our setting for Qian et al., How Easy is It to Fool Your Multimodal LLMs?,
  2024, https://arxiv.org/abs/2402.13220; visual tokens as in Liu et al., Visual Instruction Tuning,
  NeurIPS 2023, https://arxiv.org/abs/2304.08485.
  """

  vocab_size: int
  dim: int = 64
  num_layers: int = 2
  num_heads: int = 4

  def __post_init__(self):
    super().__post_init__()
    sizes = ("vocab_size", "dim", "num_layers", "num_heads")
    check_at_least(1, **{name: getattr(self, name) for name in sizes})
    self._config()

  def _config(self):
    return decoder_config(
      vocab_size=self.vocab_size,
      hidden_size=self.dim,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
    )

  def setup(self):
    """Makes the layers."""
    config = self._config()
    self.conv = [Conv(width, (3, 3), strides=stride) for width, stride in zip(_WIDTHS, _STRIDES)]
    self.project = Linear(self.dim, use_bias=True)
    scale = nn.initializers.normal(self.dim**-0.5)
    self.place = self.param("place", scale, (_NUM_VISUAL, self.dim))
    self.embed = nn.Embed(self.vocab_size, self.dim, embedding_init=scale)
    self.layers = [Block(config) for _ in range(self.num_layers)]
    self.final_norm = Norm(config.norm, config.norm_eps)

  def __call__(self, images: chex.Array, tokens: chex.Array) -> jax.Array:
    """Scores the token after each token of the text.

    Args:
      images: float `[b, 24, 24, 3]`.
      tokens: int `[b, T]`. Traced ones outside the vocabulary give NaN in their own row.

    Returns:
      Scores, float32 `[b, T, v]`.

    Raises:
      ValueError: if shapes do not agree, or a concrete token lies outside the vocabulary.
      TypeError: if images are no floats or tokens no integers.
    """
    check_arrays(
      images=(images, f"float [b, {_IMAGE_SIDE}, {_IMAGE_SIDE}, 3]"), tokens=(tokens, "int [b, T]")
    )
    words = self._embed(tokens)
    hidden = jnp.concatenate([self._see(images), words], axis=1)
    positions = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2])
    hidden, _ = self._run(hidden, positions, None, None)
    return self._scores(hidden[:, _NUM_VISUAL:])

  def decode_fns(self, params: chex.ArrayTree, images: chex.Array) -> DecodeFns:
    """The decode functions of the model that looks at given pictures.

    The picture fills the first 36 slots of each row of the cache, and positions count the text.

    Args:
      params: the parameters.
      images: float `[b, 24, 24, 3]`, one for each row of the prompts.

    Returns:
      The `DecodeFns`, whose leaves are the parameters and the pictures. Their `init_cache` raises
      ValueError unless it is asked for b rows.
    """
    check_arrays(images=(images, f"float [b, {_IMAGE_SIDE}, {_IMAGE_SIDE}, 3]"))
    return DecodeFns(
      with_params(self, "see_into_cache", params, images),
      with_params(self, "continue_text", params),
    )

  def see_into_cache(self, images: chex.Array, batch_size: int, max_length: int) -> KVCache:
    """Makes a cache that holds the pictures and no text.

    Args:
      images: float `[b, 24, 24, 3]`.
      batch_size: number of rows, b.
      max_length: slots for the text.

    Returns:
      The cache, with 36 slots more.

    Raises:
      ValueError: if there are not as many pictures as rows, or `max_length` < 1.
    """
    check_at_least(1, max_length=max_length)
    if len(images) != batch_size:
      raise ValueError(f"images must have one row per prompt, got {len(images)} and {batch_size}.")
    config = self._config()
    slots = (batch_size, _NUM_VISUAL + max_length)
    shape = (*slots, config.num_layers, config.num_kv_heads, config.head_dim)
    hidden = self._see(images)
    positions = jnp.broadcast_to(jnp.arange(_NUM_VISUAL), hidden.shape[:2])
    empty = KVCache(*(jnp.zeros(shape, hidden.dtype) for _ in range(2)))
    _, cache = self._run(hidden, positions, empty, positions)
    return cache

  def continue_text(
    self, tokens: chex.Array, cache: KVCache, positions: chex.Array
  ) -> tuple[jax.Array, KVCache]:
    """Scores the token after each of the given ones, which a cache does not hold yet.

    Args:
      tokens: int `[b, t]`.
      cache: pictures, and text before.
      positions: places of the tokens in the text, int `[b, t]`; writes beyond it are dropped.

    Returns:
      Scores, float32 `[b, t, v]`, and the cache.
    """
    max_length = cache.keys.shape[1] - _NUM_VISUAL
    slots = _NUM_VISUAL + cache_slots(positions, max_length)
    hidden, cache = self._run(self._embed(tokens), _NUM_VISUAL + positions, cache, slots)
    return self._scores(hidden), cache

  def _see(self, images: chex.Array) -> jax.Array:
    hidden = images
    for conv in self.conv:
      hidden = nn.relu(conv(hidden))
    visual = self.project(hidden.reshape(len(images), _NUM_VISUAL, -1))
    return visual + self.place[None]

  def _embed(self, tokens: chex.Array) -> jax.Array:
    return self.embed(as_classes("tokens", tokens, self.vocab_size))

  def _run(self, hidden, positions, cache, slots) -> tuple[jax.Array, KVCache | None]:
    """The blocks; `positions` count the picture and the text."""
    num_keys = hidden.shape[1] if cache is None else cache.keys.shape[1]
    config = self._config()
    settings = dataclasses.asdict(config.rope)
    turn = rotary_frequencies(head_dim=config.head_dim, max_positions=num_keys, **settings)
    keys = jnp.arange(num_keys)[None, None]
    mask = (keys < _NUM_VISUAL) | (keys <= positions[..., None])
    context = AttentionContext(positions, *turn, mask[:, None], None, slots)
    carry = hidden, cache
    for i, block in enumerate(self.layers):
      carry, _ = block(carry, i, context)
    return carry

  def _scores(self, hidden: jax.Array) -> jax.Array:
    return product(self.final_norm(hidden), self.embed.embedding, transposed=True)
