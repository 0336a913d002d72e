"""C-Mixup on rotated digits whose colour misleads: the search of every method, and the training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from experiments.members import over_members, stack
from experiments.mixing_adaptation.c_mixup_tables import (
  AT_INPUTS,
  METHODS,
  Setting,
  dropped,
  similarity_features,
)
from jaxlab import augment, data, metrics, models, samplers


def image_settings(config) -> dict[str, list[Setting]]:
  """Equally many settings of each method."""
  num = len(config.image_bandwidths)
  alphas = [Setting(alpha=alpha) for alpha in config.rival_alphas]
  decays = [
    Setting(weight_decay=decay, dropout=dropout)
    for dropout in config.dropouts[:2]
    for decay in config.weight_decays[-2:]
  ]
  return {
    "no mixing": decays[:num],
    "mixup": alphas[:num],
    "manifold mixup": alphas[:num],
    "near inputs": [Setting(alpha=2.0, feature_bandwidth=w) for w in config.image_bandwidths],
    "C-Mixup": [Setting(alpha=2.0, bandwidth=w) for w in config.image_bandwidths],
  }


def network(config) -> models.ConvNet:
  """The network on images: one real output."""
  return models.ConvNet(
    1, config.image_widths, kernel_size=(3, 3), strides=(2,) * len(config.image_widths)
  )


def image_loss(config, method: str, setting: Setting, pool=None):
  """The engine's loss on batches (images, targets, rows).

  Args:
    config: the networks.
    method: one of `METHODS`; what distinguishes those at inputs is in the setting.
    setting: its hyper-parameters.
    pool: images and targets of the whole set and, for each of its rows, log-weights of partners;
      None: partners come from the batch, which is what a set too large for that table needs.
  """

  def loss(apply, key, batch):
    images, targets, rows = batch
    partner_key, mix_key, drop_key = jax.random.split(key, 3)

    def thinned(layer, hidden):
      if layer == 0:
        return hidden
      noise = jax.random.bits(jax.random.fold_in(drop_key, layer), hidden.shape, jnp.uint8)
      return dropped(noise, setting.dropout, hidden)

    if method == "no mixing":
      return jnp.square(apply(images, mix=thinned).logits - targets)[:, 0]
    if pool is None:
      rows, candidates = jnp.arange(rows.shape[0]), (images, targets)
      near = similarity_features(images, targets, setting)
      partners = samplers.sample_partners(partner_key, near, rows, bandwidth=1.0)
    else:
      *candidates, log_weights = pool
      partners = jax.random.categorical(partner_key, log_weights[rows])
    mix = partial(augment.mix_regression_pairs, mix_key, alpha=setting.alpha)
    mixed = mix(*candidates, rows, partners)
    if method != "manifold mixup":
      return jnp.square(apply(mixed.inputs).logits - mixed.targets)[:, 0]
    first, second = jnp.arange(rows.shape[0]), rows.shape[0] + jnp.arange(rows.shape[0])
    pairs = jnp.concatenate([rows, partners])

    def behind_first(layer, hidden):
      if layer != 1:
        return hidden
      # The same key, and so the ratio of the targets.
      return mix(hidden, candidates[1][pairs], first, second).inputs

    outputs = apply(candidates[0][pairs], mix=behind_first)
    return jnp.square(outputs.logits - mixed.targets)[:, 0]

  return classification.classification_loss(network(config), loss)


def search_on_digits(config, context: common.Context) -> dict:
  """Scores of every method, seed and setting, `[seeds, settings]` each."""
  keys = jax.random.split(jax.random.fold_in(context.key, len(config.tables)), context.seeds)
  parts = _images(config)
  settings = image_settings(config)

  def search(methods):
    """Methods that differ in their numbers alone are one program."""
    grid = stack(setting for method in methods for setting in settings[method])
    seed, index = (axis.ravel() for axis in np.indices((context.seeds, len(grid.alpha))))
    members = keys[seed], jax.tree.map(lambda x: x[index], grid)
    train = partial(_train_on_images, config, methods[0], parts)
    found = over_members(train, members, context.mesh)
    found = {
      name: values.reshape(context.seeds, len(methods), -1) for name, values in found.items()
    }
    return {
      method: {name: values[:, i] for name, values in found.items()}
      for i, method in enumerate(methods)
    }

  return search(METHODS[:1]) | search(AT_INPUTS) | search(("manifold mixup",))


def _images(config) -> list[np.ndarray]:
  """Grey images `[n, 8, 8]` in [0, 1] for training, validation and test."""
  if config.images == "digits":
    return [split.inputs[..., 0] for split in classification.digits_splits(*config.image_sizes)]
  source = data.load_source(config.images, split="train")
  images = data.as_arrays(source, limit=sum(config.image_sizes))["image"][..., 0] / 255.0
  small = np.asarray(jax.image.resize(images, (len(images), 8, 8), "bilinear"))
  return np.split(small, np.cumsum(config.image_sizes)[:-1])


def _train_on_images(config, method: str, parts, member) -> dict:
  """One network on images whose colour is right in 80% of training rows, and in 20% of test rows.

  Settings are chosen on validation images coloured as the training ones: nobody knows the shift.
  """
  key, setting = member
  key, *set_keys = jax.random.split(key, 4)
  train, validation, test = (
    data.rotated_digits(set_key, images, spurious_prob=prob)
    for set_key, images, prob in zip(set_keys, parts, (0.8, 0.8, 0.2))
  )
  mean, scale = train.degrees.mean(), train.degrees.std()
  targets = ((train.degrees - mean) / scale)[:, None]
  pool = None
  if len(targets) <= 20_000:
    small = jax.image.resize(train.images, (len(targets), 8, 8, 3), "linear")
    near = similarity_features(small / small.std(), targets, setting)
    pool = train.images, targets, samplers.label_similarity_logits(near, near, bandwidth=1.0)
  module = network(config)

  def evaluate(trained):
    predictions = [
      mean + scale * classification.predict(module, trained.variables, part.images).logits[:, 0]
      for part in (validation, test)
    ]
    error = jnp.mean(jnp.square((predictions[0] - validation.degrees) / scale))
    return {"validation": error, "predictions": predictions[1]}

  scores = classification.train(
    key,
    module,
    image_loss(config, method, setting, pool),
    optax.adamw(config.image_learning_rate, weight_decay=setting.weight_decay),
    (train.images, targets, jnp.arange(len(targets))),
    num_steps=config.image_steps,
    batch_size=config.image_batch_size,
    evaluate=evaluate,
    eval_every=config.eval_every,
  ).scores
  best = jnp.argmin(scores["validation"])
  pair = scores["predictions"][best], test.degrees
  share = test.degrees / 60.0
  honest = jnp.abs(test.colors - share) <= jnp.abs(test.colors - (1 - share))
  return {
    "validation": scores["validation"][best],
    "rmse": metrics.root_mean_squared_error(*pair),
    "worst": metrics.worst_group_rmse(*pair, honest.astype(jnp.int32), num_groups=2),
    "r": metrics.pearson_correlation(*pair),
  }
