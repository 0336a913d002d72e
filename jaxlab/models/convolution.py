"""Convolution that stays fast inside loops on every backend."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

# Above this size the patches of one layer cost too much memory. XLA's own convolution, although
# slow in a loop on CPU, does not need them.
MAX_PATCH_BYTES = 2**29


class Conv(nn.Module):
  """Convolution with the parameters and the results of `flax.linen.Conv`.

  XLA's CPU convolution is tens of times slower inside `scan`, `map` or `while_loop` than outside,
  and slow under `vmap` over kernels. On CPU this layer is therefore a product of patches and
  kernel (im2col), on other backends the native convolution. The choice is made when lowering for a
  backend, so one model serves all backends, with the same parameters. On CPU too, patches of more
  than `MAX_PATCH_BYTES` go to the native convolution, which is fast outside loops.

  Inputs are `[..., length, channels]` or `[..., height, width, channels]`, with any number of
  batch dimensions; outputs have `features` channels.

  Attributes:
    features: number of output channels.
    kernel_size: one or two spatial sizes; an int means one dimension.
    strides: step of the window, one for all dimensions or one per dimension.
    padding: "SAME", "VALID", an int, or per dimension an int or a pair (low, high).
    feature_group_count: groups into which input and output channels are split.
    kernel_dilation: spacing of kernel elements, one for all dimensions or one per dimension.
    use_bias: whether to add a bias.

  Raises:
    ValueError: if `kernel_size` has neither one nor two entries, another attribute does not fit
      it, or the groups do not divide the channels.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] = 1
  padding: str | int | Sequence[int | tuple[int, int]] = "SAME"
  feature_group_count: int = 1
  kernel_dilation: int | Sequence[int] = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, inputs: chex.Array) -> chex.Array:
    """Convolves.

    Args:
      inputs: `[..., length, channels]` or `[..., height, width, channels]`.

    Returns:
      `[..., out_length, features]` or `[..., out_height, out_width, features]`.
    """
    size = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
    if len(size) not in (1, 2):
      raise ValueError(f"kernel_size must have one or two entries, got {size}")
    rank, groups, channels = len(size), self.feature_group_count, inputs.shape[-1]
    if inputs.ndim <= rank:
      raise ValueError(f"inputs of shape {inputs.shape} lack dimensions for kernel_size {size}")
    if channels % groups or self.features % groups:
      raise ValueError(
        f"feature_group_count {groups} does not divide both {channels} channels and "
        f"{self.features} features"
      )
    strides = _per_dimension("strides", self.strides, rank)
    dilation = _per_dimension("kernel_dilation", self.kernel_dilation, rank)
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (*size, channels // groups, self.features)
    )
    bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
    inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias)

    batch, spatial = inputs.shape[: -rank - 1], inputs.shape[-rank - 1 : -1]
    inputs = inputs.reshape(-1, *inputs.shape[-rank - 1 :])
    settings = dict(
      strides=strides,
      padding=_explicit_padding(self.padding, spatial, size, strides, dilation),
      dilation=dilation,
      groups=groups,
    )
    native = partial(_native, **settings)
    if not 0 < _patch_bytes(inputs, kernel, **settings) <= MAX_PATCH_BYTES:
      outputs = native(inputs, kernel)
    else:
      outputs = jax.lax.platform_dependent(
        inputs, kernel, cpu=partial(_im2col, **settings), default=native
      )
    if bias is not None:
      outputs = outputs + jnp.expand_dims(bias, tuple(range(outputs.ndim - 1)))
    return outputs.reshape(*batch, *outputs.shape[1:])


def _per_dimension(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
  values = (value,) * rank if isinstance(value, int) else tuple(value)
  if len(values) != rank or min(values) < 1:
    raise ValueError(f"{name} must be one or {rank} positive numbers, got {value}")
  return values


def _explicit_padding(padding, spatial, size, strides, dilation) -> tuple[tuple[int, int], ...]:
  """Pairs (low, high) per dimension, for any form of the padding."""
  if isinstance(padding, str):
    if padding not in ("SAME", "VALID"):
      raise ValueError(f"padding must be 'SAME', 'VALID' or numbers, got {padding!r}")
    window = [(k - 1) * d + 1 for k, d in zip(size, dilation)]
    return tuple(jax.lax.padtype_to_pads(spatial, window, strides, padding))
  pads = (padding,) * len(size) if isinstance(padding, int) else tuple(padding)
  if len(pads) != len(size):
    raise ValueError(f"padding must have {len(size)} entries as kernel_size has, got {padding}")
  return tuple((p, p) if isinstance(p, int) else tuple(p) for p in pads)


def _output_spatial(inputs, kernel, strides, padding, dilation) -> tuple[int, ...]:
  """Positions of the window per spatial dimension."""
  return tuple(
    max(0, (n + low + high - (k - 1) * d - 1) // s + 1)
    for n, k, s, (low, high), d in zip(inputs.shape[1:-1], kernel.shape, strides, padding, dilation)
  )


def _patch_bytes(inputs, kernel, strides, padding, dilation, groups) -> int:
  del groups
  positions = math.prod(_output_spatial(inputs, kernel, strides, padding, dilation))
  elements = inputs.shape[0] * positions * math.prod(kernel.shape[:-2]) * inputs.shape[-1]
  return elements * inputs.dtype.itemsize


def _native(inputs, kernel, strides, padding, dilation, groups) -> jax.Array:
  """XLA's convolution, channels last."""
  letters = "HW"[: len(strides)]
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    feature_group_count=groups,
  )


def _im2col(inputs, kernel, strides, padding, dilation, groups) -> jax.Array:
  """The same as a matrix product: every kernel element sees a shifted, strided slice."""
  # Unlike `jnp.pad`, `lax.pad` also crops, for negative numbers.
  borders = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
  inputs = jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), borders)
  batch, channels, features = inputs.shape[0], inputs.shape[-1], kernel.shape[-1]
  size = kernel.shape[:-2]
  out = _output_spatial(inputs, kernel, strides, ((0, 0),) * len(size), dilation)

  def shifted(offset):
    start = [o * d for o, d in zip(offset, dilation)]
    limit = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides)]
    return jax.lax.slice(inputs, (0, *start, 0), (batch, *limit, channels), (1, *strides, 1))

  slices = [shifted(offset) for offset in product(*map(range, size))]
  # Accumulates in float32 for any input type, as the native convolution does.
  wide = jnp.promote_types(inputs.dtype, jnp.float32)
  if groups == 1:
    patches = jnp.concatenate(slices, axis=-1)
    outputs = jnp.dot(patches, kernel.reshape(-1, features), preferred_element_type=wide)
  else:
    patches = jnp.stack(slices, axis=-2).reshape(-1, len(slices), groups, channels // groups)
    kernel = kernel.reshape(len(slices), channels // groups, groups, features // groups)
    outputs = jnp.einsum("nkgc,kcgf->ngf", patches, kernel, preferred_element_type=wide)
  return outputs.reshape(batch, *out, features).astype(inputs.dtype)
