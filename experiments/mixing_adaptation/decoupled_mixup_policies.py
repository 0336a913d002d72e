"""Sets with their networks, and mixing policies that take any loss of two labels."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments import classification
from experiments.classification import Split
from jaxlab import augment, models


class Task(NamedTuple):
  """A set, and the network for it."""

  name: str
  train: Split
  test: Split
  module: nn.Module
  num_steps: int


class Policy(NamedTuple):
  """A mixing policy, and the weights of the decoupled terms to train with; 0 is mixup's loss."""

  name: str
  alpha: float
  etas: tuple[float, ...]


def tasks(config) -> list[Task]:
  """All sets with their networks."""
  found = []
  sizes = zip(config.num_train, config.num_test, config.num_steps, strict=True)
  for name, (num_train, num_test, num_steps) in zip(config.datasets, sizes, strict=True):
    if name == "mnist1d":
      train, test = classification.mnist1d_splits(num_train, num_test)
    elif name == "digits":
      train, test = classification.digits_splits(num_train, num_test)
    else:
      train, test = classification.image_splits(name)
      train, test = Split(*(x[:num_train] for x in train)), Split(*(x[:num_test] for x in test))
    num_classes = int(test.labels.max()) + 1
    module = network(config, train.inputs.ndim == 3, num_classes)
    found.append(Task(name, train, test, module, num_steps))
  return found


def network(config, is_signal: bool, num_classes: int):
  """The classifier of a set."""
  if config.network != "conv":
    build = {"resnet18": models.resnet18, "resnext50": models.resnext50}[config.network]
    return build(num_classes, stem="cifar")
  if is_signal:
    return models.ConvNet(num_classes)
  return models.ConvNet(
    num_classes, widths=(32, 64), kernel_size=(3, 3), strides=(1, 1), pool_after=0
  )


def policies(config, task: Task) -> list[Policy]:
  """The policies that suit a set."""
  found = []
  for name, alpha in zip(config.policies, config.alphas, strict=True):
    if name == "saliency" and task.train.inputs.ndim != 4:
      continue
    others = config.other_etas if name == "mixup" else ()
    found.append(Policy(name, alpha, (0.0, config.eta, *others)))
  return found


def mixing_loss(config, task: Task, policy: Policy | None, objective: Callable) -> Callable:
  """The engine's loss: any policy with any loss of two labels."""
  pasting = augment.segment_mix if task.train.inputs.ndim == 3 else augment.cutmix
  mixings = {"mixup": augment.mixup, "box": pasting, "saliency": augment.saliency_box_mix}

  def loss(apply, key, batch):
    key, view_key = jax.random.split(key)
    inputs, labels = batch
    if config.crop:
      inputs = _crop_and_flip(view_key, inputs, config.crop)
    if policy is None:
      return optax.softmax_cross_entropy_with_integer_labels(apply(inputs).logits, labels)
    if policy.name == "manifold":
      draw_key, layer_key = jax.random.split(key)
      draw = augment.draw_mix(draw_key, batch_size=labels.shape[0], alpha=policy.alpha)
      chosen = augment.mixing_layer(layer_key, num_layers=config.num_layers)

      def mix(layer, hidden):
        mixed = augment.interpolate_pairs(hidden, draw.permutation, draw.ratio)
        return jnp.where(layer == chosen, mixed, hidden)

      logits = apply(inputs, mix=mix).logits
      return objective(logits, labels, labels[draw.permutation], draw.ratio)
    mixed = mixings[policy.name](key, inputs, labels, alpha=policy.alpha)
    return objective(apply(mixed.inputs).logits, mixed.labels_a, mixed.labels_b, mixed.ratio)

  return classification.classification_loss(task.module, loss)


def _crop_and_flip(key, images, border):
  """Shifts of up to `border` pixels, zeros coming in, and mirror images."""
  shift_key, flip_key = jax.random.split(key)
  padded = jnp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
  starts = jax.random.randint(shift_key, (images.shape[0], 2), 0, 2 * border + 1)
  shifted = jax.vmap(
    lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])
  )(padded, starts)
  flip = jax.random.bernoulli(flip_key, 0.5, (images.shape[0], 1, 1, 1))
  return jnp.where(flip, shifted[:, :, ::-1], shifted)


def sgd(config, learning_rate: float, num_steps: int) -> optax.GradientTransformation:
  """SGD with momentum, weight decay and a cosine."""
  schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
  return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, 0.9))
