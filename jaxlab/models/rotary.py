"""Rotary position encoding, and the ways to stretch it to longer contexts."""

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_arrays, check_choice, check_range

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
  """The settings of `rotary_frequencies` that belong to a model, not to a call.

  Attributes:
    theta: base of the wavelengths.
    rope_type: "default", "linear", "dynamic", "llama3" or "yarn".
    factor: context length over that of training.
    low_freq_factor: llama3: turns within the original context below which a frequency is divided.
    high_freq_factor: llama3: turns above which it is kept.
    original_max_positions: length of the original context.
    attention_factor: multiplies cosine and sine; None is the default of the type.
    beta_fast: yarn: turns above which a frequency is kept.
    beta_slow: yarn: turns below which it is divided.

  Raises:
    ValueError: for an unknown `rope_type`; if `theta`, `factor`, `original_max_positions`,
      `attention_factor`, `beta_fast` or `beta_slow` is not positive and finite; if
      `low_freq_factor >= high_freq_factor` for llama3, or `theta <= 1` for yarn.
  """

  theta: float = 10000.0
  rope_type: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0

  def __post_init__(self):
    check_choice("rope_type", self.rope_type, _ROPE_TYPES)
    for name in _POSITIVE:
      if getattr(self, name) is not None:
        check_range(name, getattr(self, name), "(0, inf)")
    if self.rope_type == "yarn":
      check_range("theta", self.theta, "(1, inf)")
    if self.rope_type == "llama3" and not self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f"low_freq_factor {self.low_freq_factor} must lie below high_freq_factor "
        f"{self.high_freq_factor}."
      )


_POSITIVE = (
  "theta",
  "factor",
  "original_max_positions",
  "attention_factor",
  "beta_fast",
  "beta_slow",
)


class RotaryFrequencies(NamedTuple):
  """Angles per position, and the scale of the rotated vectors.

  Attributes:
    inv_freq: radians per position, float32 `[head_dim / 2]`.
    attention_factor: multiplies cosine and sine.
  """

  inv_freq: chex.Array
  attention_factor: float


def rotary_frequencies(
  *,
  head_dim: int,
  theta: float = 10000.0,
  rope_type: str = "default",
  factor: float = 1.0,
  low_freq_factor: float = 1.0,
  high_freq_factor: float = 4.0,
  original_max_positions: int = 8192,
  max_positions: int | None = None,
  attention_factor: float | None = None,
  beta_fast: float = 32.0,
  beta_slow: float = 1.0,
) -> RotaryFrequencies:
  """Frequencies of the rotation of each pair of coordinates: theta^(-2j / head_dim), stretched.

  "linear" divides all by the factor. "dynamic" raises theta once the call is longer than the
  original context. "llama3" and "yarn" divide the slow ones, keep the fast ones and blend between;
  yarn also sharpens attention. All arguments are static: frequencies are computed in float64 and
  are constants of the program.

  Args:
    head_dim: width d of a head, even.
    theta: base, positive.
    rope_type: "default", "linear", "dynamic", "llama3" or "yarn".
    factor: context length over that of training, positive.
    low_freq_factor: llama3: original / wavelength below which a frequency is divided.
    high_freq_factor: llama3: original / wavelength above which it is kept.
    original_max_positions: length of the original context.
    max_positions: longest position + 1 of the call, which "dynamic" uses; None is within the
      original context.
    attention_factor: multiplies cosine and sine; None is 1, for yarn 0.1 ln(factor) + 1.
    beta_fast: yarn: turns within the original context above which a frequency is kept.
    beta_slow: yarn: turns below which it is divided.

  Returns:
    A `RotaryFrequencies`.

  Raises:
    ValueError: if `head_dim` is odd or below 2 (4 for dynamic), or as for `RotaryConfig`.

  Reference: Su et al., RoFormer, https://arxiv.org/abs/2104.09864; Peng et al., YaRN, ICLR 2024,
  https://arxiv.org/abs/2309.00071; Llama Team, The Llama 3 Herd of Models, section 3.4,
  https://arxiv.org/abs/2407.21783.
  """
  RotaryConfig(
    theta,
    rope_type,
    factor,
    low_freq_factor,
    high_freq_factor,
    original_max_positions,
    attention_factor,
    beta_fast,
    beta_slow,
  )
  if head_dim < 2 or head_dim % 2:
    raise ValueError(f"head_dim must be even and positive, got {head_dim}.")
  if rope_type == "dynamic" and head_dim == 2:
    raise ValueError("head_dim must be at least 4 for dynamic, got 2.")

  pairs = np.arange(head_dim // 2)
  if rope_type == "dynamic":
    theta = _dynamic_theta(theta, factor, original_max_positions, max_positions, head_dim)
  inv_freq = theta ** (-2.0 * pairs / head_dim)
  if rope_type == "linear":
    inv_freq = inv_freq / factor
  elif rope_type == "llama3":
    turns = original_max_positions * inv_freq / (2 * math.pi)
    kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    inv_freq = _blend(inv_freq, factor, np.clip(kept, 0, 1))
  elif rope_type == "yarn":
    low, high = (
      head_dim * math.log(original_max_positions / (2 * math.pi * turns)) / (2 * math.log(theta))
      for turns in (beta_fast, beta_slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
    if low == high:
      high += 0.001
    inv_freq = _blend(inv_freq, factor, 1 - np.clip((pairs - low) / (high - low), 0, 1))
    if attention_factor is None:
      attention_factor = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
  scale = 1.0 if attention_factor is None else float(attention_factor)
  return RotaryFrequencies(jnp.asarray(inv_freq, jnp.float32), scale)


def apply_rotary(
  x: chex.Array,
  positions: chex.Array,
  inv_freq: chex.Array,
  *,
  attention_factor: chex.Numeric = 1.0,
) -> jax.Array:
  """Rotates queries or keys by position, so that products depend on position differences only.

  Coordinate j of the first half and coordinate j of the second make a pair, which is rotated by
  `position * inv_freq[j]`.

  Args:
    x: queries or keys, `[..., t, heads, d]`.
    positions: integers, `[..., t]`.
    inv_freq: radians per position, `[d / 2]`.
    attention_factor: multiplies cosine and sine.

  Returns:
    The rotated vectors in the dtype of `x`, `[..., t, heads, d]`; angles, cosine, sine and products
    are float32.

  Raises:
    ValueError: if the shapes do not agree.

  Reference: Su et al., RoFormer, section 3.2, https://arxiv.org/abs/2104.09864.
  """
  x, positions = jnp.asarray(x), jnp.asarray(positions)
  check_arrays(
    x=(x, "[..., heads, d]"),
    positions=(positions, "[...]"),
    inv_freq=(inv_freq, f"[{x.shape[-1] // 2}]"),
  )
  inv_freq = jnp.expand_dims(inv_freq, tuple(range(x.ndim - 1)))
  angles = positions[..., None, None].astype(jnp.float32) * inv_freq
  cos, sin = jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor
  first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


def _dynamic_theta(theta, factor, original_max_positions, max_positions, head_dim):
  """The base whose slowest wavelength is that of the original, stretched to this call."""
  if max_positions is None or max_positions <= original_max_positions:
    return theta
  stretch = factor * max_positions / original_max_positions - (factor - 1)
  return theta * stretch ** (head_dim / (head_dim - 2))


def _blend(inv_freq, factor, kept):
  """Frequencies of which a share is kept and the rest divided by the factor."""
  return kept * inv_freq + (1 - kept) * inv_freq / factor
