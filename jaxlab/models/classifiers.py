"""Small networks of vectors, signals and images, which return features beside their scores."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least
from jaxlab.models.convolution import Conv
from jaxlab.models.norm import GhostBatchNorm

Mix = Callable[[int, jax.Array], jax.Array]


class ModelOutput(NamedTuple):
  """The output of a classifier.

  Attributes:
    features: inputs of the linear head, `[b, d]`.
    logits: scores of the classes, `[b, k]`.
  """

  features: chex.Array
  logits: chex.Array


class ConvOutput(NamedTuple):
  """The output of a `ConvEncoder`.

  Attributes:
    logits: scores of the classes, `[b, k]`; None for an encoder without classes.
    features: inputs of the linear head and of the projection, at least 0, `[b, d]`.
    projection: inputs of a contrastive loss, of any length, `[b, p]`; None for an encoder without.
  """

  logits: chex.Array | None
  features: chex.Array
  projection: chex.Array | None


class MLP(nn.Module):
  """Dense blocks (linear, normalization, activation) and a linear head.

  Attributes:
    num_outputs: number of classes, or of real outputs.
    widths: width of each block.
    norm: makes a normalization layer, such as `GhostBatchNorm`; None for none.
    activation: nonlinearity of the blocks.
  """

  num_outputs: int
  widths: Sequence[int] = (256, 256)
  norm: Callable[..., nn.Module] | None = None
  activation: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(
    self, inputs: chex.Array, *, train: bool = False, mix: Mix | None = None
  ) -> ModelOutput:
    """Classifies.

    Args:
      inputs: `[b, ...]`; rows are flattened.
      train: whether normalization uses the batch's statistics.
      mix: `(layer, hidden) -> hidden`, called with the inputs (layer 0) and after each block
        (1, 2, ...), for manifold mixup.

    Returns:
      A `ModelOutput`.
    """
    hidden = _mixed(mix, 0, inputs)
    hidden = hidden.reshape(hidden.shape[0], math.prod(hidden.shape[1:]))
    for i, width in enumerate(self.widths):
      hidden = nn.Dense(width, name=f"dense_{i}")(hidden)
      if self.norm is not None:
        hidden = self.norm(name=f"norm_{i}")(hidden, use_running_average=not train)
      hidden = _mixed(mix, i + 1, self.activation(hidden))
    return ModelOutput(hidden, nn.Dense(self.num_outputs, name="head")(hidden))


class ConvNet(nn.Module):
  """Convolutional blocks (convolution, normalization, ReLU), mean over space, a linear head.

  Attributes:
    num_classes: number k of classes.
    widths: channels of each block.
    kernel_size: one entry for signals `[b, t, c]`, two for images `[b, h, w, c]`.
    strides: stride of each block.
    pool_after: index of the block that a 2 x 2 max-pooling follows; None for none.
    norm: makes the normalization layers.
  """

  num_classes: int
  widths: Sequence[int] = (32, 64, 64)
  kernel_size: Sequence[int] = (5,)
  strides: Sequence[int] = (2, 2, 2)
  pool_after: int | None = None
  norm: Callable[..., nn.Module] = GhostBatchNorm

  @nn.compact
  def __call__(
    self, inputs: chex.Array, *, train: bool = False, mix: Mix | None = None
  ) -> ModelOutput:
    """Classifies.

    Args:
      inputs: `[b, t, c]` or `[b, h, w, c]`.
      train: whether normalization uses the batch's statistics.
      mix: `(layer, hidden) -> hidden`, called with the inputs (layer 0) and after each block.

    Returns:
      A `ModelOutput`; the features are the last block's channels.

    Raises:
      ValueError: if `inputs` has another shape, or `strides` and `widths` differ in length.
    """
    if len(self.strides) != len(self.widths):
      raise ValueError(f"strides {self.strides} and widths {self.widths} must have equal lengths.")
    rank = len(self.kernel_size)
    spatial = "t" if rank == 1 else "h, w"
    check_arrays(inputs=(inputs, f"[b, {spatial}, c]"))
    hidden = _mixed(mix, 0, inputs)
    for i, (width, stride) in enumerate(zip(self.widths, self.strides)):
      hidden = Conv(width, self.kernel_size, strides=stride, name=f"conv_{i}")(hidden)
      hidden = nn.relu(self.norm(name=f"norm_{i}")(hidden, use_running_average=not train))
      if i == self.pool_after:
        hidden = nn.max_pool(hidden, (2,) * rank, (2,) * rank)
      hidden = _mixed(mix, i + 1, hidden)
    features = jnp.mean(hidden, axis=tuple(range(1, rank + 1)))
    return ModelOutput(features, nn.Dense(self.num_classes, name="head")(features))


class ConvEncoder(nn.Module):
  """Convolution, ReLU and pooling in turn, a dense layer of features, a head and a projection.

  Nothing is normalized by a batch, so a row's output does not depend on the others, as contrastive
  and semi-supervised training of mixed batches needs. A kernel spans 5 positions of a signal or 3 x
  3 of an image, and each max-pooling halves them; what is left over at the end is dropped.

  Attributes:
    features: channels of each block.
    dense: size d of the features.
    num_classes: number k of classes of the linear head; None for no head.
    projection: size p of the projection, which a hidden layer of 2 p units with ReLU makes from the
      features; None for no projection.
  """

  features: Sequence[int] = (16, 32)
  dense: int = 64
  num_classes: int | None = None
  projection: int | None = None

  @nn.compact
  def __call__(self, inputs: chex.Array) -> ConvOutput:
    """Encodes.

    Args:
      inputs: signals `[b, t, c]` or images `[b, h, w, c]`.

    Returns:
      A `ConvOutput`.

    Raises:
      ValueError: if `inputs` has another shape, or a side too short for so many poolings.
    """
    rank = len(inputs.shape) - 2
    check_arrays(inputs=(inputs, "[b, t, c]" if rank == 1 else "[b, h, w, c]"))
    check_at_least(2 ** len(self.features), **{"the sides of inputs": min(inputs.shape[1:-1])})
    hidden = inputs
    for i, width in enumerate(self.features):
      hidden = Conv(width, (5,) if rank == 1 else (3, 3), name=f"conv_{i}")(hidden)
      hidden = _max_pool(nn.relu(hidden))
    hidden = hidden.reshape(hidden.shape[0], math.prod(hidden.shape[1:]))
    features = nn.relu(nn.Dense(self.dense, name="embed")(hidden))
    logits = projection = None
    if self.num_classes is not None:
      logits = nn.Dense(self.num_classes, name="head")(features)
    if self.projection is not None:
      hidden = nn.relu(nn.Dense(2 * self.projection, name="projection_0")(features))
      projection = nn.Dense(self.projection, name="projection_1")(hidden)
    return ConvOutput(logits, features, projection)


def _max_pool(hidden: jax.Array) -> jax.Array:
  """Maxima of two neighbors along each spatial axis.

  The gradient of XLA's own pooling is a scatter; this one's is elementwise.
  """
  for axis in range(1, hidden.ndim - 1):
    size = hidden.shape[axis] // 2
    pairs = jax.lax.slice_in_dim(hidden, 0, 2 * size, axis=axis)
    pairs = pairs.reshape(*hidden.shape[:axis], size, 2, *hidden.shape[axis + 1 :])
    hidden = jnp.max(pairs, axis=axis + 1)
  return hidden


def _mixed(mix: Mix | None, layer: int, hidden: jax.Array) -> jax.Array:
  return hidden if mix is None else mix(layer, hidden)
