"""The network with exits: residual convolutions on signals, a transformer on images."""

import flax.linen as nn
import jax

from experiments.kit.datasets import Dataset
from jaxlab import models

_IMAGE_SIZE, _PATCH_SIZE, _NUM_HEADS = 224, 16, 4


def network(config, dataset: Dataset) -> models.EarlyExitNet:
  """Blocks of about equal cost: convolutions on signals, a transformer on images."""
  if dataset.is_image:
    stages = [EncoderStage(config.width) for _ in range(config.num_blocks)]
  else:
    stages = [ConvolutionStage(config.width) for _ in range(config.num_blocks)]
  return models.EarlyExitNet(tuple(stages), dataset.num_classes)


class ConvolutionStage(nn.Module):
  """Convolution, batch normalization, ReLU; added to its input, or after halving a signal."""

  width: int

  @nn.compact
  def __call__(self, hidden, *, train=False):
    """Runs the stage on signals `[b, t, c]`, those of one channel at half the length."""
    is_first = hidden.shape[-1] == 1
    if is_first:
      hidden = models.Conv(self.width, 5, strides=2)(hidden)
    inner = models.Conv(self.width, 5)(hidden)
    inner = nn.relu(models.GhostBatchNorm()(inner, use_running_average=not train))
    return inner if is_first else hidden + inner


class EncoderStage(nn.Module):
  """A transformer block: attention and a two-layer network, normalized first."""

  width: int

  @nn.compact
  def __call__(self, tokens, *, train=False):
    """Runs the stage on tokens `[b, n, width]`, or on the patches of images `[b, h, w, c]`."""
    if tokens.ndim == 4:
      shape = len(tokens), _IMAGE_SIZE, _IMAGE_SIZE, tokens.shape[-1]
      images = jax.image.resize(tokens, shape, "bilinear")
      patches = models.Conv(self.width, (_PATCH_SIZE, _PATCH_SIZE), _PATCH_SIZE)(images)
      tokens = patches.reshape(len(images), -1, self.width)
      tokens += self.param("places", nn.initializers.normal(0.02), tokens.shape[1:])
    normed = nn.LayerNorm()(tokens)
    tokens += nn.MultiHeadDotProductAttention(_NUM_HEADS)(normed, normed)
    hidden = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(tokens)))
    return tokens + nn.Dense(self.width)(hidden)
