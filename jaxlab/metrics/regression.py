"""Metrics of real-valued predictions."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_filled


def pearson_correlation(predictions: chex.Array, targets: chex.Array) -> jax.Array:
  """Pearson correlation, per output dimension, averaged over dimensions whose targets vary.

  Args:
    predictions: real predictions, `[n]` or `[n, d]`.
    targets: real targets of the same shape.

  Returns:
    Mean correlation in [-1, 1], float32 or wider, `[]`. Constant predictions have correlation 0;
    the result is also 0 if the targets vary in no dimension. NaN inputs give NaN.

  Raises:
    ValueError: if there are no predictions.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, section 4.2, https://arxiv.org/abs/2210.05775.
  """
  predictions, targets = _pair(predictions, targets)
  if predictions.ndim == 1:
    predictions, targets = predictions[:, None], targets[:, None]
  (predictions, alive), (targets, varies) = map(unit_columns, (predictions, targets))
  products = predictions * targets
  correlations = jnp.sum(products, axis=0, keepdims=True)
  counted = jnp.sum(varies)
  kept = (varies & alive) | jnp.isnan(correlations)
  total = jnp.sum(jnp.where(kept, jnp.clip(correlations, -1.0, 1.0), 0.0))
  return total / jnp.maximum(counted, 1)


def _pair(predictions: chex.Array, targets: chex.Array) -> tuple[jax.Array, jax.Array]:
  check_arrays(predictions=(predictions, "[n, ...]"), targets=(targets, "[n, ...]"))
  check_filled(predictions=predictions)
  return as_accumulator(predictions, targets)


def unit_columns(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Centers columns and scales them to norm 1: products of two then are their correlation.

  Args:
    values: `[n, d]`, floats.

  Returns:
    The columns, `[n, d]`; constant ones are zeros and have no gradient. And which are not constant,
    bool `[1, d]`.
  """
  # The standard deviation of equal float32 values need not be exactly 0; their range is.
  highest, lowest = (end(values, axis=0, keepdims=True) for end in (jnp.max, jnp.min))
  varies = jax.lax.stop_gradient(highest - lowest) != 0
  centered = values - jnp.mean(values, axis=0, keepdims=True)
  # The first mean is rounded; for values far from 0, a second one removes what it left.
  centered = centered - jnp.mean(centered, axis=0, keepdims=True)
  size = jax.lax.stop_gradient(jnp.max(jnp.abs(centered), axis=0, keepdims=True))
  scaled = jnp.where(varies, centered / jnp.where(size > 0, size, 1.0), 0.0)
  square = jnp.sum(jnp.square(scaled), axis=0, keepdims=True)
  return scaled * jax.lax.rsqrt(jnp.where(varies, square, 1.0)), varies


def least_squares_line(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The straight line through points with the smallest sum of squared residuals.

  Args:
    x: where the points are, `[m]`, floats.
    y: their values, `[m]`, floats.

  Returns:
    Slope, intercept and R², scalars. If all x are equal the slope is 0, and if all y are equal R²
    is 1.
  """
  # The first point is subtracted: equal values then have a variance of exactly 0.
  x_shift, y_shift = x - x[0], y - y[0]
  x_centered, y_centered = x_shift - x_shift.mean(), y_shift - y_shift.mean()
  spread, total = jnp.sum(jnp.square(x_centered)), jnp.sum(jnp.square(y_centered))
  slope = jnp.sum(x_centered * y_centered) / jnp.where(spread > 0, spread, 1.0)
  residual = jnp.sum(jnp.square(y_centered - slope * x_centered))
  intercept = y[0] + y_shift.mean() - slope * (x[0] + x_shift.mean())
  r_squared = jnp.where(total == 0, 1.0, 1.0 - residual / jnp.where(total == 0, 1.0, total))
  return slope, intercept, r_squared


def mean_absolute_percentage_error(predictions: chex.Array, targets: chex.Array) -> jax.Array:
  """Mean of the absolute error in percent of the target, over targets that are not 0.

  Args:
    predictions: real predictions, `[n]` or `[n, d]`.
    targets: real targets of the same shape.

  Returns:
    Percent, float32 or wider, `[]`; 0 if all targets are 0.

  Raises:
    ValueError: if there are no predictions.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, section 4.1, https://arxiv.org/abs/2210.05775.
  """
  predictions, targets = _pair(predictions, targets)
  counted = targets != 0
  errors = jnp.abs(predictions - targets) / jnp.where(counted, jnp.abs(targets), 1.0)
  total = jnp.sum(jnp.where(counted, errors, 0.0))
  return 100.0 * total / jnp.maximum(jnp.sum(counted), 1)


def root_mean_squared_error(predictions: chex.Array, targets: chex.Array) -> jax.Array:
  """Root of the mean squared error over every value.

  Args:
    predictions: real predictions, `[n]` or `[n, d]`.
    targets: real targets of the same shape.

  Returns:
    Error in units of the targets, float32 or wider, `[]`. Perfect predictions have gradient 0.

  Raises:
    ValueError: if there are no predictions.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, section 4.1, https://arxiv.org/abs/2210.05775.
  """
  predictions, targets = _pair(predictions, targets)
  return _root_of_scaled(predictions - targets, jnp.mean)


def worst_group_rmse(
  predictions: chex.Array, targets: chex.Array, groups: chex.Array, *, num_groups: int
) -> jax.Array:
  """The largest root mean squared error among groups (domains).

  Models for new domains are evaluated on their worst domain.

  Args:
    predictions: real predictions, `[n]` or `[n, d]`.
    targets: real targets of the same shape.
    groups: group of each row, int `[n]`.
    num_groups: number of groups; empty ones are left out.

  Returns:
    Error in units of the targets, float32 or wider, `[]`; NaN if a group of a JAX array lies
    outside [0, num_groups).

  Raises:
    ValueError: if there are no predictions, `num_groups` < 1, or a known group lies outside.

  Reference: Yao et al., C-Mixup, NeurIPS 2022, section 4.3, https://arxiv.org/abs/2210.05775.
  """
  check_at_least(1, num_groups=num_groups)
  predictions, targets = _pair(predictions, targets)
  check_arrays(groups=(groups, f"int [{len(predictions)}]"))
  groups = as_classes("groups", groups, num_groups)
  counts = jnp.zeros(num_groups, predictions.dtype).at[groups].add(1)

  def largest(square):
    rows = square.reshape(square.shape[0], -1).mean(axis=1)
    sums = jnp.zeros(num_groups, rows.dtype).at[groups].add(rows)
    return jnp.max(sums / jnp.maximum(counts, 1))

  error = _root_of_scaled(predictions - targets, largest)
  return jnp.where(jnp.all(groups < num_groups), error, jnp.nan)


def _root_of_scaled(errors: jax.Array, mean: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """`sqrt(mean(errors^2))` for errors whose squares may overflow, with gradient 0 at 0."""
  size = jax.lax.stop_gradient(jnp.max(jnp.abs(errors)))
  zero = size == 0
  scale = jnp.where(zero | jnp.isinf(size), 1.0, size)
  square = mean(jnp.square(errors / scale))
  return scale * jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
