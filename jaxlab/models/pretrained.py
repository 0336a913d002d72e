"""Decoder language models in Hugging Face directories: `config.json` and safetensors."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab._checks import check_at_least
from jaxlab._json import naming
from jaxlab.models.decoder import DECODER_SHARDING_RULES, DecoderLM
from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.pretrained_config import config_from_hf, config_to_hf
from jaxlab.models.pretrained_files import (
  existing_directory,
  open_tensors,
  read_json,
  save_tensors,
  write_directory,
)
from jaxlab.models.pretrained_tensors import (
  check_params,
  hf_tensor,
  match_tensors,
  parameter_layout,
  params_from_hf,
  read_leaf,
  tensor_shapes,
)


class Pretrained(NamedTuple):
  """A model that was read from a directory.

  Attributes:
    model: the module.
    params: its parameters: `model.apply({"params": params}, tokens)`.
    config: its architecture.
  """

  model: DecoderLM
  params: chex.ArrayTree
  config: DecoderConfig


def load_pretrained(
  directory: str | os.PathLike,
  *,
  dtype: Any = jnp.float32,
  mesh: Mesh | None = None,
  sharding_rules: Sequence[tuple[str, PartitionSpec]] | None = None,
) -> Pretrained:
  """Reads a GPT-2, Llama, Mistral, Qwen2 or Qwen3 model, one tensor at a time.

  Peak memory is little more than the parameters; with a mesh each device reads only its piece of a
  tensor.

  Args:
    directory: holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` and
      its shards.
    dtype: type of the parameters and of the computation.
    mesh: where to put the parameters; None is the default device.
    sharding_rules: pairs of a regular expression, searched for in a parameter's path, and its spec;
      the first match wins, and a parameter without a match is replicated. None is
      `DECODER_SHARDING_RULES` if the mesh has an axis `model`, else all replicated.

  Returns:
    A `Pretrained`.

  Raises:
    FileNotFoundError: if the directory or a file is missing.
    ValueError: if the model is of another family, weights are pickled, or tensors are missing,
      unexpected or of the wrong shape (lists all of them), not floating or not finite, or if there
      are rules without a mesh.
  """
  if mesh is None and sharding_rules is not None:
    raise ValueError("sharding_rules need a mesh, got None.")
  directory = existing_directory(directory)
  with naming(directory):
    config = config_from_hf(read_json(directory / "config.json"))
  if mesh is not None and sharding_rules is None:
    sharding_rules = DECODER_SHARDING_RULES if "model" in mesh.shape else ()
  layout = parameter_layout(config)
  flat = {}
  with naming(directory), open_tensors(directory) as files:
    names = match_tensors(files.shapes, config)

    def read(name, index):
      return files.read(names[name], index)

    for path, leaf in layout.items():
      if mesh is None:
        flat[path] = jax.device_put(read_leaf(read, leaf, dtype))
      else:
        flat[path] = _read_sharded(read, path, leaf, dtype, mesh, sharding_rules)
  params = traverse_util.unflatten_dict(flat, sep="/")
  return Pretrained(DecoderLM(config, dtype=dtype, param_dtype=dtype), params, config)


def _read_sharded(read, path, leaf, dtype, mesh, rules) -> jax.Array:
  matches = (spec for pattern, spec in rules if re.search(pattern, path))
  sharding = NamedSharding(mesh, next(matches, PartitionSpec()))
  return jax.make_array_from_callback(
    leaf.shape, sharding, lambda index: read_leaf(read, leaf, dtype, index)
  )


def save_pretrained(
  directory: str | os.PathLike,
  params: chex.ArrayTree,
  config: DecoderConfig,
  *,
  max_shard_bytes: int = 5_000_000_000,
  tokenizer_from: str | os.PathLike | None = None,
) -> None:
  """Writes a directory that `transformers` reads, atomically.

  Args:
    directory: where to write; an old directory is replaced as a whole.
    params: parameters of the model, saved in their types.
    config: its architecture.
    max_shard_bytes: most bytes of tensors per file (a larger tensor gets its own file).
    tokenizer_from: directory whose tokenizer and generation files are copied as they are.

  Raises:
    FileExistsError: if `directory` holds files but no `config.json`.
    FileNotFoundError: if `tokenizer_from` has none of those files.
    ValueError: if `params` do not fit `config`, the family's `config.json` cannot express `config`,
      or `max_shard_bytes` is below 1.
  """
  check_at_least(1, max_shard_bytes=max_shard_bytes)
  flat = check_params(params, config)
  hf_config = config_to_hf(config) | {"torch_dtype": str(flat["embed/embedding"].dtype)}
  sizes = _tensor_bytes(flat, config)
  shards = _plan_shards(sizes, max_shard_bytes)
  copied = [] if tokenizer_from is None else _text_files(pathlib.Path(tokenizer_from))
  with write_directory(directory, marker="config.json") as new:
    weight_map = {}
    for i, names in enumerate(shards, 1):
      file = "model.safetensors"
      if len(shards) > 1:
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
      tensors = {name: hf_tensor(name, flat, config) for name in names}
      save_tensors(new / file, tensors)
      weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
      index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
      _write_json(new / "model.safetensors.index.json", index)
    _write_json(new / "config.json", hf_config)
    for path in copied:
      shutil.copyfile(path, new / path.name)


def _tensor_bytes(flat: Mapping[str, chex.Array], config: DecoderConfig) -> dict[str, int]:
  sizes = dict.fromkeys(tensor_shapes(config), 0)
  for path, leaf in parameter_layout(config).items():
    for name in leaf.names:
      sizes[name] += flat[path].nbytes // len(leaf.names)
  return sizes


def _plan_shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
  shards: list[list[str]] = []
  used = 0
  for name, size in sizes.items():
    if not shards or used + size > most:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  return shards


def _text_files(directory: pathlib.Path) -> list[pathlib.Path]:
  files = [directory / name for name in _TEXT_FILES if (directory / name).is_file()]
  if not files:
    raise FileNotFoundError(f"{directory} has no tokenizer or generation files.")
  return files


_TEXT_FILES = (
  "added_tokens.json",
  "chat_template.jinja",
  "generation_config.json",
  "merges.txt",
  "special_tokens_map.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "vocab.json",
)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def logits_from_hf(
  hf_config: Mapping[str, Any], tensors: Mapping[str, chex.Array], tokens: chex.Array
) -> jax.Array:
  """Scores tokens with a model in memory under Hugging Face's tensor names.

  Args:
    hf_config: the object in `config.json`.
    tensors: name -> array.
    tokens: `[b, t]` integers.

  Returns:
    Scores of the next token, float32 `[b, t, v]`.

  Raises:
    ValueError: as `config_from_hf` and `params_from_hf`.
  """
  config = config_from_hf(hf_config)
  params = params_from_hf(tensors, config)
  return DecoderLM(config).apply({"params": params}, jnp.asarray(tokens)).logits
