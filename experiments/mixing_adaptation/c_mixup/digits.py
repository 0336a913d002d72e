"""C-Mixup on rotated digits whose color misleads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split, stack_seeds
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.mixing import Setting
from jaxlab import data, metrics, models, samplers
from jaxlab.experiment import Context


def network(config) -> models.ConvNet:
  """The network on images: one real output."""
  widths = config.image_widths
  return models.ConvNet(1, widths, kernel_size=(3, 3), strides=(2,) * len(widths))


def draw_images(config, context: Context) -> tuple[np.ndarray, ...]:
  """Gray images `[seeds, n, 8, 8]` in [0, 1] for training, validation and test."""

  def draw(seed):
    if config.images == "digits":
      splits = datasets.describe("digits").splits(*config.image_sizes, seed=seed)
      return tuple(split.inputs[..., 0] for split in splits)
    images = datasets.raw_images(config.images, "train").inputs[..., 0]
    rows = np.random.default_rng(seed).permutation(len(images))[: sum(config.image_sizes)]
    small = np.asarray(jax.image.resize(images[rows], (len(rows), 8, 8), "bilinear"))
    return tuple(np.split(small, np.cumsum(config.image_sizes)[:-1]))

  return stack_seeds(draw, context.seed_numbers)


def draw_partners(near, key, batch):
  """Partners of the batch's rows by the coordinates `near` of all rows, and the step's ratio."""
  (_, _, rows), ratio = batch
  return rows, samplers.sample_partners(key, near, rows, bandwidth=1.0), ratio[0]


def train_on_images(config, key, images, setting) -> dict:
  """Trains one network and scores it at its best validation step.

  Validation images are colored as the training ones, because nobody knows the shift.
  """
  setting = Setting(**setting)
  key, ratio_key, *keys = jax.random.split(key, 5)
  shares = (config.spurious_share, config.spurious_share, 1 - config.test_share)
  first, *_, test = sets = [
    data.rotated_digits(k, part, spurious_prob=share)
    for k, part, share in zip(keys, images, shares)
  ]
  mean, scale = first.degrees.mean(), first.degrees.std()
  splits = (Split(part.images, ((part.degrees - mean) / scale)[:, None]) for part in sets)
  task = mixing.Task(*splits, mean, scale)
  small = jax.image.resize(first.images, (len(first.images), 4, 4, 3), "linear")
  near = mixing.similarity_features(small / small.std(), task.train.labels, setting)
  share = test.degrees / 60.0
  wrong = jnp.abs(test.colors - share) > jnp.abs(test.colors - (1 - share))

  def score(predictions, targets):
    squares = jnp.square(predictions - targets)
    return {
      "RMSE (degrees)": metrics.root_mean_squared_error(predictions, targets),
      "RMSE, true color (degrees)": jnp.sqrt(jnp.mean(squares, where=~wrong)),
      "RMSE, reversed color (degrees)": jnp.sqrt(jnp.mean(squares, where=wrong)),
    }

  sizes = {"num_steps": config.image_steps, "batch_size": config.image_batch_size}
  sizes["schedule"] = mixing.mixing_ratios(ratio_key, setting, config.image_steps)
  sizes["eval_every"] = config.eval_every
  draw = functools.partial(draw_partners, near)
  return mixing.fit(key, network(config), setting, task, draw, score, **sizes)
