"""C-Mixup on rotated digits whose color misleads."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.mixing import Setting
from jaxlab import data, metrics, models, samplers
from jaxlab.experiment import Context, Results

# Right colors of training, validation and test images: settings are chosen on validation images
# colored as the training ones, because nobody knows the shift.
SPURIOUS = (0.8, 0.8, 0.2)


def image_settings(config) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  num, widths = len(config.image_bandwidths), config.image_bandwidths
  image = functools.partial(Setting, learning_rate=config.image_learning_rate)
  alphas = [image(alpha=alpha) for alpha in config.mixup_alphas]
  plain = itertools.product(config.dropouts[:2], config.weight_decays[-2:])
  decays = [image(mixes=0.0, dropout=dropout, weight_decay=decay) for dropout, decay in plain]
  return {
    mixing.PLAIN: decays[:num],
    mixing.MIXUP: alphas[:num],
    mixing.MANIFOLD: alphas[:num],
    mixing.INPUTS: [image(alpha=2.0, feature_bandwidth=width) for width in widths],
    mixing.MAIN: [image(alpha=2.0, bandwidth=width) for width in widths],
  }


def network(config) -> models.ConvNet:
  """The network on images: one real output."""
  widths = config.image_widths
  return models.ConvNet(1, widths, kernel_size=(3, 3), strides=(2,) * len(widths))


def measure_digits(config, context: Context, results: Results) -> None:
  """Adds the errors of every method at its best setting."""
  settings, images = image_settings(config), _images(config)

  def draw_sets(key):
    key, *keys = jax.random.split(key, 4)
    sets = zip(keys, images, SPURIOUS)
    return key, [data.rotated_digits(k, part, spurious_prob=share) for k, part, share in sets]

  keys = jax.random.split(jax.random.fold_in(context.key, len(config.tables)), context.seeds)
  drawn = jax.jit(lambda keys: jax.lax.map(draw_sets, keys))(keys)

  def evaluate(layer, key, drawn, setting):
    del key
    return train_on_images(*drawn, config, layer, Setting(**setting))

  evaluate = {layer: functools.partial(evaluate, layer) for layer in (0, 1)}
  for method, scores in mixing.search(context, "digits", evaluate, drawn, settings).items():
    results.add({method: mixing.best(scores, settings[method])}, dataset="rotated digits")


def _images(config) -> list[np.ndarray]:
  """Gray images `[n, 8, 8]` in [0, 1] for training, validation and test."""
  sizes = config.image_sizes
  if config.images == "digits":
    return [split.inputs[..., 0] for split in datasets.describe("digits").splits(*sizes)]
  images = datasets.raw_images(config.images, "train", limit=sum(sizes)).inputs[..., 0]
  small = np.asarray(jax.image.resize(images, (len(images), 8, 8), "bilinear"))
  return np.split(small, np.cumsum(sizes)[:-1])


def draw_partners(near, key, batch):
  """Partners of the batch's rows by the coordinates `near` of all rows, and the step's ratio."""
  (_, _, rows), ratio = batch
  return rows, samplers.sample_partners(key, near, rows, bandwidth=1.0), ratio[0]


def train_on_images(key, sets, config, layer: int, setting: Setting) -> dict:
  """Trains one network and scores it at its best validation step."""
  first, *_, test = sets
  mean, scale = first.degrees.mean(), first.degrees.std()
  splits = (Split(part.images, ((part.degrees - mean) / scale)[:, None]) for part in sets)
  task = mixing.Task(*splits, mean, scale)
  small = jax.image.resize(first.images, (len(first.images), 8, 8, 3), "linear")
  near = mixing.similarity_features(small / small.std(), task.train.labels, setting)
  draw = functools.partial(draw_partners, near)
  sizes = {"num_steps": config.image_steps, "batch_size": config.image_batch_size}
  sizes["schedule"] = mixing.mixing_ratios(jax.random.fold_in(key, 1), setting, config.image_steps)
  sizes["eval_every"] = config.eval_every
  error, *pair = mixing.fit(key, network(config), layer, setting, task, draw, **sizes)
  share = test.degrees / 60.0
  honest = (jnp.abs(test.colors - share) <= jnp.abs(test.colors - (1 - share))).astype(jnp.int32)
  return {
    "validation error": error,
    "RMSE (degrees)": metrics.root_mean_squared_error(*pair),
    "RMSE of the worst color (degrees)": metrics.worst_group_rmse(*pair, honest, num_groups=2),
    "correlation": metrics.pearson_correlation(*pair),
  }
