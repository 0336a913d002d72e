"""Residual networks for small and large images: ResNet, ResNeXt and WideResNet.

Strides and paddings are those of torchvision (`resnet.ResNet`) and of the common CIFAR WideResNet,
so that their weights give the same logits (`jaxlab.models.load_vision_checkpoint`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_choice
from jaxlab.models.classifiers import Mix, ModelOutput
from jaxlab.models.convolution import Conv
from jaxlab.models.norm import GhostBatchNorm


class ResNet(nn.Module):
  """A residual network: stem, stages of blocks, mean over space, a linear head.

  Each stage but the first halves the resolution, and each has twice the channels of the one before.

  Attributes:
    num_classes: number k of classes.
    stage_sizes: blocks of each stage.
    block: "basic" (two 3 x 3 convolutions) or "bottleneck" (1 x 1, 3 x 3, 1 x 1, the last with four
      times the channels).
    width: channels of the stem and of the first stage.
    groups: groups of the 3 x 3 convolutions of a bottleneck.
    group_width: channels of a group in a stage of 64 channels, in proportion in other stages; 64
      with one group is the plain bottleneck.
    stem: "imagenet" (7 x 7 of stride 2 and a max-pooling) or "cifar" (3 x 3 of stride 1).
    norm: makes the normalization layers: `GhostBatchNorm`, `GroupNorm` or a partial of one.

  Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
  https://arxiv.org/abs/1512.03385; Xie et al., Aggregated Residual Transformations, CVPR 2017,
  https://arxiv.org/abs/1611.05431.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  block: Literal["basic", "bottleneck"] = "basic"
  width: int = 64
  groups: int = 1
  group_width: int = 64
  stem: Literal["imagenet", "cifar"] = "imagenet"
  norm: Callable[..., nn.Module] = GhostBatchNorm

  @nn.compact
  def __call__(
    self, inputs: chex.Array, *, train: bool = False, mix: Mix | None = None
  ) -> ModelOutput:
    """Classifies.

    Args:
      inputs: images, `[b, h, w, c]`.
      train: whether normalization uses the batch's statistics.
      mix: `(layer, hidden) -> hidden`, called with the inputs (layer 0) and after each stage
        (1, 2, ...).

    Returns:
      A `ModelOutput`; the features are the last stage's channels.

    Raises:
      ValueError: if `inputs` are no images, `block` or `stem` is unknown, or basic blocks are
        combined with groups.
    """
    check_choice("block", self.block, ("basic", "bottleneck"))
    check_choice("stem", self.stem, ("imagenet", "cifar"))
    if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
      raise ValueError(
        f"basic blocks have one group of 64, got {self.groups} of {self.group_width}."
      )
    check_arrays(inputs=(inputs, "[b, h, w, c]"))
    hidden = _mixed(mix, 0, inputs)
    size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
    hidden = _conv(self.width, size, stride, name="stem_conv")(hidden)
    hidden = nn.relu(self.norm(name="stem_norm")(hidden, use_running_average=not train))
    if self.stem == "imagenet":
      hidden = nn.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for i, num_blocks in enumerate(self.stage_sizes):
      for j in range(num_blocks):
        hidden = _Block(
          kind=self.block,
          width=self.width * 2**i,
          stride=2 if i > 0 and j == 0 else 1,
          groups=self.groups,
          group_width=self.group_width,
          norm=self.norm,
          name=f"stage_{i}_block_{j}",
        )(hidden, train)
      hidden = _mixed(mix, i + 1, hidden)
    return _classified(hidden, self.num_classes)


class WideResNet(nn.Module):
  """A wide residual network for small images, normalized before each convolution.

  Attributes:
    num_classes: number k of classes.
    depth: number of layers, 6 n + 4 for n blocks in each of three stages.
    widen_factor: multiplies the stages' 16, 32 and 64 channels.
    norm: makes the normalization layers: `GhostBatchNorm`, `GroupNorm` or a partial of one.

  Reference: Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016,
  https://arxiv.org/abs/1605.07146.
  """

  num_classes: int
  depth: int = 28
  widen_factor: int = 10
  norm: Callable[..., nn.Module] = GhostBatchNorm

  @nn.compact
  def __call__(
    self, inputs: chex.Array, *, train: bool = False, mix: Mix | None = None
  ) -> ModelOutput:
    """Classifies.

    Args:
      inputs: images, `[b, h, w, c]`.
      train: whether normalization uses the batch's statistics.
      mix: `(layer, hidden) -> hidden`, called with the inputs (layer 0) and after each stage
        (1, 2, 3).

    Returns:
      A `ModelOutput`; the features are the last stage's channels.

    Raises:
      ValueError: if `inputs` are no images or `depth` is not 6 n + 4.
    """
    num_blocks, rest = divmod(self.depth - 4, 6)
    if rest or num_blocks < 1:
      raise ValueError(f"depth must be 10, 16, 22, 28, ..., got {self.depth}.")
    check_arrays(inputs=(inputs, "[b, h, w, c]"))
    hidden = _conv(16, 3, name="stem_conv")(_mixed(mix, 0, inputs))
    for i in range(3):
      for j in range(num_blocks):
        hidden = _PreActivationBlock(
          width=16 * 2**i * self.widen_factor,
          stride=2 if i > 0 and j == 0 else 1,
          norm=self.norm,
          name=f"stage_{i}_block_{j}",
        )(hidden, train)
      hidden = _mixed(mix, i + 1, hidden)
    hidden = nn.relu(self.norm(name="head_norm")(hidden, use_running_average=not train))
    return _classified(hidden, self.num_classes)


def resnet18(num_classes: int, **options) -> ResNet:
  """ResNet-18; `options` are further attributes of `ResNet`, such as the stem."""
  return ResNet(num_classes, (2, 2, 2, 2), "basic", **options)


def resnet50(num_classes: int, **options) -> ResNet:
  """ResNet-50; `options` are further attributes of `ResNet`, such as the stem."""
  return ResNet(num_classes, (3, 4, 6, 3), "bottleneck", **options)


def wide_resnet50_2(num_classes: int, **options) -> ResNet:
  """ResNet-50 with inner convolutions twice as wide; `options` are as for `resnet50`."""
  return resnet50(num_classes, group_width=128, **options)


def resnext50(num_classes: int, **options) -> ResNet:
  """ResNeXt-50 of 32 groups of 4 channels; `options` are as for `resnet50`."""
  return resnet50(num_classes, groups=32, group_width=4, **options)


def resnext29(num_classes: int, **options) -> ResNet:
  """ResNeXt-29 for small images, of 4 groups of 32 channels; `options` are as for `resnet50`."""
  options = {"stem": "cifar", "groups": 4, "group_width": 32} | options
  return ResNet(num_classes, (3, 3, 3), "bottleneck", **options)


def wide_resnet28_10(num_classes: int, **options) -> WideResNet:
  """WideResNet-28-10; `options` are further attributes of `WideResNet`."""
  return WideResNet(num_classes, depth=28, widen_factor=10, **options)


def _mixed(mix: Mix | None, layer: int, hidden: jax.Array) -> jax.Array:
  return hidden if mix is None else mix(layer, hidden)


def _conv(features: int, size: int, stride: int = 1, *, groups: int = 1, name: str) -> Conv:
  # "SAME" would pad even sizes on one side only when it strides.
  return Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    feature_group_count=groups,
    use_bias=False,
    name=name,
  )


def _classified(hidden: jax.Array, num_classes: int) -> ModelOutput:
  features = jnp.mean(hidden, axis=(1, 2))
  return ModelOutput(features, nn.Dense(num_classes, name="head")(features))


class _Block(nn.Module):
  """Convolutions with normalization after each, and a shortcut around them."""

  kind: str
  width: int
  stride: int
  groups: int
  group_width: int
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, inputs, train):
    def norm(name, x):
      return self.norm(name=name)(x, use_running_average=not train)

    if self.kind == "basic":
      convolutions = (
        _conv(self.width, 3, self.stride, name="conv_1"),
        _conv(self.width, 3, name="conv_2"),
      )
    else:
      inner = self.width * self.group_width // 64 * self.groups
      convolutions = (
        _conv(inner, 1, name="conv_1"),
        _conv(inner, 3, self.stride, groups=self.groups, name="conv_2"),
        _conv(4 * self.width, 1, name="conv_3"),
      )
    hidden = inputs
    for k, conv in enumerate(convolutions, 1):
      hidden = norm(f"norm_{k}", conv(hidden))
      hidden = hidden if k == len(convolutions) else nn.relu(hidden)
    shortcut = inputs
    if inputs.shape != hidden.shape:
      conv = _conv(hidden.shape[-1], 1, self.stride, name="shortcut_conv")
      shortcut = norm("shortcut_norm", conv(inputs))
    return nn.relu(hidden + shortcut)


class _PreActivationBlock(nn.Module):
  """Normalization, ReLU and convolution, twice, and a shortcut around them."""

  width: int
  stride: int
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, inputs, train):
    def activated(name, x):
      return nn.relu(self.norm(name=name)(x, use_running_average=not train))

    active = activated("norm_1", inputs)
    hidden = activated("norm_2", _conv(self.width, 3, self.stride, name="conv_1")(active))
    hidden = _conv(self.width, 3, name="conv_2")(hidden)
    if inputs.shape[-1] != self.width:
      return hidden + _conv(self.width, 1, self.stride, name="shortcut_conv")(active)
    return hidden + inputs
