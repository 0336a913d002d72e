"""ResNets and WideResNets in safetensors files of PyTorch state dicts.

A `ResNet` has the names of torchvision and timm (`layer1.0.conv1.weight`), a `WideResNet` those of
the common CIFAR code (`block1.layer.0.conv1.weight`).
"""

import os
import pathlib
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxlab._json import naming
from jaxlab.models.pretrained_files import check_weights, save_tensors
from jaxlab.models.resnet import ResNet, WideResNet


def load_vision_checkpoint(
  path: str | os.PathLike, module: nn.Module, *, num_channels: int = 3
) -> dict[str, chex.ArrayTree]:
  """Reads a PyTorch state dict in a safetensors file into the variables of a residual network.

  Half-precision tensors are widened; counters of batches (`num_batches_tracked`) are left out.

  Args:
    path: the safetensors file; no other format is read.
    module: the `ResNet` or `WideResNet` that the tensors belong to.
    num_channels: channels of its images.

  Returns:
    What `module.apply` takes: `params`, and `batch_stats` if its normalization has them, float32.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not a safetensors file, or a tensor is missing, superfluous or of the wrong
      shape (for example that of a head for another number of classes; the message names it and
      both shapes), or not floating or not finite.
    TypeError: if `module` is neither a `ResNet` nor a `WideResNet`.
  """
  layout = _layout(module, num_channels)
  try:
    tensors = safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is not a safetensors file: {error}") from error
  tensors = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
  expected = {name: shape for name, shape in layout.values()}
  _check(tensors, expected, source=path)
  with naming(path):
    flat = {
      leaf: jnp.asarray(_from_torch(check_weights(name, tensors[name])), jnp.float32)
      for leaf, (name, _) in layout.items()
    }
  return traverse_util.unflatten_dict(flat)


def save_vision_checkpoint(
  path: str | os.PathLike, module: nn.Module, variables: dict[str, chex.ArrayTree]
) -> None:
  """Writes a residual network as a PyTorch state dict in a safetensors file.

  `load_vision_checkpoint` reads back bitwise the same numbers. The file is replaced atomically.

  Args:
    path: the file to write.
    module: the `ResNet` or `WideResNet`.
    variables: its `params`, and `batch_stats` if its normalization has them.

  Raises:
    ValueError: if an array is missing, superfluous or of the wrong shape; the message names it and
      both shapes.
    TypeError: if `module` is neither a `ResNet` nor a `WideResNet`.
  """
  flat = traverse_util.flatten_dict(variables)
  stem = flat.get(("params", "stem_conv", "kernel"))
  layout = _layout(module, 3 if stem is None else stem.shape[-2])
  tensors = {
    layout[leaf][0] if leaf in layout else "/".join(leaf): _to_torch(np.asarray(x, np.float32))
    for leaf, x in flat.items()
  }
  _check(tensors, dict(layout.values()), source="variables")
  path = pathlib.Path(path).expanduser()
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    save_tensors(temporary, tensors)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _layout(module, num_channels) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
  """The name and the shape in PyTorch of every array of the module."""
  if not isinstance(module, ResNet | WideResNet):
    raise TypeError(f"module must be a ResNet or a WideResNet, got {type(module).__name__}.")
  images = jax.ShapeDtypeStruct((1, 32, 32, num_channels), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  names = _RESNET if isinstance(module, ResNet) else _WIDE_RESNET
  layout = {}
  for leaf, x in traverse_util.flatten_dict(variables).items():
    _, *layer, kind = leaf
    name = _translated("/".join(layer), names)
    layout[leaf] = f"{name}.{_KINDS[kind]}", tuple(x.shape[i] for i in _axes(x.ndim))
  return layout


def _translated(layer, names) -> str:
  for pattern, name in names:
    match = re.fullmatch(pattern, layer)
    if match:
      groups = match.groupdict()
      stage = int(groups.get("stage", 0))
      return name.format(**groups | {"stage": stage + 1})
  raise ValueError(f"layer {layer!r} has no name in PyTorch.")


_BLOCK = r"stage_(?P<stage>\d+)_block_(?P<block>\d+)/"
# Layer -> module of the state dict; stages count from 1 there.
_RESNET = (
  ("stem_conv", "conv1"),
  ("stem_norm", "bn1"),
  (_BLOCK + r"conv_(?P<k>\d)", "layer{stage}.{block}.conv{k}"),
  (_BLOCK + r"norm_(?P<k>\d)", "layer{stage}.{block}.bn{k}"),
  (_BLOCK + "shortcut_conv", "layer{stage}.{block}.downsample.0"),
  (_BLOCK + "shortcut_norm", "layer{stage}.{block}.downsample.1"),
  ("head", "fc"),
)
_WIDE_RESNET = (
  ("stem_conv", "conv1"),
  (_BLOCK + r"conv_(?P<k>\d)", "block{stage}.layer.{block}.conv{k}"),
  (_BLOCK + r"norm_(?P<k>\d)", "block{stage}.layer.{block}.bn{k}"),
  (_BLOCK + "shortcut_conv", "block{stage}.layer.{block}.convShortcut"),
  ("head_norm", "bn1"),
  ("head", "fc"),
)
_KINDS = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def _to_torch(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array.transpose(_axes(array.ndim)))


def _from_torch(array: np.ndarray) -> np.ndarray:
  return array.transpose(np.argsort(_axes(array.ndim)))


def _axes(rank: int) -> tuple[int, ...]:
  """Our axes in the order of PyTorch: matrices are [in, out], kernels [h, w, in, out]."""
  return {2: (1, 0), 4: (3, 2, 0, 1)}.get(rank, tuple(range(rank)))


def _check(tensors, expected, *, source) -> None:
  """Checks tensors against the names and shapes of the architecture."""
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  for problem, some, others in (
    ("lacks", expected, shapes),
    ("has superfluous", shapes, expected),
  ):
    names = sorted(some.keys() - others.keys())
    if names:
      listed = ", ".join(f"{name} {some[name]}" for name in names)
      raise ValueError(f"{source} {problem} tensors: {listed}")
  wrong = [
    f"{name} has shape {shapes[name]}, expected {shape}"
    for name, shape in expected.items()
    if shapes[name] != shape
  ]
  if wrong:
    raise ValueError(f"{source}: {'; '.join(wrong)}")
