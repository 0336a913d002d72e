"""A network whose dropout may stay on in evaluation."""

import math

import chex
import jax.numpy as jnp
from flax import linen as nn

from jaxlab import models


class DropoutNetwork(nn.Module):
  """Dense layers with dropout; large images go through a ResNet-18 first.

  Attributes:
    num_outputs: scores.
    widths: of the dense layers.
    dropout: share of the hidden units that is dropped.
    shape: of the image that the first columns of a row hold, for the ResNet, whose features the
      other columns join; () for none.
  """

  num_outputs: int
  widths: tuple[int, ...]
  dropout: float = 0.0
  shape: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, inputs: chex.Array, *, train: bool = False, drop: bool = False):
    """The `ModelOutput` of rows `[b, d]`; `drop` drops units in evaluation too."""
    hidden = inputs
    if self.shape:
      num_pixels = math.prod(self.shape)
      images = inputs[:, :num_pixels].reshape(-1, *self.shape)
      features = models.resnet18(1, stem="cifar")(images, train=train).features
      hidden = jnp.concatenate([features, inputs[:, num_pixels:]], axis=1)
    for width in self.widths:
      hidden = nn.relu(nn.Dense(width)(hidden))
      hidden = nn.Dropout(self.dropout, deterministic=not (train or drop))(hidden)
    return models.ModelOutput(hidden, nn.Dense(self.num_outputs)(hidden))
