"""Speech recognition by an encoder of frames and a decoder of tokens."""

import dataclasses
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_classes, check_arrays, check_at_least
from jaxlab.models.convolution import Conv
from jaxlab.models.decoder_architecture import DecoderConfig, decoder_config
from jaxlab.models.decoder_blocks import (
  Attention,
  AttentionContext,
  Block,
  FeedForward,
  KVCache,
  Linear,
  Norm,
  cache_slots,
  product,
)
from jaxlab.models.linen_methods import with_params
from jaxlab.models.rotary import rotary_frequencies
from jaxlab.samplers.decode_fns import DecodeFns

_NUM_CONVS = 2  # Each halves the number of frames.


class EncodedSpeech(NamedTuple):
  """What the encoder makes of utterances.

  Attributes:
    states: `[b, S, d]`, S = ceil(T / 4); 0 after the end.
    lengths: int32 `[b]`.
  """

  states: chex.Array
  lengths: chex.Array


class SpeechCache(NamedTuple):
  """What the decoder keeps between calls.

  Attributes:
    text: keys and values of the tokens.
    speech: keys and values of the encoder's states for each layer, `[b, S, layers, heads, d]`;
      never written.
    audible: which states there are, bool `[b, S]`.
  """

  text: KVCache
  speech: KVCache
  audible: chex.Array


class SpeechEncoderDecoder(nn.Module):
  """A transformer that reads frames with one part and writes tokens with another.

  Two convolutions keep every fourth frame, a pre-norm encoder attends in both directions, and each
  layer of the decoder attends to the tokens before and to the encoder's states. A layer of the
  decoder costs a sequential step per token, one of the encoder does not. Parameters: `conv_0`,
  `conv_1`, `encoder_0` and so on, `encoder_norm`, `embed` (also the output matrix), `decoder_0` and
  so on, `decoder_norm`.

  Attributes:
    num_encoder_layers: blocks of the encoder.
    num_decoder_layers: blocks of the decoder.
    dim: width d; `num_heads` divides it.
    vocab_size: number v of tokens.
    num_heads: attention heads.

  Example::

    model = SpeechEncoderDecoder(3, 3, dim=64, vocab_size=data.SPEECH_VOCAB_SIZE)
    frames, frame_lengths, tokens, _ = data.sample_utterances(key, num_samples=8)
    params = model.init(key, frames, frame_lengths, tokens)["params"]
    encoded = model.apply({"params": params}, frames, frame_lengths, method="encode")
    fns = model.decode_fns(params, encoded.states, encoded.lengths)
    ones = jnp.ones(8, int)
    output = samplers.generate(key, fns, tokens[:, :1], ones, max_new_tokens=26, eos_token_id=2)

  Raises:
    ValueError: if a size is below 1, or `num_heads` does not divide `dim`.

  Reference: Żelasko et al., Training and Inference Efficiency of Encoder-Decoder Speech Models,
  2025, https://arxiv.org/abs/2503.05931; Radford et al., Robust Speech Recognition via Large-Scale
  Weak Supervision, ICML 2023, https://arxiv.org/abs/2212.04356.
  """

  num_encoder_layers: int
  num_decoder_layers: int
  dim: int
  vocab_size: int
  num_heads: int = 4

  def __post_init__(self):
    super().__post_init__()
    sizes = ("num_encoder_layers", "num_decoder_layers", "dim", "vocab_size", "num_heads")
    check_at_least(1, **{name: getattr(self, name) for name in sizes})
    self._config(1)

  def _config(self, num_layers: int) -> DecoderConfig:
    return decoder_config(
      vocab_size=self.vocab_size,
      hidden_size=self.dim,
      num_layers=num_layers,
      num_heads=self.num_heads,
    )

  def setup(self):
    """Makes the layers."""
    encoder, decoder = map(self._config, (self.num_encoder_layers, self.num_decoder_layers))
    self.conv = [Conv(self.dim, (3,), strides=2, padding=1) for _ in range(_NUM_CONVS)]
    self.encoder = [Block(encoder) for _ in range(self.num_encoder_layers)]
    self.encoder_norm = Norm(encoder.norm, encoder.norm_eps)
    scale = nn.initializers.normal(self.dim**-0.5)
    self.embed = nn.Embed(self.vocab_size, self.dim, embedding_init=scale)
    self.decoder = [_DecoderBlock(decoder) for _ in range(self.num_decoder_layers)]
    self.decoder_norm = Norm(decoder.norm, decoder.norm_eps)

  def __call__(
    self, frames: chex.Array, frame_lengths: chex.Array, tokens: chex.Array
  ) -> jax.Array:
    """Scores the token after each given one.

    Args:
      frames: float `[b, T, f]`; those after the end have no effect.
      frame_lengths: int `[b]`, in [0, T].
      tokens: int `[b, U]`, from the start token on. Traced ones outside the vocabulary give NaN in
        their own row.

    Returns:
      Scores, float32 `[b, U, v]`.

    Raises:
      ValueError: if shapes do not agree, or a concrete token lies outside the vocabulary.
      TypeError: if frames are no floats, or lengths or tokens no integers.
    """
    check_arrays(
      frames=(frames, "float [b, T, f]"),
      frame_lengths=(frame_lengths, "int [b]"),
      tokens=(tokens, "int [b, U]"),
    )
    hidden = self._embed(tokens)
    states, lengths = self.encode(frames, frame_lengths)
    positions = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2])
    context = self._context(positions, hidden.shape[1], None, None)
    audible = _inside(lengths, states.shape[1])
    for i, block in enumerate(self.decoder):
      hidden, _ = block(hidden, None, i, context, block.listen(states), audible)
    return self._scores(hidden)

  def encode(self, frames: chex.Array, frame_lengths: chex.Array) -> EncodedSpeech:
    """Reads utterances.

    Args:
      frames: float `[b, T, f]`; those after the end have no effect.
      frame_lengths: int `[b]`, in [0, T].

    Returns:
      The `EncodedSpeech`.

    Raises:
      ValueError: if shapes do not agree.
      TypeError: if frames are no floats or lengths no integers.
    """
    check_arrays(frames=(frames, "float [b, T, f]"), frame_lengths=(frame_lengths, "int [b]"))
    lengths = jnp.asarray(frame_lengths).astype(jnp.int32)
    hidden = _silenced(frames, lengths)
    for conv in self.conv:
      lengths = (lengths + 1) // 2
      # Silence again, since the bias sounds after the end.
      hidden = _silenced(nn.relu(conv(hidden)), lengths)
    positions = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2])
    mask = _inside(lengths, hidden.shape[1])[:, None, None]
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], hidden.shape[1], hidden.shape[1]))
    context = self._context(positions, hidden.shape[1], mask, None)
    carry = hidden, None
    for i, block in enumerate(self.encoder):
      carry, _ = block(carry, i, context)
    return EncodedSpeech(_silenced(self.encoder_norm(carry[0]), lengths), lengths)

  def decode_fns(
    self, params: chex.ArrayTree, encoder_out: chex.Array, lengths: chex.Array
  ) -> DecodeFns:
    """The decode functions of the model that hears given utterances.

    Args:
      params: the parameters.
      encoder_out: `EncodedSpeech.states`, one for each row of the prompts, float `[b, S, d]`.
      lengths: `EncodedSpeech.lengths`, int `[b]`.

    Returns:
      The `DecodeFns`, whose leaves are the parameters and the utterances. Their `init_cache` raises
      ValueError unless it is asked for b rows.
    """
    check_arrays(
      encoder_out=(encoder_out, f"float [b, S, {self.dim}]"), lengths=(lengths, "int [b]")
    )
    return DecodeFns(
      with_params(self, "start_text", params, encoder_out, lengths),
      with_params(self, "continue_text", params),
    )

  def start_text(
    self, encoder_out: chex.Array, lengths: chex.Array, batch_size: int, max_length: int
  ) -> SpeechCache:
    """Makes a cache that holds the utterances and no text.

    Args:
      encoder_out: `[b, S, d]`.
      lengths: int `[b]`.
      batch_size: number of rows, b.
      max_length: slots for the text.

    Returns:
      The cache.

    Raises:
      ValueError: if there are not as many utterances as rows, or `max_length` < 1.
    """
    check_at_least(1, max_length=max_length)
    if len(encoder_out) != batch_size:
      raise ValueError(
        f"encoder_out must have one row per prompt, got {len(encoder_out)} and {batch_size}."
      )
    config = self._config(self.num_decoder_layers)
    heard = [block.listen(encoder_out) for block in self.decoder]
    speech = KVCache(*(jnp.stack(x, axis=2) for x in zip(*heard)))
    slots = (batch_size, max_length, config.num_layers, config.num_kv_heads, config.head_dim)
    text = KVCache(*(jnp.zeros(slots, x.dtype) for x in speech))
    return SpeechCache(text, speech, _inside(lengths, encoder_out.shape[1]))

  def continue_text(
    self, tokens: chex.Array, cache: SpeechCache, positions: chex.Array
  ) -> tuple[jax.Array, SpeechCache]:
    """Scores the token after each of the given ones, which a cache does not hold yet.

    Args:
      tokens: int `[b, t]`.
      cache: utterances, and text before.
      positions: places of the tokens in the text, int `[b, t]`; writes beyond it are dropped.

    Returns:
      Scores, float32 `[b, t, v]`, and the cache.
    """
    max_length = cache.text.keys.shape[1]
    mask = positions[..., None] >= jnp.arange(max_length)[None, None]
    slots = cache_slots(positions, max_length)
    context = self._context(positions, max_length, mask[:, None], slots)
    hidden, text = self._embed(tokens), cache.text
    for i, block in enumerate(self.decoder):
      heard = KVCache(*(x[:, :, i] for x in cache.speech))
      hidden, text = block(hidden, text, i, context, heard, cache.audible)
    return self._scores(hidden), cache._replace(text=text)

  def _context(self, positions, num_keys: int, mask, slots) -> AttentionContext:
    config = self._config(1)
    settings = dataclasses.asdict(config.rope)
    turn = rotary_frequencies(head_dim=config.head_dim, max_positions=num_keys, **settings)
    return AttentionContext(positions, *turn, mask, None, slots)

  def _embed(self, tokens: chex.Array) -> jax.Array:
    return self.embed(as_classes("tokens", tokens, self.vocab_size))

  def _scores(self, hidden: jax.Array) -> jax.Array:
    return product(self.decoder_norm(hidden), self.embed.embedding, transposed=True)


class _DecoderBlock(nn.Module):
  """Attention to the text, attention to the speech, and a feed-forward part."""

  config: DecoderConfig

  def setup(self):
    cfg = self.config
    self.norm1, self.norm2, self.norm3 = (Norm(cfg.norm, cfg.norm_eps) for _ in range(3))
    self.attention, self.mlp = Attention(cfg), FeedForward(cfg)
    self.speech_q, self.speech_k, self.speech_v = (Linear(cfg.hidden_size) for _ in range(3))
    self.speech_out = Linear(cfg.hidden_size, init_scale=(2 * cfg.num_layers) ** -0.5)

  def __call__(self, hidden, cache, layer, context, heard, audible):
    attended, cache = self.attention(self.norm1(hidden), cache, layer, context)
    hidden = hidden + attended
    queries = self._heads(self.speech_q(self.norm2(hidden)))
    mixed = jax.nn.dot_product_attention(queries, *heard, mask=audible[:, None, None])
    hidden = hidden + self.speech_out(mixed.reshape(hidden.shape))
    return hidden + self.mlp(self.norm3(hidden)), cache

  def listen(self, states: chex.Array) -> KVCache:
    """Keys and values of the encoder's states, `[b, S, heads, head_dim]` each."""
    return KVCache(self._heads(self.speech_k(states)), self._heads(self.speech_v(states)))

  def _heads(self, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)


def _inside(lengths: chex.Array, size: int) -> jax.Array:
  return jnp.arange(size)[None] < jnp.asarray(lengths)[:, None]


def _silenced(hidden: chex.Array, lengths: jax.Array) -> jax.Array:
  """Zeros after the end; a NaN there has no effect either."""
  return jnp.where(_inside(lengths, hidden.shape[1])[..., None], hidden, 0.0)
