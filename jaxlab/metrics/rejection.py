"""What a model gains by refusing its least confident predictions."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_filled


class RejectionCurve(NamedTuple):
  """Errors of the predictions that are kept, by the number kept; tied ones are kept together.

  Attributes:
    thresholds: largest uncertainty that is kept, ascending, `[n]`.
    kept: share of the predictions that is kept, `[n]`.
    error: their mean error, `[n]`.
  """

  thresholds: chex.Array
  kept: chex.Array
  error: chex.Array


def rejection_curve(uncertainty: chex.Array, errors: chex.Array) -> RejectionCurve:
  """Mean error of the predictions that are kept if the most uncertain ones are refused.

  Args:
    uncertainty: how unsure each prediction is, in any unit, `[n]`.
    errors: error of each, or whether it is wrong, `[n]`.

  Returns:
    A `RejectionCurve` in float32 or wider. A NaN uncertainty is refused first, and its point is
    NaN; a NaN error makes all points NaN from its own on.

  Raises:
    ValueError: if there are no predictions.

  Reference: Nadeem et al., Accuracy-Rejection Curves for Comparing Classification Methods, 2010,
  https://proceedings.mlr.press/v8/nadeem10a.html.
  """
  check_arrays(uncertainty=(uncertainty, "[n]"), errors=(errors, "[n]"))
  check_filled(uncertainty=uncertainty)
  uncertainty, errors = as_accumulator(uncertainty, errors)
  order = jnp.argsort(uncertainty)
  ranked = uncertainty[order]
  places = jnp.arange(ranked.size)
  is_last = jnp.append(ranked[1:] != ranked[:-1], True)
  last = jax.lax.cummin(jnp.where(is_last, places, ranked.size), reverse=True)
  count = (last + 1).astype(ranked.dtype)
  error = jnp.cumsum(errors[order])[last] / count
  missing = jnp.isnan(ranked)
  kept = jnp.where(missing, jnp.nan, count / ranked.size)
  return RejectionCurve(ranked, kept, jnp.where(missing, jnp.nan, error))


def rejection_ratio(uncertainty: chex.Array, errors: chex.Array) -> jax.Array:
  """How much of what refusing can gain an uncertainty does gain: one number for a whole curve.

  Args:
    uncertainty: how unsure each prediction is, in any unit, `[n]`.
    errors: error of each, or whether it is wrong, `[n]`.

  Returns:
    With the areas under the curves of error against share kept, `(random - uncertainty) / (random -
    errors themselves)`: 1 for the order of the errors, 0 for a constant, negative for an order that
    is worse than none; a scalar in float32 or wider. 0 if all errors are equal, NaN with a NaN.

  Raises:
    ValueError: if there are no predictions.

  Reference: Malinin et al., Incorporating Uncertainty into Deep Learning for Spoken Language
  Assessment, ACL 2017, section 5, https://aclanthology.org/P17-2008; there for errors of 0 and 1.
  """
  check_arrays(uncertainty=(uncertainty, "[n]"), errors=(errors, "[n]"))
  check_filled(errors=errors)
  errors = as_accumulator(errors)
  gain, most = (jnp.mean(errors) - _area(order, errors) for order in (uncertainty, errors))
  flat = jnp.max(errors) == jnp.min(errors)
  ratio = jnp.where(flat, 0.0, gain / jnp.where(flat, 1.0, most))
  return jnp.where(jnp.any(jnp.isnan(uncertainty)) | jnp.any(jnp.isnan(errors)), jnp.nan, ratio)


def _area(uncertainty, errors) -> jax.Array:
  """Area under the error by trapezoids; from nothing kept on it is that of the surest."""
  _, kept, error = rejection_curve(uncertainty, errors)
  widths = jnp.diff(kept, prepend=jnp.zeros(1, kept.dtype))
  before = jnp.concatenate([error[:1], error[:-1]])
  return jnp.sum(widths * (error + before) / 2)
