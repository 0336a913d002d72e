"""An annotator that makes label maps, and students that learn from crops with other labels."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.scipy.special import entr

from experiments.kit.datasets import Split
from experiments.kit.train import adamw_cosine, agrees, classification_loss, predict, train
from experiments.labels.relabel.scenes import (
  NUM_CLASSES,
  object_cells,
  visible_areas,
  whole_boxes,
)
from jaxlab import augment, losses, metrics, models

ONE_HOT, SMOOTHED, GENTLE = "one-hot", "one-hot, smoothed", "one-hot, gentle crops"
GLOBAL_SINGLE, GLOBAL_MULTI = "global, single", "global, multi"
LOCAL_SINGLE, LOCAL_MULTI, CUTMIX = "localized, single", "localized, multi", "localized + CutMix"
DISTILLED, OWN, ORACLE = "distilled on crops", "annotator data alone", "exact boxes"
METHODS = {  # By which labels each learns.
  ONE_HOT: ONE_HOT,
  SMOOTHED: ONE_HOT,
  GLOBAL_SINGLE: GLOBAL_SINGLE,
  GLOBAL_MULTI: GLOBAL_MULTI,
  LOCAL_SINGLE: LOCAL_SINGLE,
  LOCAL_MULTI: LOCAL_MULTI,
  CUTMIX: LOCAL_MULTI,
  DISTILLED: DISTILLED,
  ORACLE: ORACLE,
  OWN: ONE_HOT,
}
CUT = "crops without the labeled object"
LABELS = tuple(dict.fromkeys(METHODS.values()))
_LITTLE = 0.3  # A crop that shows less of the labeled class hardly shows it.


class Lesson(NamedTuple):
  """Scenes, their one label, and what else some students are told of them.

  Attributes:
    images: `[n, s, s, 1]`.
    single: the one label, int32 `[n]`.
    label_maps: the true class of each pixel, int `[n, s, s]`.
    scores: of the annotator's sparse map, `[n, h, w, m]`; None without one.
    indices: the classes of these scores, int32 `[n, h, w, m]`.
  """

  images: chex.Array
  single: chex.Array
  label_maps: chex.Array
  scores: chex.Array | None = None
  indices: chex.Array | None = None


class SceneNet(nn.Module):
  """Convolutions, the first two with max-pooling after them; its features are not pooled.

  Attributes:
    widths: channels of each block of convolution, normalization and ReLU.
  """

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, inputs: chex.Array, *, train: bool = False) -> models.ModelOutput:
    """Features `[n, h, w, d]` of images `[n, s, s, 1]`, and logits of their mean."""
    hidden = inputs
    for i, width in enumerate(self.widths):
      hidden = models.Conv(width, (3, 3), name=f"conv_{i}")(hidden)
      hidden = models.GhostBatchNorm(name=f"norm_{i}")(hidden, use_running_average=not train)
      hidden = nn.relu(hidden)
      if i < 2:
        num, height, width_, channels = hidden.shape
        windows = hidden.reshape(num, height // 2, 2, width_ // 2, 2, channels)
        hidden = jnp.max(windows, axis=(2, 4))
    logits = nn.Dense(NUM_CLASSES, name="head")(jnp.mean(hidden, axis=(1, 2)))
    return models.ModelOutput(hidden, logits)


def label_maps_of(module: SceneNet, variables, images: chex.Array) -> jax.Array:
  """Scores of the classes at each position, `[n, h, w, k]`."""
  head = variables["params"]["head"]
  features = predict(module, variables, images).features
  return augment.classifier_label_map(features, head["kernel"], head["bias"])


def annotate(config, key: chex.PRNGKey, scenes) -> dict:
  """Trains the annotator on canvases of one digit, and labels the training scenes."""
  train_key, crop_key = jax.random.split(key)
  module, own = SceneNet(config.annotator_widths), scenes["own"]

  def loss(apply, key, batch):
    """On the gentlest crops: digits of all sizes that crops of students show."""
    scale = config.scales[-1], 1.0
    crop = augment.random_resized_crop(key, batch.inputs, size=config.size, scale=scale)
    targets = optax.smooth_labels(
      jax.nn.one_hot(batch.labels, NUM_CLASSES), config.annotator_smoothing
    )
    return losses.soft_cross_entropy(apply(crop.images).logits, targets)

  trained = train(
    train_key,
    module,
    classification_loss(module, loss),
    adamw_cosine(config.learning_rate, config.annotator_steps),
    Split(own.images, own.single_label),
    num_steps=config.annotator_steps,
    batch_size=config.batch_size,
  )
  variables, images = trained.variables, scenes["train"].images
  maps = augment.sparsify_label_map(
    label_maps_of(module, variables, images), num_labels=config.num_labels
  )
  found = label_maps_of(module, variables, scenes["test"].images)
  classes, rows, columns = object_cells(scenes["test"].label_maps, found.shape[1])
  at_objects = found[jnp.arange(len(found))[:, None], rows, columns]
  right = jnp.sum(agrees(at_objects, classes) * (classes >= 0)) / jnp.sum(classes >= 0)
  thrice = jnp.repeat(images[:1], 3, axis=0)
  crops = augment.random_resized_crop(
    crop_key, thrice, size=config.size, scale=(config.scales[0], 1.0)
  )
  example = [jnp.repeat(x[:1], 3, axis=0) for x in maps]
  pooled = augment.dense_label_map(*example, num_classes=NUM_CLASSES)
  return {
    "variables": variables,
    "maps": maps._asdict(),
    "objects found": right,
    "example": {
      "scene": images[0],
      "crops": crops.images,
      "boxes": crops.boxes,
      "pooled": augment.pool_label_map(pooled, crops.boxes),
      "label": scenes["train"].single_label[0],
    },
    "bad_step": trained.bad_step,
  }


def targets_of(config, lesson: Lesson, crop, setting, variables) -> jax.Array:
  """Labels `[b, k]` of crops, by the number of their kind in `LABELS`.

  Without a map they are one-hot. The variables are the annotator's.
  """

  def given():
    one_hot = jax.nn.one_hot(lesson.single, NUM_CLASSES)
    return (1 - setting["smoothing"]) * one_hot + setting["smoothing"] / NUM_CLASSES

  def pooled(pool, boxes):
    maps = augment.dense_label_map(lesson.scores, lesson.indices, num_classes=NUM_CLASSES)
    return pool(maps, boxes)

  def distilled():
    annotator = SceneNet(config.annotator_widths)
    return jax.nn.softmax(annotator.apply(variables, crop.images).logits)

  def exact():
    areas = visible_areas(lesson.label_maps, crop.boxes)
    total = jnp.sum(areas, axis=1, keepdims=True)
    return jnp.where(total > 0, areas / jnp.where(total > 0, total, 1), 1 / NUM_CLASSES)

  if lesson.scores is None:
    return given()
  single, multi = augment.pool_label_map_single, augment.pool_label_map
  whole = whole_boxes(len(lesson.single))
  kinds = {
    ONE_HOT: given,
    GLOBAL_SINGLE: lambda: pooled(single, whole),
    GLOBAL_MULTI: lambda: pooled(multi, whole),
    LOCAL_SINGLE: lambda: pooled(single, crop.boxes),
    LOCAL_MULTI: lambda: pooled(multi, crop.boxes),
    DISTILLED: distilled,
    ORACLE: exact,
  }
  return jax.lax.switch(setting["labels"], [kinds[name] for name in LABELS])


def study(config, key: chex.PRNGKey, inputs, setting) -> dict[str, jax.Array]:
  """Trains a student on crops; its log probabilities of whole scenes, and what its labels were.

  The inputs are the `Lesson`, scenes with all their labels by name, and the annotator's variables.
  The setting holds the kind of labels, whether scenes are mixed, the scale, and the smoothing.
  """
  lesson, scenes, variables = inputs
  train_key, crop_key = jax.random.split(key)
  module = SceneNet(config.widths)

  def crop_and_label(key, lesson):
    scale = setting["scale"], 1.0
    crop = augment.random_resized_crop(key, lesson.images, size=config.size, scale=scale)
    return crop, targets_of(config, lesson, crop, setting, variables)

  def loss(apply, key, lesson):
    key, mix_key = jax.random.split(key)
    crop, targets = crop_and_label(key, lesson)
    mixed = augment.cutmix(mix_key, crop.images, targets)
    images = jnp.where(setting["cutmix"] > 0, mixed.inputs, crop.images)
    ratio = jnp.where(setting["cutmix"] > 0, mixed.ratio, 1.0)
    return losses.mixup_cross_entropy(apply(images).logits, targets, mixed.labels_b, ratio)

  trained = train(
    train_key,
    module,
    classification_loss(module, loss),
    adamw_cosine(config.learning_rate, config.num_steps),
    lesson,
    num_steps=config.num_steps,
    batch_size=config.batch_size,
  )
  crop, targets = crop_and_label(crop_key, lesson)
  whole = visible_areas(lesson.label_maps, whole_boxes(len(targets)))
  parts = visible_areas(lesson.label_maps, crop.boxes)
  labeled = jax.nn.one_hot(lesson.single, NUM_CLASSES)
  seen = jnp.sum(parts * labeled, axis=1) / jnp.sum(whole * labeled, axis=1)
  predicted = {name: predict(module, trained.variables, x.inputs) for name, x in scenes.items()}
  logits = {name: outputs.logits for name, outputs in predicted.items()}
  return {
    **{name: jax.nn.log_softmax(x) for name, x in logits.items()},
    "any label": jnp.mean(metrics.multilabel_top1(logits["test"], scenes["test"].labels)),
    "entropy of labels": jnp.mean(jnp.sum(entr(targets), axis=1)),
    CUT: jnp.mean(seen < _LITTLE),
    "bad_step": trained.bad_step,
  }


def mean_average_precision(scores: np.ndarray, label_sets: np.ndarray) -> float:
  """Mean over the classes that occur of the average precision over scenes; NaN of NaN."""
  from sklearn.metrics import average_precision_score

  if not np.isfinite(scores).all():
    return np.nan
  present = label_sets.any(axis=0)
  return average_precision_score(label_sets[:, present], scores[:, present], average="macro")
