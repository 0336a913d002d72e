"""The paper's scale: COCO-20i, and a PSPNet on a dilated ResNet-50."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data, models

IGNORE = 255
NUM_THINGS = 80
_BLOCKS = ((3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 1, 2), (3, 512, 1, 4))
_BINS = (1, 2, 3, 6)


class PSPNet(nn.Module):
  """Features at an eighth of the resolution, pooled at four scales, and a linear classifier."""

  num_classes: int
  width: int = 512

  @nn.compact
  def __call__(self, images, *, train=False):
    """Features and logits of every position, as a `models.ModelOutput`."""

    def unit(hidden, width, size=3, stride=1, dilation=1):
      options = {"strides": stride, "kernel_dilation": dilation, "use_bias": False}
      hidden = models.Conv(width, (size, size), **options)(hidden)
      return models.GhostBatchNorm()(hidden, use_running_average=not train)

    hidden = images
    for width, stride in ((64, 2), (64, 1), (128, 1)):
      hidden = nn.relu(unit(hidden, width, stride=stride))
    hidden = nn.max_pool(hidden, (3, 3), (2, 2), padding="SAME")
    for num, width, stride, dilation in _BLOCKS:
      for block_stride in (stride, *itertools.repeat(1, num - 1)):
        inner = nn.relu(unit(hidden, width, size=1))
        inner = nn.relu(unit(inner, width, stride=block_stride, dilation=dilation))
        inner = unit(inner, 4 * width, size=1)
        if hidden.shape != inner.shape:
          hidden = unit(hidden, 4 * width, size=1, stride=block_stride)
        hidden = nn.relu(hidden + inner)
    batch, height, breadth, channels = hidden.shape
    scales = [hidden]
    for bins in _BINS:
      pooled = jax.image.resize(hidden, (batch, bins, bins, channels), "linear")
      pooled = nn.relu(unit(pooled, self.width, size=1))
      scales.append(jax.image.resize(pooled, (batch, height, breadth, self.width), "bilinear"))
    features = nn.relu(unit(jnp.concatenate(scales, axis=-1), self.width))
    return models.ModelOutput(features, nn.Dense(self.num_classes, name="head")(features))


def scene_batches(split: str, size: int, *transforms, **options) -> data.BatchIterator:
  """Batches of scenes, as of `to_scene` and then `transforms`; `options` of the iterator."""
  source = data.load_source("coco/2017_panoptic", split=split)
  steps = [lambda example: to_scene(example, size), *transforms]
  return data.batch_iterator(source, transforms=steps, **options)


def to_scene(example: dict, size: int) -> dict[str, np.ndarray]:
  """Image and mask of one example, squeezed to a square.

  The mask has 1 + the class where there is a thing, 0 where there is none, 255 for crowds.
  """
  rgb = example["panoptic_image"].astype(np.int64)
  segments = rgb @ np.array([1, 256, 256**2])
  mask = np.zeros(segments.shape, np.int32)
  objects = example["panoptic_objects"]
  for number, label, crowd in zip(objects["id"], objects["label"], objects["is_crowd"]):
    if label < NUM_THINGS:
      mask[segments == number] = IGNORE if crowd else label + 1
  image = jax.image.resize(np.float32(example["image"]) / 255, (size, size, 3), "bilinear")
  rows, columns = (np.arange(size) * length // size for length in mask.shape)
  return {"image": np.asarray(image), "mask": mask[np.ix_(rows, columns)]}
