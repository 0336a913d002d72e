"""The parts of a decoder language model: projections, norms, attention with its cache, blocks."""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.rotary import apply_rotary


class KVCache(NamedTuple):
  """Keys (after rotation) and values of all layers, one slot per position.

  Attributes:
    keys: `[b, max_length, layers, kv_heads, head_dim]`.
    values: `[b, max_length, layers, kv_heads, head_dim]`.
  """

  keys: chex.Array
  values: chex.Array


class AttentionContext(NamedTuple):
  """Inputs that all layers of one call share.

  Attributes:
    positions: position of each token, `[b, t]`.
    inv_freq: rotary frequencies, None with learned positions.
    attention_factor: of the rotary frequencies.
    mask: which key a query may see, broadcast to `[b, heads, t, keys]`; None is causal.
    sliding_mask: the same for layers with a sliding window, None if there are none.
    slots: slot of the cache that each token writes, `[b, t]`; None without a cache.
  """

  positions: chex.Array
  inv_freq: chex.Array | None
  attention_factor: float
  mask: chex.Array | None
  sliding_mask: chex.Array | None
  slots: chex.Array | None


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
      bias = self.param("bias", zeros, (self.features,), self.param_dtype)
      outputs += jnp.expand_dims(bias, tuple(range(outputs.ndim - 1)))
    return outputs.astype(self.out_dtype or self.dtype)


def product(inputs: chex.Array, kernel: chex.Array, *, transposed: bool = False) -> jax.Array:
  """Matrix product accumulated and returned in float32 or wider.

  Args:
    inputs: `[..., in]`.
    kernel: `[in, out]`, or `[out, in]` if transposed.
    transposed: whether the kernel is `[out, in]`.

  Returns:
    `[..., out]`.
  """
  contracted = ((inputs.ndim - 1,), (1 if transposed else 0,))
  wide = jnp.promote_types(inputs.dtype, jnp.float32)
  return jax.lax.dot_general(inputs, kernel, (contracted, ((), ())), preferred_element_type=wide)


class Norm(nn.Module):
  """Layer normalization or root-mean-square normalization, with statistics in float32.

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
    """Normalizes the last axis."""
    shape, dtype = inputs.shape[-1:], inputs.dtype
    leading = tuple(range(inputs.ndim - 1))
    scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
    scale = jnp.expand_dims(scale, leading)
    x = inputs.astype(jnp.promote_types(dtype, jnp.float32))
    if self.kind == "layer_norm":
      x -= x.mean(axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
    if self.kind == "rms_norm":
      # Rounded before the scale, as the checkpoints were trained.
      return x.astype(dtype) * scale.astype(dtype)
    bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
    return (x * scale + jnp.expand_dims(bias, leading)).astype(dtype)


class Block(nn.Module):
  """Attention and a feed-forward part, each a residual branch behind a norm.

  Attributes:
    config: the architecture.
    dtype: type of the computation.
    param_dtype: type of the parameters.
    dropout_rate: dropout of both branches.
    deterministic: whether dropout is off.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  dropout_rate: float = 0.0
  deterministic: bool = True

  @nn.compact
  def __call__(
    self,
    carry: tuple[chex.Array, KVCache | None],
    layer: chex.Numeric,
    context: AttentionContext,
  ) -> tuple[tuple[jax.Array, KVCache | None], None]:
    """Runs layer number `layer`.

    Args:
      carry: residual stream `[b, t, d]`, and the cache or None.
      layer: index of the layer, scalar.
      context: what all layers share.

    Returns:
      The new carry, and None for a scan to stack.
    """
    cfg = self.config
    hidden, cache = carry
    drop = nn.Dropout(self.dropout_rate, deterministic=self.deterministic)

    def norm(name):
      return Norm(cfg.norm, cfg.norm_eps, self.param_dtype, name=name)

    attention = Attention(cfg, self.dtype, self.param_dtype, name="attention")
    attended, cache = attention(norm("norm1")(hidden), cache, layer, context)
    attended = drop(attended)
    hidden = hidden + attended
    fed = drop(FeedForward(cfg, self.dtype, self.param_dtype, name="mlp")(norm("norm2")(hidden)))
    hidden = hidden + fed
    self.sow("intermediates", "attention_outputs", attended)
    self.sow("intermediates", "mlp_outputs", fed)
    self.sow("intermediates", "hidden_states", hidden)
    return (hidden, cache), None


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
  # The residual stream sums 2 * num_layers branches; this keeps its initial scale near that of one.
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
  def __call__(
    self,
    inputs: chex.Array,
    cache: KVCache | None,
    layer: chex.Numeric,
    context: AttentionContext,
  ) -> tuple[jax.Array, KVCache | None]:
    """Maps `[b, t, d]` to `[b, t, d]`; returns also the cache with the new keys and values."""
    cfg = self.config

    def project(name, heads):
      width = heads * cfg.head_dim
      x = Linear(width, cfg.qkv_bias, self.dtype, self.param_dtype, name=name)(inputs)
      return x.reshape(*x.shape[:-1], heads, cfg.head_dim)

    q, k = project("q", cfg.num_heads), project("k", cfg.num_kv_heads)
    v = project("v", cfg.num_kv_heads)
    if cfg.qk_norm:
      q = Norm("rms_norm", cfg.norm_eps, self.param_dtype, name="q_norm")(q)
      k = Norm("rms_norm", cfg.norm_eps, self.param_dtype, name="k_norm")(k)
    if context.inv_freq is not None:
      turn = (context.positions, context.inv_freq)
      q = apply_rotary(q, *turn, attention_factor=context.attention_factor)
      k = apply_rotary(k, *turn, attention_factor=context.attention_factor)
    mask = context.mask
    if context.sliding_mask is not None:
      mask = jnp.where(layer >= cfg.first_sliding_layer, context.sliding_mask, mask)
    if cache is None:
      mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None)
    else:
      # Written before it is read: a loop that carries the cache then never copies it.
      cache = write_cache(cache, KVCache(k, v), context.slots, layer)
      mixed = _attend(q, cache.keys[:, :, layer], cache.values[:, :, layer], mask)
    out = Linear(
      cfg.hidden_size,
      cfg.attention_out_bias,
      self.dtype,
      self.param_dtype,
      init_scale=_branch_scale(cfg),
      name="out",
    )
    return out(mixed.reshape(*inputs.shape[:-1], -1)), cache


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


def cache_slots(positions: chex.Array, max_length: int) -> jax.Array:
  """Which slot of the cache each token of a call writes.

  Args:
    positions: `[b, t]`.
    max_length: number of slots.

  Returns:
    The positions, or `max_length` (which drops the write) where they lie outside [0, max_length)
    or a later token has the same one, so that the result does not depend on the order of writes;
    int32 `[b, t]`.
  """
  inside = (positions >= 0) & (positions < max_length)
  later = jnp.triu(jnp.ones((positions.shape[1],) * 2, bool), 1)[None]
  same = positions[:, :, None] == positions[:, None, :]
  written_again = jnp.any(same & later, axis=-1)
  return jnp.where(inside & ~written_again, positions, max_length).astype(jnp.int32)


def write_cache(cache: KVCache, new: KVCache, slots: chex.Array, layer: chex.Numeric) -> KVCache:
  """Writes a call's keys and values of one layer.

  Args:
    cache: the cache before.
    new: keys and values of the layer, `[b, t, kv_heads, head_dim]`.
    slots: where they go, `cache_slots` of the positions.
    layer: index of the layer, scalar.

  Returns:
    The cache after, in its old type.
  """

  # `vmap` over rows, so that the compiler keeps a sharded batch on its devices.
  @jax.vmap
  def write(old, fresh, slots):
    return old.at[slots, layer].set(fresh.astype(old.dtype), mode="drop")

  return KVCache(*(write(old, fresh, slots) for old, fresh in zip(cache, new)))
