"""Contrastive features of images, and what few labels make of them."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.bayes.unsup_pretraining.latent import PCA, PRETRAINED, main_axes
from experiments.kit import datasets, heads
from experiments.kit.contrastive import pair_loss
from experiments.kit.datasets import Split
from experiments.kit.train import adamw_cosine, agrees, classification_loss, predict, train
from jaxlab import augment, models

PIXELS, COPIES, NETWORK, UNTRAINED = (
  "pixels",
  "pixels, augmented copies",
  "network trained end to end",
  "untrained network",
)
RANDOM, BLOCKS = "random", "blocks"


class Task(NamedTuple):
  """Unlabeled images `[m, h, w, c]`, labeled ones in random order, and a test set: all disjoint."""

  unlabeled: chex.Array
  labeled: Split
  test: Split


def draw(config, split: str, seed: int) -> Task:
  """Draws the parts: images at random, or blocks of images by the same writers."""
  dataset = datasets.describe(config.dataset)
  cut = {RANDOM: dataset.splits, BLOCKS: datasets.digit_blocks}[split]
  pool, *labeled = cut(config.images, config.image_labels[-1], config.image_test, seed=seed)
  return Task(pool.inputs, *labeled)


def encoder(config) -> nn.Module:
  """The network whose outputs are the features."""
  if config.dataset == "digits":
    return models.MLP(config.num_features, config.widths)
  return models.resnet18(config.num_features, stem="cifar")


def view(config, key: chex.PRNGKey, images: chex.Array) -> jax.Array:
  """Images moved by a few pixels, with noise."""
  keys = jax.random.split(key)
  moved = augment.random_shift(keys[0], images, max_shift=config.max_shift)
  return moved + config.pixel_noise * jax.random.normal(keys[1], images.shape)


def encode(config, key: chex.PRNGKey, task: Task) -> dict:
  """Trains the encoder on unlabeled images.

  Returns:
    `features`, row -> those of the labeled and of the test images; and the last `pair loss`.
  """
  module, train_key = encoder(config), jax.random.fold_in(key, 0)
  loss = pair_loss(module, functools.partial(view, config))
  optimizer = optax.adam(config.contrastive_rate)
  sizes = {"num_steps": config.contrastive_steps, "batch_size": config.contrastive_batch}
  trained = train(train_key, module, loss, optimizer, (task.unlabeled,), **sizes)
  untrained = module.init(jax.random.fold_in(key, 1), task.unlabeled[:1])
  pixels = [x.reshape(len(x), -1) for x in (task.unlabeled, task.labeled.inputs, task.test.inputs)]
  axes = main_axes(pixels[0] - jnp.mean(pixels[0], axis=0), config.num_features)

  def features(variables):
    images = task.labeled.inputs, task.test.inputs
    return tuple(predict(module, variables, x).logits for x in images)

  last = loss(trained.params, trained.model_state, (task.unlabeled,), jax.random.fold_in(key, 2))
  rows = {
    PRETRAINED: features(trained.variables),
    UNTRAINED: features(untrained),
    PCA: tuple(x @ axes for x in pixels[1:]),
  }
  return {"features": rows, "pair loss": jnp.mean(last.values), "bad_step": trained.bad_step}


def fit_network(config, key, labeled: Split, weights, folds, num_classes: int):
  """The composite network, trained on views of the labeled images, at the best weight decay."""
  module = heads.Headed(encoder(config), num_classes)

  def loss_fn(apply, key, batch):
    logits = apply(view(config, key, batch.inputs)).logits
    return heads.cross_entropy(logits, batch.labels)

  def fit(weights, decay):
    def batch(key, batch_size):
      rows = jax.random.categorical(key, jnp.log(weights), shape=(batch_size,))
      return Split(labeled.inputs[rows], labeled.labels[rows])

    optimizer = adamw_cosine(config.network_rate, config.network_steps, weight_decay=decay)
    sizes = {"num_steps": config.network_steps, "batch_size": config.network_batch}
    return train(key, module, classification_loss(module, loss_fn), optimizer, batch, **sizes)

  def score(trained):
    logits = predict(module, trained.variables, labeled.inputs).logits
    return heads.cross_entropy(logits, labeled.labels)

  trained, _ = heads.select(fit, score, weights, folds, config.decays, num_folds=config.num_folds)
  return lambda images: predict(module, trained.variables, images).logits


def evaluate(config, key: chex.PRNGKey, inputs) -> dict[str, jax.Array]:
  """Test accuracies of all rows.

  Args:
    config: of the experiment.
    key: of copies and of the network that is trained end to end.
    inputs: the `Task`, the `features` of `encode`, and how many labeled images are used.
  """
  task, features, count = inputs
  labels, num_classes = task.labeled.labels, datasets.describe(config.dataset).num_classes
  used = heads.first_rows(len(labels), count)
  folds = jnp.arange(len(labels)) % config.num_folds
  flat = lambda images: images.reshape(len(images), -1)  # noqa: E731
  copy_key, network_key = jax.random.split(key)

  def right(train_inputs, test_inputs, labels=labels, used=used, folds=folds):
    train_inputs, test_inputs = heads.standardized(used, train_inputs, test_inputs)
    settings = {"strengths": config.strengths, "num_folds": config.num_folds}
    settings |= {"num_classes": num_classes, "num_steps": config.head_steps}
    head = heads.logistic_regression(train_inputs, labels, used, folds, **settings)
    return jnp.mean(agrees(head(test_inputs), task.test.labels))

  # All of one width, so one program fits them.
  parts = (jnp.stack(part) for part in zip(*features.values()))
  found = dict(zip(features, jax.vmap(right)(*parts)))
  found[PIXELS] = right(flat(task.labeled.inputs), flat(task.test.inputs))
  times = config.num_copies + 1
  repeated = [jnp.tile(x, times) for x in (labels, used, folds)]
  copies = jnp.tile(task.labeled.inputs, (config.num_copies, 1, 1, 1))
  copies = jnp.concatenate([task.labeled.inputs, view(config, copy_key, copies)])
  found[COPIES] = right(flat(copies), flat(task.test.inputs), *repeated)
  logits = fit_network(config, network_key, task.labeled, used, folds, num_classes)
  found[NETWORK] = jnp.mean(agrees(logits(task.test.inputs), task.test.labels))
  return found
