"""Source models: how they are trained before they adapt, and how an adapter runs them."""

from collections.abc import Callable

import chex
import jax
from flax import linen as nn

from experiments.kit.train import classification_loss
from jaxlab import augment, losses


def augmented(key: chex.PRNGKey, inputs: chex.Array) -> jax.Array:
  """Perturbs a batch as its labels allow: jitters signals `[b, T, c]`, mirrors images."""
  perturb = augment.jitter_signals if inputs.ndim == 3 else augment.random_flip
  return perturb(key, inputs)


def smoothed_loss(module: nn.Module, *, label_smoothing: float) -> Callable:
  """The engine's loss of a source model: augmented rows, cross-entropy with smoothed labels."""

  def loss(apply, key, batch):
    logits = apply(augmented(key, batch.inputs)).logits
    return losses.label_smoothed_cross_entropy(
      logits, batch.labels, label_smoothing=label_smoothing
    )

  return classification_loss(module, loss)


def forward_fn(module: nn.Module, model_state: chex.ArrayTree, *, train: bool = True) -> Callable:
  """`(params, inputs) -> outputs`, as adapters take it.

  Args:
    module: the network.
    model_state: its running statistics, which stay as they are.
    train: whether it normalizes by the statistics of each batch; by the stored ones otherwise.
  """

  def forward(params, inputs):
    return module.apply({"params": params, **model_state}, inputs, train=train)

  return forward
