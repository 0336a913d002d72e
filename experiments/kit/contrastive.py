"""Contrastive training of an encoder of images, which needs no labels."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.kit.views import ViewFn, augment_images
from jaxlab import losses, training


def contrastive_loss(
  module: nn.Module, *, temperature: chex.Numeric = 0.5
) -> Callable[..., training.LossOutput]:
  """The engine's loss on batches (images,): each of two strong views finds the other one.

  Args:
    module: encoder without running statistics, whose outputs have a `projection`.
    temperature: of the similarities.
  """

  def loss(params, model_state, batch, key):
    del model_state
    views = augment_images(key, jnp.concatenate([batch[0], batch[0]]))
    outputs = module.apply({"params": params}, views)
    values = losses.nt_xent_loss(*jnp.split(outputs.projection, 2), temperature=temperature)
    return training.LossOutput(jnp.mean(values.reshape(2, -1), axis=0))

  return loss


def pair_loss(module: nn.Module, view: ViewFn) -> Callable[..., training.LossOutput]:
  """The engine's loss on batches (images,): are two views those of one image, or of two?

  Args:
    module: encoder whose `logits` are the features; it may have running statistics.
    view: makes views of images.
  """

  def loss(params, model_state, batch, key):
    views = jnp.concatenate([view(k, batch[0]) for k in jax.random.split(key)])
    variables = {"params": params, **model_state}
    outputs, state = module.apply(variables, views, train=True, mutable=["batch_stats"])
    one, other = jnp.split(outputs.logits, 2)
    together, apart = (
      losses.pair_logistic_loss(one, x, jnp.full(len(x), is_positive))
      for x, is_positive in ((other, 1), (jnp.roll(other, 1, axis=0), 0))
    )
    return training.LossOutput(
      (together + apart) / 2, model_state=jax.lax.stop_gradient(dict(state))
    )

  return loss
