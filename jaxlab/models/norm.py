"""Batch normalization by small chunks of a batch, by stored statistics, or by a mixture of both."""

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range


class NormOutput(NamedTuple):
  """The output of a normalization in training mode.

  Attributes:
    outputs: the normalized inputs, in their shape and dtype.
    mean: running mean after the batch, `[c]`.
    var: running variance after the batch, `[c]`.
  """

  outputs: chex.Array
  mean: chex.Array
  var: chex.Array


def ghost_batch_norm(
  x: chex.Array,
  scale: chex.Array,
  bias: chex.Array,
  mean: chex.Array,
  var: chex.Array,
  *,
  ghost_batch_size: int,
  momentum: float = 0.1,
  epsilon: float = 1e-5,
) -> NormOutput:
  """Normalizes every chunk of `ghost_batch_size` rows by the chunk's own statistics.

  A large batch then keeps the noise of small ones. The running statistics are updated once per
  chunk, in order, so the last chunk weighs most; no gradient flows into them.

  Args:
    x: inputs, `[b, ..., c]`.
    scale: factor of each channel, `[c]`.
    bias: offset of each channel, `[c]`.
    mean: running mean, `[c]`.
    var: running variance, `[c]`. It averages the chunks' biased variances, which divide by the
      number of values (PyTorch divides by one less).
    ghost_batch_size: rows of a chunk; b is ordinary batch normalization.
    momentum: share of a chunk in the running statistics, in [0, 1].
    epsilon: added to variances, at least 0.

  Returns:
    A `NormOutput`.

  Raises:
    TypeError: if `x` is not floating.
    ValueError: if shapes do not agree, `ghost_batch_size` < 1 or does not divide b, or another
      argument lies outside its range.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, algorithm 1,
  https://arxiv.org/abs/1705.08741.
  """
  check_at_least(1, ghost_batch_size=ghost_batch_size)
  x, scale, bias, mean, var = _checked(x, scale, bias, mean, var)
  if x.shape[0] % ghost_batch_size:
    raise ValueError(
      f"ghost_batch_size {ghost_batch_size} does not divide the {x.shape[0]} rows of x."
    )
  check_range("momentum", momentum, "[0, 1]")
  check_range("epsilon", epsilon, "[0, inf)")
  wide = as_accumulator(x)
  chunks = wide.reshape(-1, ghost_batch_size, *x.shape[1:])
  axes = tuple(range(1, chunks.ndim - 1))
  chunk_mean = chunks.mean(axes)
  # From centered values: E[x^2] - E[x]^2 loses all digits where the mean is large.
  centered = chunks - jnp.expand_dims(chunk_mean, axes)
  chunk_var = jnp.square(centered).mean(axes)
  normed = centered * jnp.expand_dims(jax.lax.rsqrt(chunk_var + epsilon), axes)
  outputs = _affine(normed.reshape(wide.shape), scale, bias).astype(x.dtype)
  # The recursion R <- (1 - momentum) R + momentum m over the chunks, written out.
  num = chunks.shape[0]
  shares = momentum * (1 - momentum) ** jnp.arange(num - 1, -1, -1, dtype=wide.dtype)

  def running(old, new):
    after = (1 - momentum) ** num * old + jnp.sum(shares[:, None] * new, axis=0)
    return jax.lax.stop_gradient(after).astype(old.dtype)

  return NormOutput(outputs, running(mean, chunk_mean), running(var, chunk_var))


def mixed_batch_norm(
  x: chex.Array,
  scale: chex.Array,
  bias: chex.Array,
  mean: chex.Array,
  var: chex.Array,
  *,
  source_weight: chex.Numeric = 0.0,
  epsilon: float = 1e-5,
) -> jax.Array:
  """Normalizes by a mixture of stored statistics and those of the batch.

  At test time the batch reflects the shift, and the stored statistics rest on more samples.

  Args:
    x: inputs, `[b, ..., c]`.
    scale: factor of each channel, `[c]`.
    bias: offset of each channel, `[c]`.
    mean: stored mean, `[c]`.
    var: stored variance, `[c]`.
    source_weight: weight of the stored statistics, in [0, 1]; the batch's mean and (biased)
      variance have the rest.
    epsilon: added to variances, at least 0.

  Returns:
    The normalized inputs, in the shape and dtype of `x`.

  Raises:
    TypeError: if `x` is not floating.
    ValueError: if shapes do not agree, or `source_weight` or `epsilon` lies outside its range.

  Reference: Schneider et al., Improving robustness against common corruptions by covariate shift
  adaptation, NeurIPS 2020, https://arxiv.org/abs/2006.16971.
  """
  check_range("source_weight", source_weight, "[0, 1]")
  check_range("epsilon", epsilon, "[0, inf)")
  x, scale, bias, mean, var = _checked(x, scale, bias, mean, var)
  wide = as_accumulator(x)
  axes = tuple(range(x.ndim - 1))
  batch_mean = wide.mean(axes)
  batch_var = jnp.square(wide - _broadcast(batch_mean, x)).mean(axes)
  mixed_mean = source_weight * mean + (1 - source_weight) * batch_mean
  mixed_var = source_weight * var + (1 - source_weight) * batch_var
  return _normalized(x, scale, bias, mixed_mean, mixed_var, epsilon)


class GhostBatchNorm(nn.Module):
  """Batch normalization by the statistics of chunks, as a layer.

  In training mode the running statistics (collection `batch_stats`) are updated if the collection
  is mutable, and left alone if it is not: a test-time adapter normalizes by the batch it sees and
  keeps no state.

  Attributes:
    ghost_batch_size: rows of a chunk; None for the whole batch (ordinary batch normalization).
    use_running_average: whether to normalize by the running statistics; set here or at the call.
    momentum: share of a chunk in the running statistics.
    epsilon: added to variances.

  Reference: Hoffer et al., NeurIPS 2017, https://arxiv.org/abs/1705.08741.
  """

  ghost_batch_size: int | None = None
  use_running_average: bool | None = None
  momentum: float = 0.1
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: chex.Array, use_running_average: bool | None = None) -> jax.Array:
    """Normalizes.

    Args:
      x: `[b, ..., c]`.
      use_running_average: as the attribute.

    Returns:
      The normalized inputs, in the shape and dtype of `x`.

    Raises:
      ValueError: as `ghost_batch_norm`.
    """
    use_running = nn.merge_param(
      "use_running_average", self.use_running_average, use_running_average
    )
    channels = x.shape[-1:]
    mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
    scale = self.param("scale", nn.initializers.ones, channels)
    bias = self.param("bias", nn.initializers.zeros, channels)
    if use_running:
      # Does not compute the batch's statistics: a non-finite row must not affect the others.
      return _normalized(x, scale, bias, mean.value, var.value, self.epsilon)
    normed = ghost_batch_norm(
      x,
      scale,
      bias,
      mean.value,
      var.value,
      ghost_batch_size=x.shape[0] if self.ghost_batch_size is None else self.ghost_batch_size,
      momentum=self.momentum,
      epsilon=self.epsilon,
    )
    if self.is_mutable_collection("batch_stats") and not self.is_initializing():
      mean.value, var.value = normed.mean, normed.var
    return normed.outputs


class GroupNorm(nn.GroupNorm):
  """Group normalization with the interface of `GhostBatchNorm`.

  It uses neither batch nor running statistics, so training and evaluation are the same.
  """

  def __call__(self, x: chex.Array, use_running_average: bool | None = None) -> jax.Array:
    """Normalizes.

    Args:
      x: `[b, ..., c]`.
      use_running_average: ignored.

    Returns:
      The normalized inputs, in the shape and dtype of `x`.
    """
    del use_running_average
    return super().__call__(x).astype(x.dtype)


def _normalized(x, scale, bias, mean, var, epsilon) -> jax.Array:
  """Normalizes by statistics of each channel."""
  wide = as_accumulator(x)
  normed = (wide - _broadcast(mean, x)) * _broadcast(jax.lax.rsqrt(var + epsilon), x)
  return _affine(normed, scale, bias).astype(x.dtype)


def _affine(normed: jax.Array, scale: chex.Array, bias: chex.Array) -> jax.Array:
  return normed * _broadcast(scale, normed) + _broadcast(bias, normed)


def _broadcast(per_channel: chex.Array, x: jax.Array) -> jax.Array:
  return jnp.expand_dims(per_channel, tuple(range(x.ndim - 1)))


def _checked(x, scale, bias, mean, var) -> tuple[jax.Array, ...]:
  check_arrays(
    x=(x, "float [..., c]"),  # Integers could not hold the outputs.
    scale=(scale, "[c]"),
    bias=(bias, "[c]"),
    mean=(mean, "[c]"),
    var=(var, "[c]"),
  )
  return tuple(map(jnp.asarray, (x, scale, bias, mean, var)))
