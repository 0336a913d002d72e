"""The decoder language model: GPT-2, Llama, Mistral and Qwen in one module, with a cache."""

import dataclasses
import math
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxlab._checks import as_classes, check_arrays, check_at_least, check_range
from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.decoder_blocks import (
  AttentionContext,
  Block,
  KVCache,
  Linear,
  Norm,
  cache_slots,
  product,
)
from jaxlab.models.rotary import rotary_frequencies

# Heads and inner units over the mesh axis `model`; the pairs are what `training.shard_params`
# takes. The embedding is split by width, since vocabulary sizes are often odd.
DECODER_SHARDING_RULES = (
  (r"attention/(q|k|v)/kernel$", PartitionSpec(None, None, "model")),
  (r"attention/(q|k|v)/bias$", PartitionSpec(None, "model")),
  (r"attention/out/kernel$", PartitionSpec(None, "model", None)),
  (r"mlp/(gate|up)/kernel$", PartitionSpec(None, None, "model")),
  (r"mlp/(gate|up)/bias$", PartitionSpec(None, "model")),
  (r"mlp/down/kernel$", PartitionSpec(None, "model", None)),
  (r"(embed|position)/embedding$", PartitionSpec(None, "model")),
  (r"lm_head/kernel$", PartitionSpec("model", None)),
)


class DecoderOutput(NamedTuple):
  """The output of a call of the model.

  Attributes:
    logits: scores of the next token, float32 `[b, t, v]`.
    cache: the cache after the call, None without one.
    hidden: the residual stream after the final norm, `[b, t, d]`, None unless asked for.
  """

  logits: chex.Array
  cache: KVCache | None
  hidden: chex.Array | None


class DecoderLM(nn.Module):
  """A causal transformer of the GPT-2, Llama, Mistral, Qwen2 or Qwen3 family.

  Parameters: `embed`, `position` (learned), `layers` (every leaf with a leading layer axis),
  `final_norm`, `lm_head` (absent when tied). With `mutable=["intermediates"]` every block leaves
  `hidden_states` (after the block), `attention_outputs` and `mlp_outputs` (what its branches add):
  `intermediates["layers"][name][0]` is `[layers, b, t, d]`.

  Attributes:
    config: the architecture.
    dtype: type of the computation; sums, norms and softmax are float32.
    param_dtype: type of the parameters.
    remat: whether a gradient recomputes each layer instead of storing its activations.
    dropout_rate: dropout of the embeddings and of both branches of a block, random stream
      "dropout".
    unstacked: whether every layer has separate parameters (and intermediates), `layers_0`,
      `layers_1` and so on, as `for_decoding` returns them. Gradients of small models take less
      time on a CPU than through the scan over layers.

  Example::

    model = DecoderLM(decoder_config(vocab_size=64, hidden_size=64, num_layers=2, num_heads=4))
    params = model.init(key, tokens)["params"]
    logits = model.apply({"params": params}, tokens).logits
    cache = model.init_cache(batch_size, max_length)
    out = model.apply({"params": params}, tokens, positions, cache=cache)

  Reference: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; Touvron et
  al., LLaMA, https://arxiv.org/abs/2302.13971; Qwen Team, https://arxiv.org/abs/2407.10671.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool = False
  dropout_rate: float = 0.0
  unstacked: bool = False

  def __post_init__(self):
    super().__post_init__()
    check_range("dropout_rate", self.dropout_rate, "[0, 1)")

  @nn.compact
  def __call__(
    self,
    tokens: chex.Array,
    positions: chex.Array | None = None,
    *,
    cache: KVCache | None = None,
    segment_ids: chex.Array | None = None,
    attention_mask: chex.Array | None = None,
    return_hidden: bool = False,
    deterministic: bool = True,
  ) -> DecoderOutput:
    """Scores the next token after each token.

    With a cache, keys and values are written at `positions` (those out of range are dropped) and a
    query at position q sees slots 0..q, in whatever order they were written. There is no counter:
    to rewind, pass smaller positions.

    Args:
      tokens: `[b, t]` integers. Traced ones outside the vocabulary give NaN in their own row.
      positions: `[b, t]`; None counts from 0, restarting in each segment.
      cache: keys and values of earlier calls; None for training.
      segment_ids: `[b, t]`, equal within each of the sequences packed into a row; tokens see their
        own segment only.
      attention_mask: `[b, t, t]` or `[b, 1, t, t]`, True where the query (row) may see the key. It
        replaces the causal rule, segments and sliding windows; all True is a bidirectional encoder.
        A row without any key gives a finite output.
      return_hidden: whether the output has `hidden`.
      deterministic: False applies dropout.

    Returns:
      A `DecoderOutput`.

    Raises:
      TypeError: if tokens are not integers or a mask is not boolean.
      ValueError: if shapes do not agree, a concrete token lies outside the vocabulary, a cache is
        combined with `attention_mask` or `segment_ids`, or there are more tokens than learned
        positions.
    """
    cfg = self.config
    check_arrays(
      tokens=(tokens, "int [b, t]"),
      positions=(positions, "[b, t]"),
      segment_ids=(segment_ids, "[b, t]"),
    )
    tokens = as_classes("tokens", tokens, cfg.vocab_size)
    length = tokens.shape[1]
    if cache is not None and not (attention_mask is None and segment_ids is None):
      raise ValueError("attention_mask and segment_ids must be None with a cache.")
    if cache is None and cfg.positions == "learned" and length > cfg.max_positions:
      raise ValueError(f"{length} tokens exceed max_positions {cfg.max_positions}.")
    if positions is None:
      positions = _default_positions(tokens, segment_ids)

    embed = nn.Embed(
      cfg.vocab_size,
      cfg.hidden_size,
      embedding_init=nn.initializers.normal(cfg.hidden_size**-0.5),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="embed",
    )
    hidden = embed(tokens)
    if cfg.positions == "learned":
      hidden += nn.Embed(
        cfg.max_positions,
        cfg.hidden_size,
        embedding_init=nn.initializers.normal(cfg.hidden_size**-0.5),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="position",
      )(jnp.clip(positions, 0, cfg.max_positions - 1))
    hidden = nn.Dropout(self.dropout_rate, deterministic=deterministic)(hidden)

    context = _context(cfg, positions, cache, segment_ids, attention_mask)
    block = Block
    if self.remat and cache is None:
      block = nn.remat(Block, prevent_cse=False)
    options = (cfg, self.dtype, self.param_dtype, self.dropout_rate, deterministic)
    carry = hidden, cache
    if self.unstacked:
      for i in range(cfg.num_layers):
        carry, _ = block(*options, name=f"{_LAYER}{i}")(carry, i, context)
    else:
      layers = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=cfg.num_layers,
      )(*options, name="layers")
      carry, _ = layers(carry, jnp.arange(cfg.num_layers), context)
    hidden, cache = carry

    hidden = Norm(cfg.norm, cfg.norm_eps, self.param_dtype, name="final_norm")(hidden)
    if cfg.tie_embeddings:
      logits = product(hidden, embed.embedding.astype(self.dtype), transposed=True)
    else:
      types = (self.dtype, self.param_dtype, jnp.float32)
      logits = Linear(cfg.vocab_size, False, *types, name="lm_head")(hidden)
    return DecoderOutput(logits, cache, hidden if return_hidden else None)

  def for_decoding(self, params: chex.ArrayTree) -> tuple["DecoderLM", chex.ArrayTree]:
    """Unstacks the layers' parameters, for loops of calls with few tokens.

    A scan over layers copies the parameters of each layer before use, which takes most of the time
    of a call with one token. Here they are copied once.

    Args:
      params: parameters with a leading layer axis in `layers`; parameters that are already
        unstacked are returned as they are.

    Returns:
      A model and parameters with the same outputs.
    """
    if self.unstacked:
      return self, params
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = {
      f"{_LAYER}{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
      for i in range(self.config.num_layers)
    }
    return self.clone(unstacked=True), rest | layers

  def init_cache(self, batch_size: int, max_length: int) -> KVCache:
    """Makes an empty cache in the type of the computation; see `init_cache` of the module.

    Args:
      batch_size: number of rows.
      max_length: number of slots per row.

    Returns:
      The cache.
    """
    return init_cache(self.config, batch_size=batch_size, max_length=max_length, dtype=self.dtype)


def init_cache(
  config: DecoderConfig, *, batch_size: int, max_length: int, dtype: Any = jnp.float32
) -> KVCache:
  """Makes an empty cache.

  Args:
    config: the architecture.
    batch_size: number of rows.
    max_length: number of slots per row.
    dtype: type of keys and values.

  Returns:
    Zeros, `[batch_size, max_length, layers, kv_heads, head_dim]` each.

  Raises:
    ValueError: if a size is below 1, or `max_length` exceeds learned positions.
  """
  check_at_least(1, batch_size=batch_size, max_length=max_length)
  if config.positions == "learned" and max_length > config.max_positions:
    raise ValueError(f"max_length {max_length} exceeds max_positions {config.max_positions}.")
  shape = (batch_size, max_length, config.num_layers, config.num_kv_heads, config.head_dim)
  return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def num_parameters(config: DecoderConfig) -> int:
  """Counts the parameters.

  Args:
    config: the architecture.

  Returns:
    The number of parameters; a tied output matrix counts once.
  """
  return sum(_parameter_sizes(config).values())


def flops_per_token(config: DecoderConfig, context_length: int) -> int:
  """Floating-point operations of the forward pass for one token.

  Two for each parameter outside look-up tables (learned positions, and an untied token embedding),
  and four for each number that attention reads.

  Args:
    config: the architecture.
    context_length: tokens that it attends to.

  Returns:
    The number of operations.

  Raises:
    ValueError: if `context_length` is negative.
  """
  check_at_least(0, context_length=context_length)
  tables = ("position/embedding",) if config.tie_embeddings else _TABLES
  matrices = sum(size for name, size in _parameter_sizes(config).items() if name not in tables)
  attention = 4 * config.num_layers * config.num_heads * config.head_dim * context_length
  return 2 * matrices + attention


_LAYER = "layers_"
_TABLES = ("position/embedding", "embed/embedding")


def _parameter_sizes(config: DecoderConfig) -> dict[str, int]:
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(DecoderLM(config).init, jax.random.key(0), tokens)["params"]
  flat = traverse_util.flatten_dict(shapes, sep="/")
  return {name: math.prod(leaf.shape) for name, leaf in flat.items()}


def _default_positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """Counts from 0, restarting where the segment changes."""
  steps = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  if segment_ids is None:
    return steps
  starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
  return steps - jax.lax.cummax(jnp.where(starts, steps, 0), axis=1)


def _context(config, positions, cache, segment_ids, attention_mask) -> AttentionContext:
  """What the layers share: frequencies, masks, the cache."""
  batch, length = positions.shape
  num_keys = length if cache is None else cache.keys.shape[1]
  frequencies = (None, 1.0)
  if config.rope is not None:
    settings = dataclasses.asdict(config.rope)
    frequencies = rotary_frequencies(head_dim=config.head_dim, max_positions=num_keys, **settings)
  if attention_mask is not None:
    if attention_mask.ndim == 3:
      attention_mask = attention_mask[:, None]
    form = f"bool [{batch}, 1, {length}, {length}]"
    check_arrays(attention_mask=(attention_mask, form))
    return AttentionContext(positions, *frequencies, attention_mask, None, None)
  if cache is None:
    queries, slots = jnp.arange(length)[None, :, None], None
  else:
    form = f"[{batch}, s, {config.num_layers}, {config.num_kv_heads}, {config.head_dim}]"
    check_arrays(**{"cache.keys": (cache.keys, form), "cache.values": (cache.values, form)})
    queries, slots = positions[:, :, None], cache_slots(positions, num_keys)
  distance = queries - jnp.arange(num_keys)[None, None]
  mask = distance >= 0
  if segment_ids is not None:
    mask &= segment_ids[:, :, None] == segment_ids[:, None, :]
  sliding = None
  if config.sliding_window is not None:
    sliding = (mask & (distance < config.sliding_window))[:, None]
  if cache is None and segment_ids is None and sliding is None:
    return AttentionContext(positions, *frequencies, None, None, None)
  return AttentionContext(positions, *frequencies, mask[:, None], sliding, slots)
