"""Networks trained with mixup whose labels mix in another ratio, or that ends early."""

import functools

import jax
import jax.numpy as jnp

from experiments.kit.datasets import Dataset
from experiments.kit.train import accuracy, classification_loss, sgd_cosine, train
from experiments.mixing_adaptation.mixup_features.patches import MIXUP, PLAIN, STOPPED
from jaxlab import augment, losses, models

FIXED, SEPARATE = "mixup, fixed label ratio", "mixup, label ratio drawn separately"


def search_space(config) -> dict[str, list[dict]]:
  """Method -> the settings that `train_network` takes: the same weight decays for all.

  `share` of the steps mix; labels do so as inputs (kind 0), in a fixed ratio, or in one of theirs.
  """
  methods = {
    PLAIN: {"share": 0.0, "kind": 0},
    MIXUP: {"share": 1.0, "kind": 0},
    FIXED: {"share": 1.0, "kind": 1},
    SEPARATE: {"share": 1.0, "kind": 2},
    STOPPED: {"share": config.stop_share, "kind": 0},
  }
  return {
    method: [numbers | {"weight_decay": decay} for decay in config.weight_decays]
    for method, numbers in methods.items()
  }


def network(dataset: Dataset):
  """The classifier."""
  if dataset.is_image:
    return models.resnet18(dataset.num_classes, stem="cifar")
  return models.ConvNet(dataset.num_classes)


def mixing_loss(config, module, kind):
  """Cross-entropy of mixtures; beside its rows a batch says whether they are mixed at all."""

  def loss(apply, key, batch):
    (inputs, labels), mixes = batch
    key, label_key = jax.random.split(key)
    draw_mix = functools.partial(
      augment.draw_mix, batch_size=len(labels), alpha=config.alpha, majority=True
    )
    ratio, partners = draw_mix(key)
    fixed = jnp.full_like(ratio, config.label_ratio)
    label_ratio = jnp.stack([ratio, fixed, draw_mix(label_key).ratio])[kind]
    ratio, label_ratio = (jnp.where(mixes, share, 1.0) for share in (ratio, label_ratio))
    logits = apply(augment.interpolate_pairs(inputs, partners, ratio)).logits
    return losses.mixup_cross_entropy(logits, labels, labels[partners], label_ratio)

  return classification_loss(module, loss)


def train_network(config, dataset: Dataset, key, splits, setting) -> dict[str, jax.Array]:
  """Accuracies along the training of one network, and the medians of the second half."""
  module = network(dataset)
  first, validation, test = splits
  decay = setting["weight_decay"]

  def evaluate(trained):
    return tuple(accuracy(module, trained.variables, part) for part in (validation, test))

  trained = train(
    key,
    module,
    mixing_loss(config, module, setting["kind"]),
    sgd_cosine(config.learning_rate, config.network_steps, weight_decay=decay),
    first,
    num_steps=config.network_steps,
    batch_size=config.batch_size,
    schedule=jnp.arange(config.network_steps) < setting["share"] * config.network_steps,
    evaluate=evaluate,
    eval_every=config.network_steps // config.num_evaluations,
  )
  half = config.num_evaluations // 2
  names = ("validation accuracy", "accuracy")
  measured = {name: jnp.median(values[half:]) for name, values in zip(names, trained.scores)}
  return measured | {"accuracy by step": trained.scores[1], "bad_step": trained.bad_step}
