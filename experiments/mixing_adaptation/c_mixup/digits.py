"""C-Mixup on rotated digits whose color misleads: the training of one network, the search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import datasets
from experiments.kit.train import predict, train
from experiments.mixing_adaptation.c_mixup import mixing
from experiments.mixing_adaptation.c_mixup.mixing import Setting
from jaxlab import data, metrics, models, samplers
from jaxlab.experiment import Context, Results


def image_settings(config) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  num = len(config.image_bandwidths)
  alphas = [Setting(alpha=alpha) for alpha in config.mixup_alphas]
  plain = itertools.product(config.dropouts[:2], config.weight_decays[-2:])
  decays = [Setting(mixes=0.0, dropout=dropout, weight_decay=decay) for dropout, decay in plain]
  return {
    mixing.PLAIN: decays[:num],
    mixing.MIXUP: alphas[:num],
    mixing.MANIFOLD: alphas[:num],
    mixing.INPUTS: [Setting(alpha=2.0, feature_bandwidth=w) for w in config.image_bandwidths],
    mixing.MAIN: [Setting(alpha=2.0, bandwidth=w) for w in config.image_bandwidths],
  }


def network(config) -> models.ConvNet:
  """The network on images: one real output."""
  widths = config.image_widths
  return models.ConvNet(1, widths, kernel_size=(3, 3), strides=(2,) * len(widths))


def measure_digits(config, context: Context, results: Results) -> None:
  """Adds the errors of every method at its best setting."""
  settings, images = image_settings(config), _images(config)
  keys = jax.random.split(jax.random.fold_in(context.key, len(config.tables)), context.seeds)
  drawn = jax.jit(lambda keys: jax.lax.map(lambda key: draw_sets(key, images), keys))(keys)

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


def draw_sets(key, images):
  """A key, and training, validation and test images of which 80, 80 and 20% have the right color.

  Settings are chosen on validation images colored as the training ones: nobody knows the shift.
  """
  key, *set_keys = jax.random.split(key, 4)
  return key, [
    data.rotated_digits(set_key, part, spurious_prob=share)
    for set_key, part, share in zip(set_keys, images, (0.8, 0.8, 0.2))
  ]


def train_on_images(key, sets, config, layer: int, setting: Setting) -> dict:
  """Trains one network and scores it at its best validation step."""
  training, validation, test = sets
  mean, scale = training.degrees.mean(), training.degrees.std()
  targets = ((training.degrees - mean) / scale)[:, None]
  small = jax.image.resize(training.images, (len(targets), 8, 8, 3), "linear")
  near = mixing.similarity_features(small / small.std(), targets, setting)
  module = network(config)

  def draw(key, batch):
    (_, _, rows), ratio = batch
    return rows, samplers.sample_partners(key, near, rows, bandwidth=1.0), ratio[0]

  def evaluate(trained):
    predictions = [
      mean + scale * predict(module, trained.variables, part.images).logits[:, 0]
      for part in (validation, test)
    ]
    error = jnp.mean(jnp.square((predictions[0] - validation.degrees) / scale))
    return error, predictions[1]

  errors, predictions = train(
    key,
    module,
    mixing.mixing_loss(module, layer, setting, draw, (training.images, targets)),
    optax.adamw(config.image_learning_rate, weight_decay=setting.weight_decay),
    (training.images, targets, jnp.arange(len(targets))),
    num_steps=config.image_steps,
    batch_size=config.image_batch_size,
    schedule=mixing.mixing_ratios(jax.random.fold_in(key, 1), setting, config.image_steps),
    evaluate=evaluate,
    eval_every=config.eval_every,
  ).scores
  last = jnp.argmin(errors)
  pair = predictions[last], test.degrees
  share = test.degrees / 60.0
  honest = (jnp.abs(test.colors - share) <= jnp.abs(test.colors - (1 - share))).astype(jnp.int32)
  return {
    "validation error": errors[last],
    "RMSE (degrees)": metrics.root_mean_squared_error(*pair),
    "RMSE of the worst color (degrees)": metrics.worst_group_rmse(*pair, honest, num_groups=2),
    "correlation": metrics.pearson_correlation(*pair),
  }
