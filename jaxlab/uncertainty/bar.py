"""Moments, quantiles, samples and acquisition functions of bar distributions.

See `jaxlab.losses.bar_nll` for the distribution itself. Every function takes `logits [..., K]` and
the strictly increasing `borders [K + 1]`, raises ValueError if known borders do not increase, and
works in float32 or wider. A NaN among a row's logits gives NaN for that row.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfc, ndtri

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_increasing,
  check_range,
)
from jaxlab.losses.bar import half_normal_scales

_HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)
# Keeps the tails' quantiles finite at the levels 0 and 1.
_MIN_TAIL_LEVEL = 1e-6


def bar_mean(logits: chex.Array, borders: chex.Array, *, full_support: bool = True) -> chex.Array:
  """Mean of bar distributions, the point prediction under squared error.

  Args:
    logits: scores of the bars, `[..., K]`.
    borders: strictly increasing, `[K + 1]`.
    full_support: whether the outer bars are half-normals.

  Returns:
    Mean in units of the borders, `[...]`.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  probs, means, _ = _aligned(jax.nn.softmax(logits), *_moments_by_bar(borders, full_support))
  return jnp.sum(probs * means, axis=-1)


def bar_variance(
  logits: chex.Array, borders: chex.Array, *, full_support: bool = True
) -> chex.Array:
  """Variance of bar distributions.

  It is the sum of the variance within and between bars, which equals the second moment less the
  squared mean and cannot become negative by cancellation.

  Args:
    logits, borders, full_support: as in `bar_mean`.

  Returns:
    Variance in squared units of the borders, `[...]`.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  moments = _moments_by_bar(borders, full_support)
  probs, means, variances = _aligned(jax.nn.softmax(logits), *moments)
  mean = jnp.sum(probs * means, axis=-1, keepdims=True)
  return jnp.sum(probs * (variances + jnp.square(means - mean)), axis=-1)


def _moments_by_bar(borders, full_support):
  """Mean and variance inside each bar, `[K]` each."""
  means = (borders[1:] + borders[:-1]) / 2
  variances = jnp.square(jnp.diff(borders)) / 12
  if full_support:
    scales = half_normal_scales(borders)
    means = means.at[0].set(borders[1] - scales.left * _HALF_NORMAL_MEAN)
    means = means.at[-1].set(borders[-2] + scales.right * _HALF_NORMAL_MEAN)
    squared_scales = jnp.square(jnp.stack(scales))
    variances = variances.at[jnp.array([0, -1])].set(squared_scales * (1 - 2 / math.pi))
  return means, variances


def bar_entropy(
  logits: chex.Array, borders: chex.Array, *, full_support: bool = True
) -> chex.Array:
  """Differential entropy of bar distributions; bars without mass count 0.

  Args:
    logits, borders, full_support: as in `bar_mean`.

  Returns:
    Entropy in nats (negative where the density is concentrated), `[...]`.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  entropies = jnp.log(jnp.diff(borders))
  if full_support:
    log_scales = jnp.log(jnp.stack(half_normal_scales(borders)))
    tails = log_scales + 0.5 * math.log(math.pi / 2) + 0.5
    entropies = entropies.at[jnp.array([0, -1])].set(tails)
  log_probs, entropies = _aligned(jax.nn.log_softmax(logits), entropies)
  probs = jnp.exp(log_probs)
  log_probs = jnp.where(probs > 0, log_probs, 0.0)
  return jnp.sum(probs * (entropies - log_probs), axis=-1)


def bar_mode(logits: chex.Array, borders: chex.Array) -> chex.Array:
  """Midpoint of the bar of highest density, the first one on ties.

  The outer bars count as bars, even if the distribution has full support.

  Args:
    logits, borders: as in `bar_mean`.

  Returns:
    Mode in units of the borders, `[...]`.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  logits, widths = _aligned(logits, jnp.diff(borders))
  log_density = logits - jnp.log(widths)
  mode = ((borders[1:] + borders[:-1]) / 2)[jnp.argmax(log_density, axis=-1)]
  return jnp.where(jnp.any(jnp.isnan(log_density), axis=-1), jnp.nan, mode)


def bar_cdf(
  logits: chex.Array, borders: chex.Array, values: chex.Array, *, full_support: bool = True
) -> chex.Array:
  """Probability of lying at or below each of some values.

  Args:
    logits, borders, full_support: as in `bar_mean`.
    values: `[m]`, in units of the borders.

  Returns:
    Probabilities, `[..., m]`.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  check_arrays(values=(values, "[m]"))
  by_bar = _cdf_by_bar(borders, jnp.asarray(values, borders.dtype), full_support)
  cdf = jnp.matmul(jax.nn.softmax(logits), by_bar.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.minimum(cdf, 1.0)  # The sum of the masses may exceed 1 by rounding.


def _cdf_by_bar(borders, values, full_support):
  """Each bar's own distribution function at values `[...]`, as `[..., K]`."""
  values, left, widths = _aligned(values[..., None], borders[:-1], jnp.diff(borders))
  cdf = jnp.clip((values - left) / widths, 0, 1)
  if full_support:
    scales = half_normal_scales(borders)
    below = jnp.maximum(borders[1] - values[..., 0], 0) / scales.left
    above = jnp.maximum(values[..., 0] - borders[-2], 0) / scales.right
    cdf = cdf.at[..., 0].set(erfc(below / math.sqrt(2)))
    cdf = cdf.at[..., -1].set(erf(above / math.sqrt(2)))
  return cdf


def bar_quantile(
  logits: chex.Array, borders: chex.Array, q: chex.Numeric, *, full_support: bool = True
) -> chex.Array:
  """Value below which a fraction q of the mass lies.

  Args:
    logits, borders: as in `bar_mean`.
    q: level in [0, 1], a scalar or any shape that broadcasts against the leading axes of the
      logits.
    full_support: whether the outer bars are half-normals; their quantiles are cut at the levels
      1e-6 and 1 - 1e-6 of the half-normal, so the result stays finite.

  Returns:
    Quantile in units of the borders, of the shape that `q` and `[...]` broadcast to.

  Raises:
    ValueError: if a known `q` lies outside [0, 1], or `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510; inverse of the distribution function of `bar_cdf`.
  """
  logits, borders = _checked(logits, borders)
  check_range("q", q, "[0, 1]")
  num_bars = logits.shape[-1]
  shape = jnp.broadcast_shapes(jnp.shape(q), logits.shape[:-1])
  q = jnp.broadcast_to(jnp.asarray(q, borders.dtype), shape)
  cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
  # Normalized, so that rounding does not keep the last bar from reaching level 1.
  cumulative = jnp.broadcast_to(cumulative / cumulative[..., -1:], (*shape, num_bars))
  index = jnp.sum(cumulative < q[..., None], axis=-1)
  index = jnp.minimum(index, num_bars - 1)
  upto = jnp.take_along_axis(cumulative, index[..., None], axis=-1)[..., 0]
  before = jnp.take_along_axis(cumulative, jnp.maximum(index - 1, 0)[..., None], axis=-1)[..., 0]
  before = jnp.where(index > 0, before, 0.0)
  mass = jnp.where(upto <= before, 1.0, upto - before)
  below, above = (q - before) / mass, (upto - q) / mass
  quantile = borders[index] + jnp.diff(borders)[index] * jnp.clip(below, 0, 1)
  if full_support:
    scales = half_normal_scales(borders)
    # The right tail has its own level, because 1 - below would round small levels away.
    below = jnp.clip(below, _MIN_TAIL_LEVEL, 1 - _MIN_TAIL_LEVEL)
    above = jnp.clip(above, _MIN_TAIL_LEVEL, 1 - _MIN_TAIL_LEVEL)
    left = borders[1] + scales.left * ndtri(below / 2)
    right = borders[-2] - scales.right * ndtri(above / 2)
    quantile = jnp.where(index == 0, left, quantile)
    quantile = jnp.where(index == num_bars - 1, right, quantile)
  return quantile


def bar_sample(
  key: chex.PRNGKey, logits: chex.Array, borders: chex.Array, *, full_support: bool = True
) -> chex.Array:
  """Draws one value from each bar distribution by inverting its distribution function.

  Args:
    key: random key.
    logits, borders, full_support: as in `bar_mean`.

  Returns:
    Samples in units of the borders, `[...]`.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  logits, borders = _checked(logits, borders)
  # A level of exactly 0 would fall into the first bar even if that has no mass.
  smallest = jnp.finfo(borders.dtype).tiny
  levels = jax.random.uniform(key, logits.shape[:-1], borders.dtype, minval=smallest)
  return bar_quantile(logits, borders, levels, full_support=full_support)


def expected_improvement(
  logits: chex.Array, borders: chex.Array, best: chex.Numeric, *, full_support: bool = True
) -> chex.Array:
  """Expected gain over the best value so far, when maximizing.

  Args:
    logits, borders, full_support: as in `bar_mean`.
    best: best value so far, a scalar or any shape that broadcasts against the leading axes.

  Returns:
    E[max(y - best, 0)] in units of the borders, of the shape that `best` and `[...]` broadcast
    to.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., PFNs4BO: In-Context Learning for Bayesian Optimization, ICML 2023,
  https://arxiv.org/abs/2305.17535; the tails' gains in closed form.
  """
  logits, borders = _checked(logits, borders)
  best = jnp.asarray(best, borders.dtype)[..., None]
  best, left, right = _aligned(best, borders[:-1], borders[1:])
  start = jnp.clip(best, left, right)
  # The part of the bar above `best` times its mean gain, which is finite even for infinite `best`.
  gains = (right - start) / (right - left) * ((right - start) / 2 + jnp.maximum(left - best, 0))
  if full_support:
    scales = half_normal_scales(borders)
    best = best[..., 0]
    depth = borders[1] - best
    gain = depth - scales.left * _HALF_NORMAL_MEAN + _half_normal_excess(depth, scales.left)
    gains = gains.at[..., 0].set(jnp.where(depth <= 0, 0.0, jnp.maximum(gain, 0.0)))
    height = best - borders[-2]
    inside = scales.right * _HALF_NORMAL_MEAN - height
    beyond = _half_normal_excess(height, scales.right)
    gains = gains.at[..., -1].set(jnp.where(height >= 0, beyond, inside))
  probs, gains = _aligned(jax.nn.softmax(logits), gains)
  # Bars without mass gain nothing, even where the gain is infinite.
  return jnp.sum(jnp.where(probs == 0, 0.0, probs * gains), axis=-1)


def _half_normal_excess(threshold, scale):
  """E[max(h - threshold, 0)] of a half-normal h, for thresholds >= 0."""
  # Beyond 40 scales the excess is 0 in every float type; an infinite threshold would give 0 * inf.
  z = jnp.clip(threshold / scale, 0, 40)
  density = jnp.exp(-jnp.square(z) / 2) / math.sqrt(2 * math.pi)
  return scale * jnp.maximum(2 * density - z * erfc(z / math.sqrt(2)), 0.0)


def probability_of_improvement(
  logits: chex.Array, borders: chex.Array, best: chex.Numeric, *, full_support: bool = True
) -> chex.Array:
  """Probability of exceeding the best value so far.

  Args:
    logits, borders, full_support: as in `bar_mean`.
    best: best value so far, a scalar or any shape that broadcasts against the leading axes.

  Returns:
    P[y > best], of the shape that `best` and `[...]` broadcast to.

  Raises:
    ValueError: if `full_support` is True for a single bar.

  Reference: Müller et al., PFNs4BO: In-Context Learning for Bayesian Optimization, ICML 2023,
  https://arxiv.org/abs/2305.17535.
  """
  logits, borders = _checked(logits, borders)
  best = jnp.asarray(best, borders.dtype)
  # The distribution function of -y at -best: small probabilities keep their digits, which
  # 1 - cdf would lose.
  survival = _cdf_by_bar(-borders[::-1], -best, full_support)[..., ::-1]
  probs, survival = _aligned(jax.nn.softmax(logits), survival)
  return jnp.minimum(jnp.sum(probs * survival, axis=-1), 1.0)


def upper_confidence_bound(
  logits: chex.Array,
  borders: chex.Array,
  *,
  rest_prob: chex.Numeric = 0.159,
  full_support: bool = True,
) -> chex.Array:
  """Quantile that leaves a given probability above it.

  The default is the probability of a normal distribution above one standard deviation.

  Args:
    logits, borders, full_support: as in `bar_mean`.
    rest_prob: probability above the bound, in [0, 1].

  Returns:
    Upper bound in units of the borders, `[...]`.

  Raises:
    ValueError: if a known `rest_prob` lies outside [0, 1], or `full_support` is True for a single
      bar.

  Reference: Müller et al., PFNs4BO: In-Context Learning for Bayesian Optimization, ICML 2023,
  https://arxiv.org/abs/2305.17535.
  """
  check_range("rest_prob", rest_prob, "[0, 1]")
  return bar_quantile(logits, borders, 1 - rest_prob, full_support=full_support)


def _checked(logits, borders):
  """Checks the two shapes against each other and casts to float32 or wider."""
  check_arrays(logits=(logits, "[..., k]"))
  check_arrays(borders=(borders, f"[{jnp.shape(logits)[-1] + 1}]"))
  check_increasing("borders", borders)
  return as_accumulator(logits, borders)


def _aligned(*arrays):
  """Gives all arrays the same number of axes by leading axes of size 1."""
  rank = max(array.ndim for array in arrays)
  return [jnp.expand_dims(array, tuple(range(rank - array.ndim))) for array in arrays]
