"""Latent-variable model of incomplete series, with a Gaussian process over time as prior."""

from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
)
from jaxlab.models.convolution import Conv
from jaxlab.models.decoder_architecture import decoder_config
from jaxlab.models.decoder_blocks import AttentionContext, Block, Norm


def cauchy_kernel(
  length: int,
  *,
  scale: chex.Numeric = 1.005,
  lengthscale: chex.Numeric = 7.0,
  jitter: chex.Numeric = 1e-3,
) -> jax.Array:
  """Covariance of the steps of a series: `scale / (1 + (i - j)^2 / lengthscale^2)`.

  Args:
    length: number of steps.
    scale: variance of a step, > 0.
    lengthscale: distance in steps at which the correlation is a half, > 0.
    jitter: variance of independent noise, >= 0.

  Returns:
    Covariances, f32 `[length, length]`.

  Raises:
    ValueError: if `length` < 1, `scale` or `lengthscale` is not positive, or `jitter` negative.

  Reference: Fortuin et al., GP-VAE, AISTATS 2020, https://arxiv.org/abs/1907.04155.
  """
  check_at_least(1, length=length)
  check_range("scale", scale, "(0, inf)")
  check_range("lengthscale", lengthscale, "(0, inf)")
  check_range("jitter", jitter, "[0, inf)")
  scale, lengthscale, jitter = as_accumulator(scale, lengthscale, jitter)
  steps = jnp.arange(length, dtype=scale.dtype)
  distances = jnp.square((steps[:, None] - steps[None]) / lengthscale)
  return scale / (1 + distances) + jitter * jnp.eye(length, dtype=scale.dtype)


def gp_prior_log_prob(z: chex.Array, kernel: chex.Array) -> jax.Array:
  """Log-density of latent series whose dimensions are independent Gaussian processes of mean 0.

  Args:
    z: latent series, `[..., T, d]`.
    kernel: covariance of the steps, `[T, T]`.

  Returns:
    Log-density in nats, summed over the dimensions, float32 or wider, `[...]`.

  Raises:
    ValueError: if shapes do not agree.

  Reference: as `cauchy_kernel`.
  """
  check_arrays(kernel=(kernel, "[T, T]"), z=(z, "[..., T, d]"))
  z, kernel = as_accumulator(z, kernel)
  length, dim = z.shape[-2:]
  factor = jnp.linalg.cholesky(kernel)
  # The inverse of the small factor once: a product for many series costs less than solving.
  inverse = jax.lax.linalg.triangular_solve(
    factor, jnp.eye(length, dtype=z.dtype), left_side=True, lower=True
  )
  white = jnp.einsum("st,...td->...sd", inverse, z, precision=jax.lax.Precision.HIGHEST)
  log_scale = jnp.sum(jnp.log(jnp.diagonal(factor))) + length * jnp.log(2 * jnp.pi) / 2
  return -jnp.sum(jnp.square(white), axis=(-2, -1)) / 2 - dim * log_scale


def time_encoding(times: chex.Array, *, width: int, max_time: chex.Numeric = 100.0) -> jax.Array:
  """Sines and cosines of times, with periods that grow from component to component.

  Args:
    times: times of the steps, `[b, T]`; they are divided by the largest of all, unless all are 0.
    width: number of components, at least 2.
    max_time: component i has the period 2 pi times this to the power i / (width - 1).

  Returns:
    Sines in even components, cosines in odd ones, float32 or wider, `[b, T, width]`.

  Raises:
    ValueError: if `width` < 2, `max_time` is not positive, or the times have another shape.

  Reference: Horn et al., Set Functions for Time Series, ICML 2020,
  https://arxiv.org/abs/1909.12064.
  """
  check_at_least(2, width=width)
  check_range("max_time", max_time, "(0, inf)")
  check_arrays(times=(times, "[b, T]"))
  times, max_time = as_accumulator(times, max_time)
  largest = jnp.max(times)
  times = times / jnp.where(largest == 0, 1.0, largest)
  component = jnp.arange(width)
  scales = jnp.power(max_time, component.astype(times.dtype) / (width - 1))
  angles = times[..., None] / scales[None, None]
  return jnp.where(component[None, None] % 2 == 0, jnp.sin(angles), jnp.cos(angles))


class SeriesEncoder(nn.Module):
  """Approximate posterior of the latent series, step by step, from what was observed before.

  A convolution of eight steps that sees both sides, and a causal transformer.

  Attributes:
    latent_dim: dimensions d of the latent series.
    width: width of the network; `num_heads` divides it.
    num_layers: number of transformer blocks.
    num_heads: attention heads.

  Raises:
    ValueError: if a size is below 1, `width` < 2, or `num_heads` does not divide it.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, https://arxiv.org/abs/2308.06738.
  """

  latent_dim: int
  width: int
  num_layers: int
  num_heads: int

  @nn.compact
  def __call__(self, values: chex.Array, times: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Gives mean and standard deviation of the latent series.

    Args:
      values: series whose missing values are 0, `[b, T, C]`.
      times: `[b, T]`.

    Returns:
      Mean and standard deviation (at least 1e-4), `[b, T, d]` each.
    """
    check_arrays(values=(values, "float [b, T, C]"), times=(times, "[b, T]"))
    network = _Network(8, self.width, self.num_layers, self.num_heads, name="network")
    hidden = network(values, times, _causal(values.shape[1]))
    return _mean_and_std(hidden, self.latent_dim, 1e-4)


class SeriesDecoder(nn.Module):
  """Distribution of the values given the latent series.

  Attributes:
    num_channels: channels C of the series.
    width: width of the network; `num_heads` divides it.
    num_layers: number of transformer blocks.
    num_heads: attention heads.

  Raises:
    ValueError: if a size is below 1, `width` < 2, or `num_heads` does not divide it.

  Reference: as `SeriesEncoder`.
  """

  num_channels: int
  width: int
  num_layers: int
  num_heads: int

  @nn.compact
  def __call__(self, z: chex.Array, times: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Gives mean and standard deviation of every value.

    Args:
      z: latent series, `[..., b, T, d]`.
      times: `[b, T]`.

    Returns:
      Mean and standard deviation (at least 1e-3), `[..., b, T, C]` each.
    """
    rows, times, leading = _as_rows("z", z, times)
    network = _Network(3, self.width, self.num_layers, self.num_heads, name="network")
    hidden = network(rows, times, _causal(rows.shape[1]))
    results = _mean_and_std(hidden, self.num_channels, 1e-3)
    return tuple(x.reshape(*leading, *x.shape[1:]) for x in results)


class MissingnessModel(nn.Module):
  """Log-odds that each value is observed, from the completed values of its step.

  Attributes:
    width: hidden width.

  Raises:
    ValueError: if `width` < 1.

  Reference: as `SeriesEncoder`; the log-odds lie in (-1, 1), as in the release.
  """

  width: int

  @nn.compact
  def __call__(self, series: chex.Array) -> jax.Array:
    """Maps completed series `[..., b, T, C]` to log-odds of the same shape."""
    check_at_least(1, width=self.width)
    check_arrays(series=(series, "float [..., b, T, C]"))
    hidden = jnp.tanh(_dense(self.width, "hidden")(series))
    return jnp.tanh(_dense(series.shape[-1], "logits")(hidden))


class SeriesClassifier(nn.Module):
  """Classifies completed series by a transformer that sees all steps.

  Attributes:
    num_classes: number of classes.
    width: width of the network; `num_heads` divides it.
    num_layers: number of transformer blocks.
    num_heads: attention heads.
    pooling: "max" or "mean" over the valid steps.

  Raises:
    ValueError: if a size is below 1, `width` < 2, `num_heads` does not divide it, or `pooling` is
      unknown.

  Reference: as `SeriesEncoder`.
  """

  num_classes: int
  width: int
  num_layers: int
  num_heads: int
  pooling: Literal["max", "mean"] = "max"

  @nn.compact
  def __call__(
    self, series: chex.Array, times: chex.Array, lengths: chex.Array | None = None
  ) -> jax.Array:
    """Gives log-probabilities of the classes.

    Args:
      series: completed series, `[..., b, T, C]`.
      times: `[b, T]`.
      lengths: number of valid steps of each series, int `[b]`, in [1, T]; None for T. What comes
        later has no effect.

    Returns:
      Log-probabilities, float32 or wider, `[..., b, classes]`.
    """
    check_choice("pooling", self.pooling, ("max", "mean"))
    rows, times, leading = _as_rows("series", series, times)
    length = rows.shape[1]
    if lengths is None:
      lengths = jnp.full(leading[-1:], length)
    check_arrays(lengths=(lengths, f"int [{leading[-1]}]"))
    check_range("lengths", lengths, f"[1, {length}]")
    valid = jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]
    valid = jnp.broadcast_to(valid, (*leading, length)).reshape(-1, length)
    rows = jnp.where(valid[..., None], rows, 0)
    network = _Network(3, self.width, self.num_layers, self.num_heads, name="network")
    mask = jnp.broadcast_to(valid[:, None, None], (len(rows), 1, length, length))
    hidden = network(rows, times, mask)
    shown = valid[..., None]
    if self.pooling == "max":
      pooled = jnp.max(jnp.where(shown, hidden, -jnp.inf), axis=1)
    else:
      pooled = jnp.sum(jnp.where(shown, hidden, 0), axis=1) / jnp.sum(shown, axis=1)
    log_probs = jax.nn.log_softmax(as_accumulator(_dense(self.num_classes, "classes")(pooled)))
    return log_probs.reshape(*leading, self.num_classes)


class _Network(nn.Module):
  """A convolution with a time encoding, and transformer blocks: `[b, T, C]` to `[b, T, width]`."""

  kernel_size: int
  width: int
  num_layers: int
  num_heads: int

  @nn.compact
  def __call__(self, values, times, mask):
    config = decoder_config(
      vocab_size=1,
      hidden_size=self.width,
      intermediate_size=self.width,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      family="gpt2",
    )
    encoded = time_encoding(times, width=self.width).astype(values.dtype)
    # Rows that share times share their encoding.
    encoded = jnp.broadcast_to(encoded, (len(values) // max(len(times), 1), *encoded.shape))
    encoded = encoded.reshape(*values.shape[:2], self.width)
    hidden = jnp.tanh(Conv(self.width, self.kernel_size, name="conv")(values)) + encoded
    context = AttentionContext(None, None, 1.0, mask, None, None)
    for i in range(self.num_layers):
      (hidden, _), _ = Block(config, name=f"block_{i}")((hidden, None), i, context)
    return Norm(config.norm, config.norm_eps, name="norm")(hidden)


def _causal(length: int) -> jax.Array:
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def _as_rows(name: str, series: chex.Array, times: chex.Array):
  """Series `[..., b, T, C]` as rows, their times `[b, T]`, and the leading axes."""
  check_arrays(times=(times, "[b, T]"), **{name: (series, "float [..., b, T, C]")})
  series, times = jnp.asarray(series), jnp.asarray(times)
  leading = series.shape[:-2]
  return series.reshape(-1, *series.shape[-2:]), times, leading


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, name=name)


def _mean_and_std(hidden, features, least):
  mean, scale = (_dense(features, name)(hidden) for name in ("mean", "scale"))
  return mean, least + (1 - least) * nn.softplus(scale)
