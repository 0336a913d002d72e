"""Mixing policies that take any loss of two labels, and the networks they train."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.datasets import Dataset
from experiments.kit.train import classification_loss
from jaxlab import augment, models


def network(config, dataset: Dataset) -> nn.Module:
  """The classifier of a set."""
  if config.network != "conv":
    build = {"resnet18": models.resnet18, "resnext50": models.resnext50}[config.network]
    return build(dataset.num_classes, stem="cifar")
  if not dataset.is_image:
    return models.ConvNet(dataset.num_classes)
  return models.ConvNet(
    dataset.num_classes, widths=(32, 64), kernel_size=(3, 3), strides=(1, 1), pool_after=0
  )


def policies(config, dataset: Dataset) -> dict[str | None, float]:
  """The policies that suit a set with the parameter of their Beta law; None mixes nothing."""
  alphas = dict(zip(config.policies, config.alphas, strict=True))
  return {None: 0.0} | {p: a for p, a in alphas.items() if dataset.is_image or p != "saliency"}


def mixing_loss(config, dataset: Dataset, policy: str | None, objective: Callable) -> Callable:
  """The engine's loss of a policy with `objective(logits, labels_a, labels_b, ratio)`."""
  box = augment.cutmix if dataset.is_image else augment.segment_mix
  mixings = {"mixup": augment.mixup, "box": box, "saliency": augment.saliency_box_mix}
  alpha = policies(config, dataset)[policy]

  def loss(apply, key, batch):
    key, view_key = jax.random.split(key)
    inputs, labels = batch
    if config.crop:
      crop_key, flip_key = jax.random.split(view_key)
      inputs = augment.random_crop(crop_key, inputs, padding=config.crop)
      inputs = augment.random_flip(flip_key, inputs)
    if policy is None:
      return optax.softmax_cross_entropy_with_integer_labels(apply(inputs).logits, labels)
    if policy == "manifold":
      draw_key, layer_key = jax.random.split(key)
      draw = augment.draw_mix(draw_key, batch_size=labels.shape[0], alpha=alpha)
      chosen = augment.mixing_layer(layer_key, num_layers=config.num_layers)

      def mix(layer, hidden):
        mixed = augment.interpolate_pairs(hidden, draw.permutation, draw.ratio)
        return jnp.where(layer == chosen, mixed, hidden)

      logits = apply(inputs, mix=mix).logits
      return objective(logits, labels, labels[draw.permutation], draw.ratio)
    mixed = mixings[policy](key, inputs, labels, alpha=alpha)
    return objective(apply(mixed.inputs).logits, mixed.labels_a, mixed.labels_b, mixed.ratio)

  return classification_loss(network(config, dataset), loss)
