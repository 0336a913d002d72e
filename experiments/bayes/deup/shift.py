"""Digits that are turned and noisy: whose score orders the losses of a classifier best?"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from experiments.kit import datasets
from experiments.kit import train as kit
from experiments.kit.datasets import Split
from experiments.kit.dropout import DropoutNetwork
from experiments.kit.epistemic import DEUP, ENSEMBLE, FOREIGN, rank
from jaxlab import models, uncertainty

SOFTMAX, DROPOUT, DENSITY = "maximum softmax", "dropout", "density"
BASELINES = SOFTMAX, DROPOUT, ENSEMBLE, DENSITY
NUM_CLASSES = 10
_NUM_AXES, _BANDWIDTH, _ALPHA = 8, 1.0, 0.3  # Of the density.


class Parts(NamedTuple):
  """Training rows, and test rows as they are and shifted; inputs are flat."""

  train: Split
  clean: Split
  shifted: Split


def draw(config, seed: int) -> Parts:
  """Splits the images anew; every test image is turned and blurred by noise of its own."""
  dataset = datasets.describe(config.dataset)
  rows, test = dataset.splits(config.num_train, config.num_test, seed=seed)
  rng = np.random.default_rng([seed, 1])
  turned = [
    ndimage.rotate(image, angle, reshape=False, order=1)
    for image, angle in zip(test.inputs, rng.uniform(0, config.max_angle, len(test.inputs)))
  ]
  noisy = np.stack(turned) + config.pixel_noise * rng.normal(size=test.inputs.shape)
  shifted = test._replace(inputs=noisy.astype(np.float32))
  return Parts(
    *(Split(x.inputs.reshape(len(x.inputs), -1), x.labels) for x in (rows, test, shifted))
  )


def network(config) -> DropoutNetwork:
  """The classifier."""
  dataset = datasets.describe(config.dataset)
  shape = () if dataset.name == "digits" else dataset.shape
  return DropoutNetwork(NUM_CLASSES, config.widths, config.dropout, shape)


def loss_of(config):
  """The engine's loss of the classifier: binary cross-entropies of all classes."""

  def loss_fn(apply, key, batch):
    logits = apply(batch.inputs, rngs={"dropout": key}).logits
    labels = jax.nn.one_hot(batch.labels, NUM_CLASSES)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)

  return kit.classification_loss(network(config), loss_fn)


def principal_axes(inputs: chex.Array, used: chex.Array, num: int):
  """Standardizes by the rows that are used, and projects on their main axes.

  All pixels share one deviation: some at the border hardly vary, and noise there would be all.
  """
  weights = used[:, None] / jnp.sum(used)
  mean = jnp.sum(weights * inputs, axis=0)
  std = jnp.sqrt(jnp.mean(jnp.sum(weights * jnp.square(inputs - mean), axis=0)))
  scale = lambda x: (x - mean) / std  # noqa: E731
  axes = jnp.linalg.eigh((weights * scale(inputs)).T @ scale(inputs))[1][:, -num:]
  return lambda x: scale(x) @ axes


def measure(config, key: chex.PRNGKey, parts: Parts) -> dict:
  """Trains the classifier with and without two classes in turn, and the model of its losses.

  Returns:
    `rows`, row -> quantity; and `facts`, accuracies.
  """
  keys, module, (rows, *tests) = jax.random.split(key, 4), network(config), parts
  optimizer = optax.adam(config.learning_rate)
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}

  def fit(key, used):
    batch = kit.drawn_from(rows, used)
    return kit.train(key, module, loss_of(config), optimizer, batch, **sizes).variables

  def describe(variables, used, key, further):
    """Logits, scaled log-densities and variances of the training rows, then of further inputs."""
    inputs = jnp.concatenate([rows.inputs, further])

    def one_pass(key):
      return kit.predict(module, variables, inputs, drop=True, rngs={"dropout": key}).logits

    passes = jax.lax.map(one_pass, jax.random.split(key, config.num_passes))
    variance = jnp.mean(jnp.var(jax.nn.sigmoid(passes), axis=0), axis=1)
    points = principal_axes(rows.inputs, used, _NUM_AXES)(inputs)
    options = {"bandwidth": _BANDWIDTH, "alpha": _ALPHA, "mask": used}
    density = uncertainty.smooth_kde_log_density(points, points[: len(used)], **options)
    ends = [(jnp.min(x[: len(used)]), jnp.max(x[: len(used)])) for x in (density, variance)]
    scaled = [uncertainty.min_max_scale(x, *end) for x, end in zip((density, variance), ends)]
    return kit.predict(module, variables, inputs).logits, *scaled

  def stack(density, variance, seen):
    named = {"density": density, "variance": variance, "seen": seen.astype(jnp.float32)}
    return uncertainty.error_features(density[:, None], include=tuple(named), **named)

  def without(pair):
    used, fold = rows.labels // 2 != pair, jax.random.fold_in(keys[0], pair)
    logits, *columns = describe(fit(fold, used), used, fold, rows.inputs[:0])
    return stack(*columns, used), uncertainty.classification_error_target(logits, rows.labels)

  features, targets = jax.lax.map(without, jnp.arange(NUM_CLASSES // 2))
  small, errors = models.MLP(1, config.widths), Split(features.reshape(-1, 3), targets.ravel())
  loss, more_steps = kit.squared_loss(small), sizes | {"num_steps": config.error_steps}
  of_errors = kit.train(keys[1], small, loss, optimizer, errors, **more_steps).variables

  everything, inputs = jnp.ones(len(rows.labels), bool), jnp.concatenate([x.inputs for x in tests])
  members = jax.lax.map(lambda k: fit(k, everything), jax.random.split(keys[2], config.num_members))
  first = jax.tree.map(lambda x: x[0], members)
  described = describe(first, everything, keys[3], inputs)
  logits, density, variance = (x[len(everything) :] for x in described)
  query = stack(density, variance, jnp.zeros(len(inputs)))
  outputs = jax.lax.map(lambda variables: kit.predict(module, variables, inputs).logits, members)
  scores = {
    DEUP: small.apply(of_errors, query).logits[:, 0],
    SOFTMAX: -jnp.max(jax.nn.softmax(logits), axis=1),
    DROPOUT: variance,
    ENSEMBLE: jnp.mean(uncertainty.ensemble_variance(jax.nn.sigmoid(outputs)), axis=1),
    DENSITY: -density,
  }
  labels, num = jnp.concatenate([x.labels for x in tests]), config.num_test
  losses = uncertainty.classification_error_target(logits, labels)
  right = kit.agrees(logits, labels)
  facts = {"accuracy, clean": jnp.mean(right[:num]), "accuracy, shifted": jnp.mean(right[num:])}
  ranked = {}
  for row, x in scores.items():
    # Losses are ordered among shifted images, which are foreign beside clean ones.
    foreign = rank(x[:num], losses[:num], x[num:])[FOREIGN]
    ranked[row] = rank(x[num:], losses[num:], x[num:]) | {FOREIGN: foreign}
  return {"rows": ranked, "facts": facts}
