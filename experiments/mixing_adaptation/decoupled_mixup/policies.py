"""Mixing policies that serve any loss of two labels, and the networks they train and probe."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit.datasets import Dataset, Split
from experiments.kit.train import classification_loss, nan_unless
from jaxlab import augment, losses, models

# Beta(100, 100): both shares lie close to a half.
_EVEN = 100.0
_PROBE_ROWS = 100


class Mixture(NamedTuple):
  """Scores of mixed inputs `[b, k]`, both labels `[b]` and the share of the first `[b]`."""

  logits: chex.Array
  labels_a: chex.Array
  labels_b: chex.Array
  ratio: chex.Array


def network(config, dataset: Dataset) -> nn.Module:
  """The classifier of a set."""
  if config.network != "conv":
    build = {"resnet18": models.resnet18, "resnext50": models.resnext50}[config.network]
    return build(dataset.num_classes, stem="cifar")
  if not dataset.is_image:
    return models.ConvNet(dataset.num_classes, widths=(16, 32, 32))
  return models.ConvNet(
    dataset.num_classes, widths=(16, 32), kernel_size=(3, 3), strides=(1, 1), pool_after=0
  )


def policies(config, dataset: Dataset) -> dict[str | None, float]:
  """The policies that suit a set with the parameter of their Beta law; None mixes nothing."""
  alphas = dict(zip(config.policies, config.alphas, strict=True))
  return {None: 0.0} | {p: a for p, a in alphas.items() if dataset.is_image or p != "saliency"}


def mix(config, dataset: Dataset, policy: str, alpha, apply, key, batch: Split) -> Mixture:
  """Mixes a batch by a policy, with shares from Beta(alpha, alpha), and scores it by `apply`."""
  inputs, labels = batch
  if policy == "manifold":
    draw_key, layer_key = jax.random.split(key)
    draw = augment.draw_mix(draw_key, batch_size=labels.shape[0], alpha=alpha)
    chosen = augment.mixing_layer(layer_key, num_layers=config.num_layers)

    def mix_layer(layer, hidden):
      mixed = augment.interpolate_pairs(hidden, draw.permutation, draw.ratio)
      return jnp.where(layer == chosen, mixed, hidden)

    logits = apply(inputs, mix=mix_layer).logits
    return Mixture(logits, labels, labels[draw.permutation], draw.ratio)
  box = augment.cutmix if dataset.is_image else augment.segment_mix
  mixings = {"mixup": augment.mixup, "box": box, "saliency": augment.saliency_box_mix}
  mixed = mixings[policy](key, inputs, labels, alpha=alpha)
  return Mixture(apply(mixed.inputs).logits, mixed.labels_a, mixed.labels_b, mixed.ratio)


def mixing_loss(config, dataset: Dataset, policy: str | None, setting) -> Callable:
  """The engine's loss of a policy, whose labels count as `setting` says."""

  def loss(apply, key, batch):
    if config.crop:
      key, crop_key, flip_key = jax.random.split(key, 3)
      inputs = augment.random_crop(crop_key, batch.inputs, padding=config.crop)
      batch = Split(augment.random_flip(flip_key, inputs), batch.labels)
    if policy is None:
      logits = apply(batch.inputs).logits
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    alpha = policies(config, dataset)[policy] * setting["alpha_scale"]
    return loss_of_labels(mix(config, dataset, policy, alpha, apply, key, batch), setting)

  return classification_loss(network(config, dataset), loss)


def loss_of_labels(mixture: Mixture, setting) -> jax.Array:
  """Mixup's loss with decoupled terms of weight `eta`, or with coupled ones.

  The coupled terms are the cross-entropies to both labels in one softmax.
  """
  values = losses.decoupled_mixup_loss(*mixture, eta=setting["eta"])
  # At equal shares both cross-entropies have a half; as the decoupled terms they have weight 1.
  coupled = 2 * losses.mixup_cross_entropy(*mixture._replace(ratio=0.5))
  return values + setting["coupled"] * jnp.where(mixture.labels_a == mixture.labels_b, 0, coupled)


def both_on_top(config, dataset: Dataset, policy: str, variables, key, test: Split) -> jax.Array:
  """How often the two labels of a test mixture are the two highest scores.

  Of the policy's own mixtures, as even as it makes them, those of two classes that both have a
  quarter or more.
  """

  def probe(arguments):
    module = network(config, dataset)
    logits, *labels, ratio = mix(
      *(config, dataset, policy, _EVEN),
      lambda inputs, **kwargs: module.apply(variables, inputs, **kwargs),
      *arguments,
    )
    both = jnp.take_along_axis(logits, jnp.stack(labels, -1), axis=-1)
    top = jnp.sum(logits > jnp.min(both, -1, keepdims=True), -1) <= 1
    top = nan_unless(jnp.all(jnp.isfinite(logits)), top.astype(jnp.float32))
    hard = (labels[0] != labels[1]) & (jnp.minimum(ratio, 1 - ratio) >= 0.25)
    return jnp.sum(top * hard), jnp.sum(hard)

  rows = min(_PROBE_ROWS, len(test.labels))
  batches = jax.tree.map(
    lambda x: jnp.asarray(x[: len(x) // rows * rows]).reshape(-1, rows, *x.shape[1:]), test
  )
  hits, counts = jax.lax.map(probe, (jax.random.split(key, len(batches.labels)), batches))
  return hits.sum() / counts.sum()
