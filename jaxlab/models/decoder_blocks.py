"""The parts of a decoder language model: projections, norms, attention with its cache, blocks."""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.rotary import apply_rotary


class KVCache(NamedTuple):
  """Keys (after rotation) and values of all layers, a slot a position.

  Attributes:
    keys: `[b, max_length, layers, kv_heads, head_dim]`.
    values: `[b, max_length, layers, kv_heads, head_dim]`.
  """

  keys: chex.Array
  values: chex.Array


class AttentionContext(NamedTuple):
  """What all layers of one call share.

  Attributes:
    positions: position of each token, `[b, t]`.
    inv_freq: rotary frequencies, None with learned positions.
    attention_factor: of the rotary frequencies.
    mask: which key a query may see, broadcast to `[b, heads, t, keys]`; None is causal.
    sliding_mask: the same for layers with a sliding window, None if there are none.
    cache: the cache before this call, None without one.
    writers: for each slot the token of this call that is written to it, -1 for none,
      `[b, max_length]`; None without a cache.
  """

  positions: chex.Array
  inv_freq: chex.Array | None
  attention_factor: float
  mask: chex.Array | None
  sliding_mask: chex.Array | None
  cache: KVCache | None
  writers: chex.Array | None


class Linear(nn.Module):
  """Affine map that accumulates in float32.

  Attributes:
    features: width of the output.
    use_bias: whether it adds a bias.
    dtype: type of the operands.
    param_dtype: type of the parameters.
    out_dtype: type of the result, None for `dtype`.
    init_scale: factor on the standard deviation 1/sqrt(in) of the initial kernel.
  """

  features: int
  use_bias: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  out_dtype: Any = None
  init_scale: float = 1.0

  @nn.compact
  def __call__(self, inputs: chex.Array) -> jax.Array:
    """Maps `[..., in]` to `[..., features]`."""
    width = inputs.shape[-1]
    init = nn.initializers.normal(self.init_scale * width**-0.5)
    kernel = self.param("kernel", init, (width, self.features), self.param_dtype)
    outputs = product(inputs.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      zeros = nn.initializers.zeros
      outputs += self.param("bias", zeros, (self.features,), self.param_dtype)
    return outputs.astype(self.out_dtype or self.dtype)


def product(inputs: chex.Array, kernel: chex.Array, *, transposed: bool = False) -> jax.Array:
  """Matrix product accumulated and returned in float32 or wider.

  Args:
    inputs: `[..., in]`.
    kernel: `[in, out]`, or `[out, in]` if transposed.
    transposed: whether the kernel lies the other way.

  Returns:
    `[..., out]`.
  """
  contracted = ((inputs.ndim - 1,), (1 if transposed else 0,))
  wide = jnp.promote_types(inputs.dtype, jnp.float32)
  return jax.lax.dot_general(inputs, kernel, (contracted, ((), ())), preferred_element_type=wide)


class Norm(nn.Module):
  """Layer normalisation or root-mean-square normalisation, with statistics in float32.

  Attributes:
    kind: "layer_norm" or "rms_norm".
    epsilon: added inside the root.
    param_dtype: type of the parameters.
  """

  kind: str
  epsilon: float
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: chex.Array) -> jax.Array:
    """Normalises the last axis."""
    shape, dtype = inputs.shape[-1:], inputs.dtype
    scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
    x = inputs.astype(jnp.promote_types(dtype, jnp.float32))
    if self.kind == "layer_norm":
      x -= x.mean(axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
    if self.kind == "rms_norm":
      # Rounded before the scale, as the checkpoints were trained.
      return x.astype(dtype) * scale.astype(dtype)
    bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
    return (x * scale + bias).astype(dtype)


class Block(nn.Module):
  """Attention and a feed-forward part, each a residual branch behind a norm.

  Attributes:
    config: the architecture.
    dtype: type of the computation.
    param_dtype: type of the parameters.
    dropout_rate: dropout of both branches.
    deterministic: whether there is no dropout.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  dropout_rate: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(self, hidden: chex.Array, layer: chex.Array, context: AttentionContext):
    """Runs layer number `layer`.

    Args:
      hidden: residual stream `[b, t, d]`.
      layer: index of the layer, scalar.
      context: what all layers share.

    Returns:
      The new residual stream, and with a cache the new keys and values `[b, t, kv_heads, head_dim]`
      (None without).
    """
    cfg = self.config
    drop = nn.Dropout(self.dropout_rate, deterministic=self.deterministic)

    def norm(name):
      return Norm(cfg.norm, cfg.norm_eps, self.param_dtype, name=name)

    attention = Attention(cfg, self.dtype, self.param_dtype, name="attention")
    attended, new = attention(norm("norm1")(hidden), layer, context)
    attended = drop(attended)
    hidden = hidden + attended
    fed = drop(FeedForward(cfg, self.dtype, self.param_dtype, name="mlp")(norm("norm2")(hidden)))
    hidden = hidden + fed
    self.sow("intermediates", "attention_outputs", attended)
    self.sow("intermediates", "mlp_outputs", fed)
    self.sow("intermediates", "hidden_states", hidden)
    return hidden, new


class FeedForward(nn.Module):
  """Two matrices with an activation between, or three with a gate.

  Attributes:
    config: the architecture.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: chex.Array) -> jax.Array:
    """Maps `[b, t, d]` to `[b, t, d]`."""
    cfg = self.config

    def linear(features, name, scale=1.0):
      types = (self.dtype, self.param_dtype)
      return Linear(features, cfg.mlp_bias, *types, init_scale=scale, name=name)

    inner = linear(cfg.intermediate_size, "up")(inputs)
    if cfg.gated_mlp:
      inner = _ACTIVATIONS[cfg.activation](linear(cfg.intermediate_size, "gate")(inputs)) * inner
    else:
      inner = _ACTIVATIONS[cfg.activation](inner)
    return linear(cfg.hidden_size, "down", _branch_scale(cfg))(inner)


_ACTIVATIONS = {
  "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "silu": nn.silu,
}


def _branch_scale(config: DecoderConfig) -> float:
  # The residual stream adds up 2 * num_layers branches, and should start with about their size.
  return (2 * config.num_layers) ** -0.5


class Attention(nn.Module):
  """Self-attention whose query heads share heads of keys and values.

  Attributes:
    config: the architecture.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: chex.Array, layer: chex.Array, context: AttentionContext):
    """Maps `[b, t, d]` to `[b, t, d]`; returns also the new keys and values with a cache."""
    cfg = self.config

    def project(name, heads):
      width = heads * cfg.head_dim
      x = Linear(width, cfg.qkv_bias, self.dtype, self.param_dtype, name=name)(inputs)
      return x.reshape(*x.shape[:-1], heads, cfg.head_dim)

    q, k = project("q", cfg.num_heads), project("k", cfg.num_kv_heads)
    v = project("v", cfg.num_kv_heads)
    if context.inv_freq is not None:
      turn = (context.positions, context.inv_freq)
      q = apply_rotary(q, *turn, attention_factor=context.attention_factor)
      k = apply_rotary(k, *turn, attention_factor=context.attention_factor)
    mask = context.mask
    if context.sliding_mask is not None:
      mask = jnp.where(layer >= cfg.first_sliding_layer, context.sliding_mask, mask)
    if context.cache is None:
      mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None)
      new = None
    else:
      keys, values = (
        _with_new(old[:, :, layer], fresh, context.writers)
        for old, fresh in zip(context.cache, (k, v))
      )
      mixed = _attend(q, keys, values, mask)
      new = KVCache(k, v)
    out = Linear(
      cfg.hidden_size,
      cfg.attention_out_bias,
      self.dtype,
      self.param_dtype,
      init_scale=_branch_scale(cfg),
      name="out",
    )
    return out(mixed.reshape(*inputs.shape[:-1], -1)), new


def _with_new(old: jax.Array, new: jax.Array, writers: jax.Array) -> jax.Array:
  """One layer's slots `[b, max_length, kv_heads, head_dim]` after this call's writes."""
  written = (writers >= 0)[..., None, None]
  if new.shape[1] > 1:
    new = jnp.take_along_axis(new, jnp.maximum(writers, 0)[..., None, None], axis=1)
  return jnp.where(written, new.astype(old.dtype), old)


def _attend(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
  """Attention over cached slots; for one query on CPU faster than `dot_product_attention`."""
  b, t, heads, head_dim = q.shape
  kv_heads = keys.shape[2]
  wide = jnp.promote_types(q.dtype, jnp.float32)
  grouped = q.reshape(b, t, kv_heads, heads // kv_heads, head_dim)
  keys, values = keys.astype(q.dtype), values.astype(q.dtype)
  scores = jnp.einsum("btkgd,bskd->bkgts", grouped, keys, preferred_element_type=wide)
  scores = jnp.where(mask[:, :, None], scores * head_dim**-0.5, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values, preferred_element_type=wide)
  return mixed.reshape(q.shape).astype(q.dtype)


def slot_writers(positions: chex.Array, max_length: int) -> jax.Array:
  """Which token of a call writes each slot of the cache.

  Args:
    positions: `[b, t]`; those outside [0, max_length) write nothing.
    max_length: number of slots.

  Returns:
    Index of the last token with that position, -1 where there is none, int32 `[b, max_length]`.
  """
  tokens = jnp.arange(positions.shape[1], dtype=jnp.int32)[:, None]
  hits = positions[:, :, None] == jnp.arange(max_length)
  return jnp.max(jnp.where(hits, tokens, -1), axis=1)


def write_cache(
  cache: KVCache, new: KVCache, positions: chex.Array, writers: chex.Array
) -> KVCache:
  """Writes a call's keys and values of all layers, one scatter for the keys and one for the values.

  Layers only read the cache while they run, so a loop that carries it never copies it.

  Args:
    cache: the cache before the call.
    new: keys and values, `[layers, b, t, kv_heads, head_dim]`.
    positions: slots to write, `[b, t]`.
    writers: `slot_writers` of the positions.

  Returns:
    The cache after the call, in its old type.
  """
  batch, max_length = writers.shape
  rows = jnp.arange(batch)[:, None]
  slots = jnp.clip(positions, 0, max_length - 1)
  # One token a slot, so that the result does not depend on the order of writes.
  writes = jnp.take_along_axis(writers, slots, axis=1) == jnp.arange(positions.shape[1])
  slots = jnp.where(writes, slots, max_length)

  def write(old, fresh):
    return old.at[rows, slots].set(jnp.moveaxis(fresh, 0, 2).astype(old.dtype), mode="drop")

  return KVCache(*map(write, cache, new))
