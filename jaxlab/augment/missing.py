"""Missing values of series `[..., T, C]`: masks, dropout of what is observed, simple imputation.

A mask is True where a value is observed. Values that are not are never read, and may be NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxlab._checks import as_accumulator, check_arrays, check_range


class ObservationDropout(NamedTuple):
  """What is kept of the observations.

  Attributes:
    kept: bool `[*num_draws, b, T, C]`; a part of the mask.
    log_prob: log-probability of what was dropped and kept, `[*num_draws, b]`.
  """

  kept: chex.Array
  log_prob: chex.Array


def observation_dropout(
  key: chex.PRNGKey, mask: chex.Array, *, rate: chex.Numeric, num_draws: Sequence[int] = ()
) -> ObservationDropout:
  """Drops every observed value with a probability, so that a classifier relies on imputations.

  Args:
    key: random key.
    mask: which values are observed, bool `[b, T, C]`.
    rate: probability of a drop, in [0, 1).
    num_draws: leading axes of independent draws.

  Returns:
    An `ObservationDropout`; a rate of 0 keeps the mask with log-probability 0.

  Raises:
    ValueError: if `rate` lies outside [0, 1), or the mask has another shape.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, section 3.3, https://arxiv.org/abs/2308.06738.
  """
  check_range("rate", rate, "[0, 1)")
  check_arrays(mask=(mask, "bool [b, T, C]"))
  mask, rate = jnp.asarray(mask), as_accumulator(rate)
  shape = (*num_draws, *mask.shape)
  mask = jnp.broadcast_to(mask[(None,) * len(num_draws)], shape)
  kept = mask & jax.random.bernoulli(key, 1 - rate, shape)
  num_kept, num_dropped = (
    jnp.sum(x, axis=(-2, -1), dtype=jnp.int32).astype(rate.dtype) for x in (kept, mask & ~kept)
  )
  return ObservationDropout(kept, num_kept * jnp.log1p(-rate) + xlogy(num_dropped, rate))


def forward_fill(values: chex.Array, mask: chex.Array, *, fill: chex.Numeric = 0.0) -> jax.Array:
  """Replaces missing values by the last observed one of their channel.

  Args:
    values: `[..., T, C]`.
    mask: which are observed, bool `[..., T, C]`.
    fill: what stands before the first observed value.

  Returns:
    The filled values, in the type of `values`.

  Raises:
    ValueError: if shapes do not agree.
  """
  check_arrays(values=(values, "float [..., T, C]"), mask=(mask, "bool [..., T, C]"))
  values = jnp.asarray(values)
  (last,), seen = _last_observed(mask, values)
  return jnp.where(seen, last, jnp.asarray(fill, values.dtype))


def decay_impute(
  values: chex.Array,
  imputed: chex.Array,
  mask: chex.Array,
  times: chex.Array,
  *,
  rate: chex.Array,
  bias: chex.Array,
) -> jax.Array:
  """Fills gaps by the last observed value, which fades into an imputation.

  A missing value is `g * last + (1 - g) * imputed` with
  `g = exp(-max(0, rate * (time since the last observation) + bias))`. Before the first observation
  of a channel, the last value is 0, at time 0.

  Args:
    values: `[..., T, C]`.
    imputed: what is imputed, `[..., T, C]`.
    mask: which values are observed, bool `[..., T, C]`.
    times: time of each step, `[..., T]`.
    rate: of the decay, `[C]`.
    bias: `[C]`; infinity for the imputation alone.

  Returns:
    Observed values as they are, and the others imputed, float32 or wider, `[..., T, C]`.

  Raises:
    ValueError: if shapes do not agree.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, section 3.2, https://arxiv.org/abs/2308.06738; Che et al., Recurrent Neural Networks
  for Multivariate Time Series with Missing Values, 2018, https://arxiv.org/abs/1606.01865.
  """
  check_arrays(
    values=(values, "[..., T, C]"),
    imputed=(imputed, "[..., T, C]"),
    mask=(mask, "bool [..., T, C]"),
    times=(times, "[..., T]"),
    rate=(rate, "[C]"),
    bias=(bias, "[C]"),
  )
  values, imputed, times, rate, bias = as_accumulator(values, imputed, times, rate, bias)
  mask = jnp.asarray(mask)
  now = jnp.broadcast_to(times[..., None], values.shape)
  (last, last_time), seen = _last_observed(mask, values, now)
  last, last_time = jnp.where(seen, last, 0.0), jnp.where(seen, last_time, 0.0)
  rate, bias = (x.reshape((1,) * (values.ndim - 1) + x.shape) for x in (rate, bias))
  share = jnp.exp(-jax.nn.relu(rate * (now - last_time) + bias))
  # At observed places too, both factors must be finite for the gradient of the other.
  return jnp.where(mask, jnp.where(mask, values, 0.0), share * last + (1 - share) * imputed)


def _last_observed(mask: chex.Array, *arrays: jax.Array) -> tuple[list[jax.Array], jax.Array]:
  """At every step the entries of the last observed one, and whether there is one."""
  mask = jnp.asarray(mask)
  steps = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 2)
  index = jax.lax.cummax(jnp.where(mask, steps, -1), axis=mask.ndim - 2)
  entries = [
    jnp.take_along_axis(jnp.where(mask, x, 0), jnp.maximum(index, 0), axis=-2) for x in arrays
  ]
  return entries, index >= 0


def mask_not_at_random(
  key: chex.PRNGKey, values: chex.Array, *, offset: chex.Array, slope: chex.Numeric = 1.5
) -> jax.Array:
  """Draws which values are observed, where large ones tend to be missing.

  Args:
    key: random key.
    values: `[b, T, C]`, standardized.
    offset: log-odds that a value of 0 is observed, `[C]`.
    slope: how much the log-odds fall with the value.

  Returns:
    The mask, bool `[b, T, C]`, True with probability `sigmoid(offset - slope * values)`.

  Raises:
    ValueError: if shapes do not agree.

  Reference: Little and Rubin, Statistical Analysis with Missing Data, 2002, chapter 15.
  """
  check_arrays(values=(values, "[b, T, C]"), offset=(offset, "[C]"))
  values, offset, slope = as_accumulator(values, offset, slope)
  probs = jax.nn.sigmoid(offset[None, None] - slope * values)
  return jax.random.uniform(key, values.shape, probs.dtype) < probs


def calibrate_mask_offset(
  values: chex.Array, *, observed_share: chex.Numeric, slope: chex.Numeric = 1.5
) -> jax.Array:
  """The offsets of `mask_not_at_random` at which a share of each channel is observed on average.

  Args:
    values: `[b, T, C]`.
    observed_share: in (0, 1).
    slope: that of the mask.

  Returns:
    Offsets in [-20, 20], by bisection, `[C]`.

  Raises:
    ValueError: if `observed_share` lies outside (0, 1), or the values have another shape.
  """
  check_range("observed_share", observed_share, "(0, 1)")
  check_arrays(values=(values, "[b, T, C]"))
  return _bisect(*as_accumulator(values, observed_share, slope))


@jax.jit
def _bisect(values, observed_share, slope):
  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    share = jnp.mean(jax.nn.sigmoid(middle[None, None] - slope * values), axis=(0, 1))
    is_low = share < observed_share
    return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

  start = 0 * (jnp.mean(values, axis=(0, 1)) + slope + observed_share)  # Of NaN, NaN.
  low, high = jax.lax.fori_loop(0, 40, halve, (start - 20, start + 20))
  return (low + high) / 2
