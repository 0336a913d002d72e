"""Minimization of many small smooth problems at once, legal inside `jax.shard_map`."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._programs import varying_carry

# A search ends at gradients and steps that are as small as rounding errors.
_SMALLEST_GRADIENT, _SMALLEST_STEP = 1e-5, 1e-5


class _Search(NamedTuple):
  """BFGS in every row; `inverse` approximates the inverse Hessian, and starts as the identity."""

  count: jax.Array
  params: jax.Array
  value: jax.Array
  gradient: jax.Array
  inverse: jax.Array
  direction: jax.Array
  step: jax.Array
  is_fresh: jax.Array
  is_active: jax.Array


def minimize(
  function: Callable[[jax.Array], jax.Array],
  start: chex.Array,
  *,
  num_steps: int,
  active: chex.Array | None = None,
) -> jax.Array:
  """Finds a local minimum in every row, by BFGS with steps that are shortened until they help.

  Args:
    function: `[r, p] -> [r]`, whose rows do not depend on each other; differentiable.
    start: unbounded parameters `[r, p]`, of order 1.
    num_steps: most evaluations in the loop, each of one point of every row.
    active: bool `[r]`, rows that are searched; None for all.

  Returns:
    The best parameters, `[r, p]`: where a row starts if it is not active or not finite there.
  """

  def sum_and_values(params):
    values = function(params)
    return jnp.sum(values), values

  def evaluate(params):
    (_, values), gradients = jax.value_and_grad(sum_and_values, has_aux=True)(params)
    return values, gradients

  def proceed(search):
    return (search.count < num_steps) & jnp.any(search.is_active)

  def advance(search):
    moved = search.step[:, None] * search.direction
    params = search.params + moved
    value, gradient = evaluate(params)
    slope = _dot(search.gradient, moved)
    better = value <= search.value + 1e-4 * slope
    inverse = _updated_inverse(search, moved, gradient - search.gradient)
    downhill = _product(inverse, -gradient)
    # A step that does not help is shortened; in the end the search starts afresh, or stops.
    stuck = ~better & (jnp.max(jnp.abs(moved), axis=-1) < _SMALLEST_STEP)
    restart = (better & (_dot(downhill, gradient) >= 0)) | (stuck & ~search.is_fresh)
    params = jnp.where(better[:, None], params, search.params)
    gradient = jnp.where(better[:, None], gradient, search.gradient)
    direction = jnp.where(better[:, None], downhill, search.direction)
    inverse = jnp.where(better[:, None, None], inverse, search.inverse)
    changed = _Search(
      count=search.count + 1,
      params=params,
      value=jnp.where(better, value, search.value),
      gradient=gradient,
      inverse=jnp.where(restart[:, None, None], jnp.eye(params.shape[1])[None], inverse),
      direction=_limited(jnp.where(restart[:, None], -gradient, direction), params),
      step=jnp.where(better | restart, 1.0, 0.3 * search.step),
      is_fresh=jnp.where(better, False, search.is_fresh) | restart,
      is_active=(jnp.max(jnp.abs(gradient), axis=-1) > _SMALLEST_GRADIENT) & (~stuck | restart),
    )
    return jax.tree.map(
      lambda new, old: new if new.ndim == 0 else jnp.where(_rows(search.is_active, new), new, old),
      changed,
      search,
    )

  rows, size = start.shape
  value, gradient = evaluate(start)
  search = _Search(
    count=jnp.zeros((), jnp.int32),
    params=start,
    value=value,
    gradient=gradient,
    inverse=jnp.broadcast_to(jnp.eye(size, dtype=start.dtype), (rows, size, size)),
    direction=_limited(-gradient, start),
    step=jnp.ones_like(value),
    is_fresh=jnp.ones_like(value, bool),
    is_active=jnp.ones_like(value, bool) if active is None else active,
  )
  return jax.lax.while_loop(proceed, advance, varying_carry(advance, search)).params


def _updated_inverse(search: _Search, moved: jax.Array, change: jax.Array) -> jax.Array:
  """The update of Broyden, Fletcher, Goldfarb and Shanno, where the curvature is positive."""
  curvature = _dot(moved, change)
  is_curved = curvature > 1e-10
  safe = jnp.where(is_curved, curvature, 1.0)
  # The first estimate of the scale comes with the first step.
  scale = jnp.where(search.is_fresh, safe / jnp.maximum(_dot(change, change), 1e-20), 1.0)
  inverse = scale[:, None, None] * search.inverse
  bent = _product(inverse, change)
  outer = bent[:, :, None] * moved[:, None, :]
  gain = (1.0 + _dot(change, bent) / safe)[:, None, None]
  update = gain * moved[:, :, None] * moved[:, None, :] - outer - jnp.swapaxes(outer, 1, 2)
  return jnp.where(is_curved[:, None, None], inverse + update / safe[:, None, None], search.inverse)


def _limited(direction: jax.Array, params: jax.Array) -> jax.Array:
  """A step that changes no parameter much: from far away the likelihood is no quadratic."""
  excess = jnp.abs(direction) / (1.0 + 0.5 * jnp.abs(params))
  return direction / jnp.maximum(jnp.max(excess, axis=-1, keepdims=True), 1.0)


def _rows(flags: jax.Array, like: jax.Array) -> jax.Array:
  return flags.reshape(-1, *[1] * (like.ndim - 1))


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.sum(left * right, axis=-1)


def _product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
  return jnp.sum(matrix * vector[:, None, :], axis=-1)
