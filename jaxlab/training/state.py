"""The state of a training run: everything that a step reads and writes."""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
  """All that a run needs to resume: exactly what a checkpoint holds.

  Attributes:
    step: number of updates done, int32 `[]`.
    params: the parameters.
    opt_state: state of the optimizer.
    model_state: what the model carries besides parameters (batch statistics), or None.
    key: the run's random key; it never changes; every step derives its own key from it.
  """

  step: jax.Array
  params: chex.ArrayTree
  opt_state: optax.OptState
  model_state: Any
  key: chex.PRNGKey


def init_state(
  key: chex.PRNGKey,
  params: chex.ArrayTree,
  optimizer: optax.GradientTransformation,
  *,
  model_state: Any = None,
) -> TrainState:
  """Makes the state of step 0.

  An update donates its state, so the arrays are copied: `params`, `model_state` and `key` stay
  usable. Copies keep their sharding, and so do the moments that the optimizer makes from them.

  Args:
    key: random key of the run, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
    params: initial parameters, any pytree of floating arrays.
    optimizer: the gradient transformation that will be given to `build_update`.
    model_state: pytree of what the model carries besides parameters, or None.

  Returns:
    `TrainState` at step 0.
  """
  params = jax.tree.map(_own, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # Some optimizers keep the parameters themselves: one buffer cannot be donated twice.
    opt_state=jax.tree.map(_own, optimizer.init(params)),
    model_state=jax.tree.map(_own, model_state),
    key=_own(key),
  )


def _own(x: Any) -> jax.Array:
  """A copy with a strong type: a weak one would turn strong in the first step and recompile."""
  x = jnp.asarray(x)
  return jnp.array(x, dtype=x.dtype, copy=True)


def num_params(params: chex.ArrayTree) -> int:
  """Counts parameters.

  Args:
    params: pytree of arrays, or of `jax.ShapeDtypeStruct` (nothing is allocated).

  Returns:
    The number of scalars in all leaves.
  """
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
