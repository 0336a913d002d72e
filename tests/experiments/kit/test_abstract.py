"""A step from shapes equals the step that trains."""

import jax
import jax.numpy as jnp
import optax

from experiments.kit.abstract import abstract_step
from experiments.kit.datasets import describe
from experiments.kit.train import classification_loss
from jaxlab import models, training


def test_the_abstract_step_has_the_shapes_of_the_real_one():
  module, optimizer = models.MLP(10, (4,), norm=models.GhostBatchNorm), optax.adam(1e-3)
  mesh = training.make_mesh({"data": 2})
  loss = classification_loss(module)
  update, state, batch = abstract_step(module, loss, optimizer, describe("digits").batch(4), mesh)
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((state, batch)))

  def real(key):
    images = jnp.zeros(batch.inputs.shape, batch.inputs.dtype)
    variables = dict(module.init(key, images))
    return training.init_state(key, variables.pop("params"), optimizer, model_state=variables)

  built = jax.jit(real)(jax.random.key(0))
  shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (built, state)]
  assert shapes[0] == shapes[1]
  after, metrics = jax.eval_shape(update, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(built) and "loss" in metrics
