"""Parameters of a decoder under the tensor names of Hugging Face, one tensor at a time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxlab.models.decoder import DecoderLM
from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.pretrained_files import check_weights

# Reads a part of a tensor, given its name and one slice per dimension.
ReadTensor = Callable[[str, tuple[slice, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LeafLayout:
  """The place of a parameter in a checkpoint.

  Attributes:
    shape: its shape, with the layer axis.
    names: tensor of each layer; one name for parameters outside the layers.
    stacked: whether there is a layer axis.
    transposed: whether the tensor is [out, in].
    columns: which columns of the tensor's last axis are the parameter's, None for all.
  """

  shape: tuple[int, ...]
  names: tuple[str, ...]
  stacked: bool
  transposed: bool
  columns: slice | None


def params_from_hf(tensors: Mapping[str, chex.Array], config: DecoderConfig) -> chex.ArrayTree:
  """Arranges named tensors as parameters.

  Args:
    tensors: name -> array. GPT-2's may have the prefix `transformer.` or not; buffers that are not
      parameters are skipped, and so is the output matrix of a tied model.
    config: the architecture.

  Returns:
    The parameters, in the types of the tensors.

  Raises:
    ValueError: if tensors are missing, unexpected or of the wrong shape (lists all of them), not
      floating or not finite.
  """
  names = match_tensors({name: np.shape(x) for name, x in tensors.items()}, config)

  def read(name, index):
    return check_weights(name, np.asarray(tensors[names[name]])[index])

  flat = {
    path: jnp.asarray(read_leaf(read, leaf, tensors[names[leaf.names[0]]].dtype))
    for path, leaf in parameter_layout(config).items()
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def params_to_hf(params: chex.ArrayTree, config: DecoderConfig) -> dict[str, np.ndarray]:
  """Names parameters as Hugging Face does; the inverse of `params_from_hf`.

  Args:
    params: parameters of the model.
    config: the architecture.

  Returns:
    Name -> array, in the types of the parameters; a tied output matrix is left out.

  Raises:
    ValueError: if parameters are missing, unexpected or of the wrong shape; lists all of them.
  """
  flat = check_params(params, config)
  return {name: hf_tensor(name, flat, config) for name in tensor_shapes(config)}


@functools.lru_cache(maxsize=8)
def parameter_layout(config: DecoderConfig) -> dict[str, LeafLayout]:
  """The place of each parameter in a checkpoint.

  Args:
    config: the architecture.

  Returns:
    Path of the parameter, "layers/attention/q/kernel" -> its layout.
  """
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  tree = jax.eval_shape(DecoderLM(config).init, jax.random.key(0), tokens)["params"]
  is_gpt2 = config.family == "gpt2"
  modules = _GPT2_MODULES if is_gpt2 else _LLAMA_MODULES
  layout = {}
  for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
    module, _, kind = path.rpartition("/")
    name = f"{modules[module]}.{'bias' if kind == 'bias' else 'weight'}"
    stacked = module.startswith("layers/")
    names = tuple(name.format(i) for i in range(config.num_layers)) if stacked else (name,)
    columns = None
    if ".c_attn." in name:
      width = config.hidden_size
      start = ("q", "k", "v").index(module[-1]) * width
      columns = slice(start, start + width)
    transposed = kind == "kernel" and not (is_gpt2 and stacked)
    layout[path] = LeafLayout(leaf.shape, names, stacked, transposed, columns)
  return layout


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors of a checkpoint.

  Args:
    config: the architecture.

  Returns:
    Name -> shape.
  """
  shapes = {}
  for leaf in parameter_layout(config).values():
    shape = leaf.shape[1:] if leaf.stacked else leaf.shape
    if leaf.transposed:
      shape = shape[::-1]
    if leaf.columns is not None:
      shape = (*shape[:-1], 3 * shape[-1])
    shapes |= dict.fromkeys(leaf.names, shape)
  return shapes


def match_tensors(shapes: Mapping[str, Sequence[int]], config: DecoderConfig) -> dict[str, str]:
  """Matches the tensors of a checkpoint with an architecture.

  Args:
    shapes: name -> shape of each tensor.
    config: the architecture.

  Returns:
    Our name of each tensor -> its name in the checkpoint.

  Raises:
    ValueError: if tensors are missing, unexpected or of the wrong shape; lists all of them.
  """
  expected = tensor_shapes(config)
  names = {_canonical(name, config): name for name in shapes if not _is_skipped(name, config)}
  problems = []
  for name in sorted(expected.keys() - names.keys()):
    problems.append(f"missing {name} {tuple(expected[name])}")
  for name in sorted(names.keys() - expected.keys()):
    problems.append(f"unexpected {names[name]} {tuple(shapes[names[name]])}")
  for name in sorted(expected.keys() & names.keys()):
    shape = tuple(shapes[names[name]])
    if shape != expected[name]:
      problems.append(f"{names[name]} has shape {shape}, expected {expected[name]}")
  if problems:
    raise ValueError(f"tensors do not fit {config.family}: {'; '.join(problems)}.")
  return names


def read_leaf(
  read: ReadTensor,
  leaf: LeafLayout,
  dtype: np.dtype,
  index: tuple[slice, ...] | None = None,
) -> np.ndarray:
  """Reads a parameter, or a part of it, one tensor at a time.

  Args:
    read: reads a part of a tensor under our name of it.
    leaf: the place of the parameter.
    dtype: type of the result.
    index: a slice for each dimension of the parameter; None is all of it.

  Returns:
    The array, aligned so that a CPU device can use it without a copy.
  """
  index = (slice(None),) * len(leaf.shape) if index is None else index
  bounds = [part.indices(size) for part, size in zip(index, leaf.shape)]
  target = _aligned_empty([stop - start for start, stop, _ in bounds], dtype)
  if not leaf.stacked:
    _read_into(read, leaf, leaf.names[0], index, target)
    return target
  for row, layer in zip(target, range(*bounds[0])):
    _read_into(read, leaf, leaf.names[layer], index[1:], row)
  return target


def check_params(params: chex.ArrayTree, config: DecoderConfig) -> dict[str, chex.Array]:
  """Checks parameters against an architecture.

  Args:
    params: nested dict of parameters.
    config: the architecture.

  Returns:
    The flat parameters, path -> array.

  Raises:
    ValueError: if parameters are missing, unexpected or of the wrong shape; lists all of them.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  expected = {path: leaf.shape for path, leaf in parameter_layout(config).items()}
  problems = [f"missing {name}" for name in sorted(expected.keys() - flat.keys())]
  problems += [f"unexpected {name}" for name in sorted(flat.keys() - expected.keys())]
  for name in sorted(expected.keys() & flat.keys()):
    if np.shape(flat[name]) != expected[name]:
      problems.append(f"{name} has shape {np.shape(flat[name])}, expected {expected[name]}")
  if problems:
    raise ValueError(f"params do not fit the architecture: {'; '.join(problems)}.")
  return flat


def hf_tensor(name: str, flat: Mapping[str, chex.Array], config: DecoderConfig) -> np.ndarray:
  """Makes one tensor of a checkpoint.

  Args:
    name: its name.
    flat: path -> parameter.
    config: the architecture.

  Returns:
    The tensor, contiguous.
  """
  pieces = []
  for path, leaf in parameter_layout(config).items():
    if name in leaf.names:
      piece = np.asarray(flat[path][leaf.names.index(name)] if leaf.stacked else flat[path])
      start = leaf.columns.start if leaf.columns else 0
      pieces.append((start, piece.T if leaf.transposed else piece))
  pieces = [piece for _, piece in sorted(pieces, key=lambda pair: pair[0])]
  return np.ascontiguousarray(np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])


_GPT2 = "transformer."
_GPT2_MODULES = {
  "embed": f"{_GPT2}wte",
  "position": f"{_GPT2}wpe",
  "final_norm": f"{_GPT2}ln_f",
  "lm_head": "lm_head",
  "layers/norm1": f"{_GPT2}h.{{}}.ln_1",
  "layers/norm2": f"{_GPT2}h.{{}}.ln_2",
  "layers/attention/q": f"{_GPT2}h.{{}}.attn.c_attn",
  "layers/attention/k": f"{_GPT2}h.{{}}.attn.c_attn",
  "layers/attention/v": f"{_GPT2}h.{{}}.attn.c_attn",
  "layers/attention/out": f"{_GPT2}h.{{}}.attn.c_proj",
  "layers/mlp/up": f"{_GPT2}h.{{}}.mlp.c_fc",
  "layers/mlp/down": f"{_GPT2}h.{{}}.mlp.c_proj",
}
_LLAMA_MODULES = {
  "embed": "model.embed_tokens",
  "final_norm": "model.norm",
  "lm_head": "lm_head",
  "layers/norm1": "model.layers.{}.input_layernorm",
  "layers/norm2": "model.layers.{}.post_attention_layernorm",
  "layers/attention/q": "model.layers.{}.self_attn.q_proj",
  "layers/attention/k": "model.layers.{}.self_attn.k_proj",
  "layers/attention/v": "model.layers.{}.self_attn.v_proj",
  "layers/attention/out": "model.layers.{}.self_attn.o_proj",
  "layers/attention/q_norm": "model.layers.{}.self_attn.q_norm",
  "layers/attention/k_norm": "model.layers.{}.self_attn.k_norm",
  "layers/mlp/gate": "model.layers.{}.mlp.gate_proj",
  "layers/mlp/up": "model.layers.{}.mlp.up_proj",
  "layers/mlp/down": "model.layers.{}.mlp.down_proj",
}


def _canonical(name: str, config: DecoderConfig) -> str:
  if config.family == "gpt2" and not name.startswith((_GPT2, "lm_head.")):
    return _GPT2 + name
  return name


def _is_skipped(name: str, config: DecoderConfig) -> bool:
  """Buffers that follow from the configuration, and the copy of a tied matrix."""
  if config.tie_embeddings and name == "lm_head.weight":
    return True
  if config.family == "gpt2":
    return name.endswith((".attn.bias", ".attn.masked_bias"))
  return name.endswith("rotary_emb.inv_freq")


def _read_into(read, leaf, name, index, target) -> None:
  """Reads one tensor's part; large ones in strips, to bound the temporary memory."""
  index = list(index)
  if leaf.columns is not None:
    start, stop, _ = index[-1].indices(leaf.shape[-1])
    index[-1] = slice(leaf.columns.start + start, leaf.columns.start + stop)
  rows = len(target)
  start = index[0].start or 0
  strip = max(1, _STRIP_BYTES * rows // max(target.nbytes, 1))
  for row in range(0, rows, strip):
    end = min(row + strip, rows)
    part = (slice(start + row, start + end), *index[1:])
    if leaf.transposed:
      target[row:end] = read(name, part[::-1]).T
    else:
      target[row:end] = read(name, part)


_STRIP_BYTES = 1 << 24


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  # JAX takes an array without a copy if it begins at a multiple of 64 bytes.
  dtype = np.dtype(dtype)
  size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
  raw = np.empty(size + 64, np.uint8)
  offset = -raw.ctypes.data % 64
  return raw[offset : offset + size].view(dtype).reshape(shape)
