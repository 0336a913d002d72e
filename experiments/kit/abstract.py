"""The training step of a network as shapes alone, for a dry run."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxlab import training


def abstract_step(
  module: nn.Module,
  loss_fn: Callable[..., training.LossOutput],
  optimizer: optax.GradientTransformation,
  batch: chex.ArrayTree,
  mesh: jax.sharding.Mesh,
):
  """What an experiment's `abstract` returns for a network that `build_update` trains.

  Args:
    module: network whose `__call__` takes the first leaf of `batch`.
    loss_fn: the engine's loss.
    optimizer: the gradient transformation.
    batch: pytree of `jax.ShapeDtypeStruct`.
    mesh: the devices.

  Returns:
    The update, and its state and batch as shapes.
  """
  first = jax.tree.leaves(batch)[0]

  def init(key):
    variables = dict(module.init(key, jnp.zeros(first.shape, first.dtype)))
    params = variables.pop("params")
    return training.init_state(key, params, optimizer, model_state=variables)

  state = jax.eval_shape(init, jax.random.key(0))
  return training.build_update(loss_fn, optimizer, mesh=mesh), state, batch
