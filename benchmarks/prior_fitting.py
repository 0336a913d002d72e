"""Networks fitted to a prior with the engine, trained once and kept in .cache."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks import measure
from jaxlab import algorithms, data, samplers, training
from jaxlab.experiment import Context


def prior_loss(module: nn.Module, prior_fn, loss_fn) -> Callable[..., training.LossOutput]:
  """The engine's loss of a network on data sets that are drawn inside the step."""

  def loss(params, model_state, batch, key):
    draw = samplers.draw_data_sets(jax.random.wrap_key_data(batch["key"]), prior_fn)
    num_context = batch["num_context"][0]

    def apply(params, *arrays):
      return module.apply({"params": params}, *arrays)

    losses = algorithms.query_losses(apply, params, draw, loss_fn, num_context=num_context)
    return training.LossOutput(*losses, model_state)

  return loss


def init_state(key, module: nn.Module, prior_fn, optimizer) -> training.TrainState:
  """A fresh state of the engine."""
  init_key, state_key = jax.random.split(key)
  draw = jax.eval_shape(prior_fn, key)
  x, y = jnp.zeros((1, *draw.x.shape[1:])), jnp.zeros((1, *draw.y.shape[1:]))
  params = jax.jit(module.init)(init_key, x, y, 1)["params"]
  return training.init_state(state_key, params, optimizer)


def trained(
  name: str,
  module: nn.Module,
  prior_fn,
  loss_fn,
  *,
  num_steps: int,
  warmup_fraction: float,
  min_context: int = 0,
  max_context: int | None = None,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  mesh: jax.sharding.Mesh,
) -> chex.ArrayTree:
  """The parameters of a network, trained at the first call of the name in the life of .cache."""
  context = Context(measure.CACHE / name, jax.random.key(0), mesh=mesh)
  optimizer = algorithms.prior_fitting_optimizer(
    learning_rate, num_steps, warmup_fraction=warmup_fraction
  )
  steps_per_call = min(100, num_steps)
  update = training.build_update(
    prior_loss(module, prior_fn, loss_fn), optimizer, mesh=mesh, steps_per_call=steps_per_call
  )
  group_size, num_points = jax.eval_shape(prior_fn, context.key).y.shape
  batches = data.prior_batches(
    seed=0,
    batch_size=batch_size,
    max_context=num_points if max_context is None else max_context,
    min_context=min_context,
    group_size=group_size,
    steps_per_call=steps_per_call,
  )
  state = init_state(context.seed_key(0), module, prior_fn, optimizer)
  result = context.fit(
    "train", state, update, batches, num_steps=num_steps, steps_per_call=steps_per_call
  )
  return result.state.params
