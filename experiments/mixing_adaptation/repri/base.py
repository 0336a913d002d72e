"""The network that segments the base families: its training, and its features."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit import train
from experiments.kit.datasets import Split
from experiments.mixing_adaptation.repri import coco
from jaxlab import data, models, training
from jaxlab.experiment import Context

NOISE = 0.1  # Of the pixels of base scenes.
_SCALE = 6.0  # Of the cosines.
_NUM_TEST = 96  # Scenes that the base network is tested on.
_PARTS = slice(_NUM_TEST), slice(_NUM_TEST, None)


class SegmentationNet(nn.Module):
  """3 x 3 convolutions, normalized, and a classifier of every position by cosine."""

  num_classes: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, images, *, train=False):
    """Features and logits at half the resolution, as a `models.ModelOutput`."""
    hidden = images
    for i, width in enumerate(self.widths):
      hidden = nn.relu(hidden) if i else hidden
      hidden = models.Conv(width, (3, 3), strides=2 if i == 1 else 1)(hidden)
      hidden = models.GhostBatchNorm()(hidden, use_running_average=not train)
    # Classes are told apart by the cosine, as the tasks' are.
    head = self.param("head", nn.initializers.normal(1.0), (self.num_classes, hidden.shape[-1]))
    return models.ModelOutput(hidden, _SCALE * unit(hidden) @ unit(head).T)


def network(config) -> nn.Module:
  """The base network."""
  num_classes = len(config.base_classes) + 1
  if config.dataset == "coco":
    return coco.PSPNet(num_classes)
  return SegmentationNet(num_classes, config.widths)


def optimizer(config) -> optax.GradientTransformation:
  """Of the base training."""
  build = train.sgd_cosine if config.dataset == "coco" else train.adamw_cosine
  return build(config.learning_rate, config.num_steps, weight_decay=1e-4)


@functools.partial(jax.jit, static_argnames="config")
def base_batch(images, masks, config) -> Split:
  """Scenes with masks at the resolution of the features: 0, or 1 + the number of the class."""
  numbers = np.zeros(256, np.int32)
  numbers[np.array(config.base_classes) + 1] = np.arange(1, len(config.base_classes) + 1)
  numbers[coco.IGNORE] = coco.IGNORE
  return Split(images, jnp.asarray(numbers)[coarse(masks, config)])


def coarse(masks, config):
  """Nearest-neighbor masks at the resolution of the features."""
  step = 8 if config.dataset == "coco" else 2
  return masks[:, ::step, ::step]


def base_loss(config):
  """The engine's loss of the base training: cross-entropy, a mean over the pixels that count."""

  def pixel_loss(apply, key, batch):
    del key
    logits = apply(batch.inputs).logits
    counts = batch.labels != coco.IGNORE
    labels = jax.nn.one_hot(jnp.where(counts, batch.labels, 0), logits.shape[-1])
    labels = optax.smooth_labels(labels, config.label_smoothing)
    values = optax.softmax_cross_entropy(logits, labels)
    return jnp.sum(values * counts, (1, 2)) / jnp.maximum(jnp.sum(counts, (1, 2)), 1)

  return train.classification_loss(network(config), pixel_loss)


_sample = jax.jit(
  data.sample_shape_scenes, static_argnames=("num_samples", "classes", "size", "clutter")
)


def scenes(key, config, classes, num: int, *, split: str, noise: float = NOISE, **options):
  """Scenes that show the classes: drawn by the key, or those of a split of COCO as they are.

  `options` of the generator may replace the clutter of the configuration.
  """
  if config.dataset == "coco":
    wanted = np.array(classes) + 1
    batches = coco.scene_batches(split, config.size, batch_size=1, seed=0, num_epochs=1)
    shows = (batch for batch in batches if np.isin(batch["mask"], wanted).any())
    chosen = [data.Scenes(b["image"][0], b["mask"][0]) for b in itertools.islice(shows, num)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
  options = {"num_samples": num, "size": config.size, "clutter": config.clutter} | options
  return _sample(key, classes=classes, noise=noise, **options)


def train_base(key, *, config) -> dict:
  """Trains one seed's network on the base families."""
  scenes_key, key = jax.random.split(key)
  num, classes, steps = config.num_train + _NUM_TEST, config.base_classes, config.num_steps
  drawn = scenes(scenes_key, config, classes, num, split="train")
  drawn = base_batch(drawn.images, drawn.masks, config)
  test, rows = (Split(*(x[part] for x in drawn)) for part in _PARTS)
  net, loss, own = network(config), base_loss(config), optimizer(config)
  trained = train.train(key, net, loss, own, rows, num_steps=steps, batch_size=config.batch_size)
  accuracy = train.accuracy(net, trained.variables, test)
  return {"variables": trained.variables, "accuracy": accuracy, "bad_step": trained.bad_step}


def train_on_coco(config, context: Context) -> dict:
  """Trains every seed's network on batches from disk."""
  update = training.build_update(base_loss(config), optimizer(config), mesh=context.mesh)
  trained = []
  for seed, number in enumerate(context.seed_numbers):
    key = context.seed_key(seed)
    start = dict(network(config).init(key, jnp.zeros((1, config.size, config.size, 3))))
    params = start.pop("params")
    state = training.init_state(key, params, optimizer(config), model_state=start)
    batches, steps = coco_batches(config, seed=number), config.num_steps
    state = context.fit(f"base/seed{seed}", state, update, batches, num_steps=steps).state
    trained.append({"params": state.params, **state.model_state})
  return {"variables": jax.tree.map(lambda *leaves: np.stack(leaves), *trained)}


def coco_batches(config, *, seed: int) -> data.BatchIterator:
  """Batches of the base training, which go on after a kill."""

  def to_base(scene):
    batch = base_batch(scene["image"][None], scene["mask"][None], config)
    return jax.tree.map(lambda array: np.asarray(array)[0], batch)

  options = {"batch_size": config.batch_size, "seed": seed}
  return coco.scene_batches("train", config.size, to_base, **options)


@functools.partial(jax.jit, static_argnames="config")
def unit_features(variables, images, config):
  """Features of length 1 at every position."""
  features = train.predict(network(config), variables, images, batch_size=20).features
  return unit(features)


def unit(vectors):
  """Vectors of length 1."""
  return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + 1e-12)
