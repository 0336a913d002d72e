"""Mixtures of two Weibull distributions, which separate probable reasoning paths from others."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled, check_range
from jaxlab._minimize import minimize
from jaxlab.samplers.selection import as_mask

_LOWEST_SCORE = 1e-6
_WEIGHTS = 0.2, 0.8
_LOWEST_SHAPE = 0.01  # And scale.
_FEWEST_PATHS = 4
# Where the fit starts: a weight, two shapes, two scales.
_START = 0.5, 1.0, 1.0, 1.5, 2.0


class WeibullMixture(NamedTuple):
  """A mixture of two Weibull distributions.

  Attributes:
    weight: share of the first, `[...]`.
    shape: their shapes, `[..., 2]`.
    scale: their scales, `[..., 2]`.
  """

  weight: chex.Array
  shape: chex.Array
  scale: chex.Array


def weibull_mixture_log_prob(
  x: chex.Array, *, weight: chex.Numeric, shape: chex.Array, scale: chex.Array
) -> jax.Array:
  """Log-density of a mixture of two Weibull distributions.

  Args:
    x: where, `[..., n]`.
    weight: share of the first component, in (0, 1), `[...]`; a scalar, with shapes and
      scales `[2]`, for one mixture of all rows.
    shape: shapes k of the components, positive, `[..., 2]`.
    scale: scales of the components, positive, `[..., 2]`.

  Returns:
    Log-densities in nats, `[..., n]`, in float32 or wider; -inf for negative x, finite at 0.

  Raises:
    ValueError: if a known weight lies outside (0, 1), a known shape or scale is not positive, or
      shapes of arrays do not agree.

  Reference: Zhou et al., Bridging Internal Probability and Self-Consistency for Effective and
  Efficient LLM Reasoning, NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  x, mixture = _as_mixture(x, weight, shape, scale)
  return jnp.where(x < 0, -jnp.inf, jnp.logaddexp(*_log_terms(x, mixture)))


def weibull_mixture_posterior(
  x: chex.Array, *, weight: chex.Numeric, shape: chex.Array, scale: chex.Array
) -> jax.Array:
  """Probability that a value comes from the first component of a mixture.

  Args:
    x: values, not negative, `[..., n]`.
    weight: share of the first component, in (0, 1), `[...]`; a scalar, with shapes and
      scales `[2]`, for one mixture of all rows.
    shape: shapes of the components, positive, `[..., 2]`.
    scale: scales of the components, positive, `[..., 2]`.

  Returns:
    Probabilities, `[..., n]`, in float32 or wider.

  Raises:
    ValueError: as in `weibull_mixture_log_prob`.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  first, second = _log_terms(*_as_mixture(x, weight, shape, scale))
  return jax.nn.sigmoid(first - second)


def reasoning_prune_mask(
  x: chex.Array, *, weight: chex.Numeric, shape: chex.Array, scale: chex.Array
) -> jax.Array:
  """Which paths to keep: all but those that are improbable in two ways.

  A path is removed if it is below the mean, and more likely of the component with the lower mean.
  The best path always stays.

  Args:
    x: scores of the paths, `[..., n]`, n >= 1.
    weight: share of the first component, in (0, 1), `[...]`; a scalar, with shapes and
      scales `[2]`, for one mixture of all rows.
    shape: shapes of the components, positive, `[..., 2]`.
    scale: scales of the components, positive, `[..., 2]`.

  Returns:
    Booleans, `[..., n]`.

  Raises:
    ValueError: as in `weibull_mixture_log_prob`, or if there are no paths.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  check_filled(x=x)
  x, mixture = _as_mixture(x, weight, shape, scale)
  return _keep(x, jnp.ones(x.shape, bool), mixture)


def _keep(x: jax.Array, valid: jax.Array, mixture: WeibullMixture) -> jax.Array:
  log_means = jnp.log(mixture.scale) + jax.lax.lgamma(1.0 + 1.0 / mixture.shape)
  first, second = _log_terms(x, mixture)
  is_first_higher = log_means[..., :1] >= log_means[..., 1:]
  is_lower = jnp.where(is_first_higher, first < second, first > second)
  count = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
  mean = jnp.sum(jnp.where(valid, x, 0.0), axis=-1, keepdims=True) / count
  best = jnp.max(jnp.where(valid, x, -jnp.inf), axis=-1, keepdims=True)
  # Rounding may put the mean of equal scores above them.
  return ~is_lower | (x >= mean) | (x >= best)


def _as_mixture(x, weight, shape, scale) -> tuple[jax.Array, WeibullMixture]:
  """The values, and a mixture for each row of them."""
  is_single = np.ndim(weight) == 0 and np.ndim(shape) == np.ndim(scale) == 1
  rows = "" if is_single else "..., "
  check_arrays(
    x=(x, "[..., n]"),
    weight=(weight, "[]" if is_single else "[...]"),
    shape=(shape, f"[{rows}2]"),
    scale=(scale, f"[{rows}2]"),
  )
  check_range("weight", weight, "(0, 1)")
  check_range("shape", shape, "(0, inf)")
  check_range("scale", scale, "(0, inf)")
  x, *mixture = as_accumulator(x, weight, shape, scale)
  batch = x.shape[:-1]
  sizes = batch, (*batch, 2), (*batch, 2)
  return x, WeibullMixture(*map(jnp.broadcast_to, mixture, sizes))


def _log_terms(x: jax.Array, mixture: WeibullMixture) -> tuple[jax.Array, jax.Array]:
  """Log-densities of the two components with their weights, each `[..., n]`."""
  log_x = jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
  weight, shape, scale = mixture
  first, second = (
    log_weight[..., None] + _weibull_log_prob(log_x, shape[..., i, None], scale[..., i, None])
    for i, log_weight in enumerate((jnp.log(weight), jnp.log1p(-weight)))
  )
  return first, second


def _weibull_log_prob(log_x: jax.Array, shape: jax.Array, scale: jax.Array) -> jax.Array:
  log_ratio = log_x - jnp.log(scale)
  # The power stays finite, so that no gradient is infinity times 0.
  power = jnp.exp(jnp.minimum(shape * log_ratio, 80.0))
  return jnp.log(shape) - jnp.log(scale) + (shape - 1.0) * log_ratio - power


def fit_weibull_mixture(
  x: chex.Array, *, mask: chex.Array | None = None, num_steps: int = 200
) -> WeibullMixture:
  """Fits a mixture of two Weibull distributions by maximum likelihood.

  The weight stays in [0.2, 0.8], shapes and scales above 0.01. The search is local (BFGS from
  weight 0.5, shapes 1 and 1, scales 1.5 and 2), since the likelihood has no upper bound: a
  component may become a spike. It ends once it gains no more. No gradient flows to the arguments.

  Args:
    x: scores of the paths, `[..., n]`, clipped to [1e-6, 1].
    mask: 1 or True where a path counts, `[..., n]` or a shape that broadcasts to it; None for all.
    num_steps: most evaluations of the likelihood, at least 1.

  Returns:
    The `WeibullMixture`, in float32 or wider; where the search starts in rows with fewer than 4
    paths, or with equal scores. NaN in rows with a NaN that counts.

  Raises:
    ValueError: if `num_steps` < 1.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  check_at_least(1, num_steps=num_steps)
  check_arrays(x=(x, "[..., n]"))
  x = jax.lax.stop_gradient(as_accumulator(x))
  rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
  params = _fit(rows, as_mask(mask, x.shape).reshape(rows.shape), num_steps=num_steps)
  return _mixture(params.reshape(*x.shape[:-1], len(_START)))


def prune_improbable_paths(
  x: chex.Array, *, mask: chex.Array | None = None, num_steps: int = 200
) -> jax.Array:
  """`reasoning_prune_mask` by a mixture that is fitted to the scores themselves.

  Args:
    x: scores of the paths, `[..., n]`, n >= 1.
    mask: 1 or True where a path counts, `[..., n]` or a shape that broadcasts to it; None for all.
    num_steps: most evaluations of the likelihood, at least 1.

  Returns:
    Which paths to keep, bool `[..., n]`: all in rows where nothing is fitted.

  Raises:
    ValueError: if `num_steps` < 1 or there are no paths.
  """
  check_filled(x=x)
  x = jnp.asarray(x)
  valid = as_mask(mask, x.shape)
  mixture = fit_weibull_mixture(x, mask=valid, num_steps=num_steps)
  clipped = jnp.clip(as_accumulator(x), _LOWEST_SCORE, 1.0)
  return _keep(clipped, valid, mixture) | ~_can_be_fitted(clipped, valid)[..., None]


def _can_be_fitted(x: jax.Array, valid: jax.Array) -> jax.Array:
  highest = jnp.max(jnp.where(valid, x, -jnp.inf), axis=-1)
  lowest = jnp.min(jnp.where(valid, x, jnp.inf), axis=-1)
  return (jnp.sum(valid, axis=-1) >= _FEWEST_PATHS) & (highest > lowest)


def _mixture(params: jax.Array) -> WeibullMixture:
  """Unbounded parameters, `[..., 5]`, as a mixture."""
  low, high = _WEIGHTS
  positive = _LOWEST_SHAPE + jax.nn.softplus(params[..., 1:])
  # A sine has no plateaus: a search that reaches a bound may come back.
  weight = (low + high) / 2 + (high - low) / 2 * jnp.sin(params[..., 0])
  return WeibullMixture(weight, positive[..., :2], positive[..., 2:])


@functools.partial(jax.jit, static_argnames="num_steps")
def _fit(x: jax.Array, valid: jax.Array, *, num_steps: int) -> jax.Array:
  """Unbounded parameters of every row, `[r, 5]`. Each step evaluates one point of each row."""
  x = jnp.where(valid, jnp.clip(x, _LOWEST_SCORE, 1.0), 1.0)
  count = jnp.maximum(jnp.sum(valid, axis=-1), 1)

  def mean_loss(params):
    density = jnp.logaddexp(*_log_terms(x, _mixture(params)))
    return -jnp.sum(jnp.where(valid, density, 0.0), axis=-1) / count

  weight, *positive = _START
  low, high = _WEIGHTS
  start = [
    np.arcsin((2 * weight - low - high) / (high - low)),
    *np.log(np.expm1(np.array(positive) - _LOWEST_SHAPE)),
  ]
  params = jnp.broadcast_to(jnp.array(start, x.dtype), (x.shape[0], len(start)))
  active = _can_be_fitted(x, valid)
  params = minimize(mean_loss, params, num_steps=num_steps, active=active)
  return jnp.where(jnp.any(jnp.isnan(x), axis=-1)[:, None], jnp.nan, params)
