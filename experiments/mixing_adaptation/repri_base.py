"""The network that segments the base families: its training, and its features."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import classification, common
from experiments.mixing_adaptation import repri_coco
from jaxlab import data, models, training

_NUM_TEST = 96  # Scenes that the base network is tested on.


class SegmentationNet(nn.Module):
  """3 x 3 convolutions, normalised, and a linear classifier of every position."""

  num_classes: int
  widths: tuple[int, ...]
  strides: tuple[int, ...]

  @nn.compact
  def __call__(self, images, *, train=False):
    """Features and logits of every position, as a `models.ModelOutput`."""
    hidden = images
    for i, (width, stride) in enumerate(zip(self.widths, self.strides)):
      hidden = nn.relu(hidden) if i else hidden
      hidden = models.Conv(width, (3, 3), strides=stride)(hidden)
      hidden = models.GhostBatchNorm()(hidden, use_running_average=not train)
    # Features are signed: the cosines of what is only positive lie close together.
    return models.ModelOutput(hidden, nn.Dense(self.num_classes, name="head")(nn.relu(hidden)))


def network(config) -> nn.Module:
  """The base network."""
  num_classes = len(config.base_classes) + 1
  if config.dataset == "coco":
    return repri_coco.PSPNet(num_classes)
  return SegmentationNet(num_classes, config.widths, config.strides)


def optimizer(config) -> optax.GradientTransformation:
  """Of the base training."""
  schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
  if config.dataset == "coco":
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(schedule, momentum=0.9))
  return optax.adamw(schedule)


def base_batch(images, masks, config) -> classification.Split:
  """Scenes with masks at the resolution of the features: 0, or 1 + the number of the class."""
  numbers = np.zeros(256, np.int32)
  numbers[np.array(config.base_classes) + 1] = np.arange(1, len(config.base_classes) + 1)
  numbers[repri_coco.IGNORE] = repri_coco.IGNORE
  return classification.Split(images, jnp.asarray(numbers)[coarse(masks, config)])


def coarse(masks, config):
  """Nearest-neighbour masks at the resolution of the features."""
  step = 8 if config.dataset == "coco" else int(np.prod(config.strides))
  return masks[:, ::step, ::step]


def pixel_loss(apply, key, batch, *, label_smoothing: float):
  """Cross-entropy of a scene, mean over the pixels that count."""
  del key
  logits = apply(batch.inputs).logits
  counts = batch.labels != repri_coco.IGNORE
  labels = jax.nn.one_hot(jnp.where(counts, batch.labels, 0), logits.shape[-1])
  values = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, label_smoothing))
  return jnp.sum(values * counts, (1, 2)) / jnp.maximum(jnp.sum(counts, (1, 2)), 1)


def base_loss(config):
  """The engine's loss of the base training."""
  loss = functools.partial(pixel_loss, label_smoothing=config.label_smoothing)
  return classification.classification_loss(network(config), loss)


def train_base(key, *, config):
  """Trains one seed's network on the base families."""
  scenes_key, key = jax.random.split(key)
  scenes = data.sample_shape_scenes(
    scenes_key,
    num_samples=config.num_train + _NUM_TEST,
    classes=config.base_classes,
    size=config.size,
    clutter=config.clutter,
    noise=config.noise,
  )
  test, train = (
    base_batch(scenes.images[rows], scenes.masks[rows], config)
    for rows in (slice(_NUM_TEST), slice(_NUM_TEST, None))
  )
  net = network(config)
  trained = classification.train(
    key,
    net,
    base_loss(config),
    optimizer(config),
    train,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
  )
  right = classification.accuracy(net, trained.variables, test)
  return {"variables": trained.variables, "accuracy": right}


def train_on_coco(config, context: common.Context) -> dict:
  """Trains every seed's network on batches from disk."""
  update = base_update(config, context.mesh)
  loss_batches = jax.jit(lambda images, masks: base_batch(images, masks, config))
  found = []
  for seed in range(context.seeds):
    batches = repri_coco.scene_batches(
      split="train", batch_size=config.batch_size, size=config.size, seed=seed
    )
    state = initial_state(config, context.seed_key(seed))
    result = context.fit(
      f"base/seed{seed}",
      state,
      update,
      (loss_batches(batch["image"], batch["mask"]) for batch in batches),
      num_steps=config.num_steps,
    )
    found.append({"params": result.state.params, **result.state.model_state})
  return {"variables": jax.tree.map(lambda *leaves: np.stack(leaves), *found)}


def base_update(config, mesh):
  """The engine's update of the base training."""
  return training.build_update(base_loss(config), optimizer(config), mesh=mesh)


def initial_state(config, key) -> training.TrainState:
  """Where the base training of one seed begins."""
  variables = dict(network(config).init(key, jnp.zeros((1, config.size, config.size, 3))))
  params = variables.pop("params")
  return training.init_state(key, params, optimizer(config), model_state=variables)


@functools.partial(jax.jit, static_argnames="config")
def unit_features(variables, images, config):
  """Features of length 1 at every position."""
  outputs = classification.predict(network(config), variables, images, batch_size=20)
  length = jnp.linalg.norm(outputs.features, axis=-1, keepdims=True)
  return outputs.features / jnp.maximum(length, 1e-12)
