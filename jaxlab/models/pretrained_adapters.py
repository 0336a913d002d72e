"""Low-rank adapters in peft directories."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_at_least
from jaxlab._json import check_types, naming
from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.pretrained_files import (
  existing_directory,
  open_tensors,
  read_json,
  save_tensors,
  write_directory,
)
from jaxlab.models.pretrained_tensors import LeafLayout, parameter_layout
from jaxlab.weights.low_rank import LowRankConfig


class LoadedAdapter(NamedTuple):
  """Adapters as `init_low_rank` makes them, and their scale.

  Attributes:
    adapters: path of a kernel -> `a`, `[layers, in, r]`, and `b`, `[layers, r, out]`.
    config: rank, alpha and targets.
  """

  adapters: dict[str, dict[str, jax.Array]]
  config: LowRankConfig


def load_adapter(directory: str | os.PathLike, config: DecoderConfig) -> LoadedAdapter:
  """Reads a peft directory.

  GPT-2 has one matrix for queries, keys and values: the three get the same A and their columns of
  B.

  Args:
    directory: holds `adapter_config.json` and `adapter_model.safetensors`.
    config: architecture of the base model.

  Returns:
    A `LoadedAdapter`.

  Raises:
    FileNotFoundError: if the directory or a file is missing.
    ValueError: if the adapter is not LoRA or uses a setting that the layers do not support (the
      message names it), if weights are pickled, or tensors are missing, unexpected or of the wrong
      shape (lists all of them), not floating or not finite.
  """
  directory = existing_directory(directory)
  settings = read_json(directory / "adapter_config.json")
  with naming(directory / "adapter_config.json"):
    _check_settings(settings)
  rank = settings["r"]
  with naming(directory), open_tensors(directory, "adapter_model") as files:
    adapted = {_MODULE.sub("", name) for name in files.shapes}
    kernels = {
      path: leaf
      for path, leaf in parameter_layout(config).items()
      if path.startswith("layers/")
      and path.endswith("/kernel")
      and any(_module(name) in adapted for name in leaf.names)
    }
    _check_tensors(files.shapes, kernels, rank)
    adapters = {}
    for path, leaf in kernels.items():
      columns = leaf.columns or slice(None)
      pairs = [_pair_names(name) for name in leaf.names]
      a = [files.read(a, (slice(None),) * 2).T for a, _ in pairs]
      b = [files.read(b, (columns, slice(None))).T for _, b in pairs]
      adapters[path] = {"a": jnp.asarray(np.stack(a)), "b": jnp.asarray(np.stack(b))}
  targets = tuple(path.removeprefix("layers/").removesuffix("/kernel") for path in sorted(adapters))
  stabilized = bool(settings.get("use_rslora", False))
  return LoadedAdapter(adapters, LowRankConfig(rank, settings["lora_alpha"], targets, stabilized))


def save_adapter(
  directory: str | os.PathLike,
  adapters: Mapping[str, Mapping[str, chex.Array]],
  adapter_config: LowRankConfig,
  config: DecoderConfig,
) -> None:
  """Writes adapters as a peft directory, atomically.

  Where GPT-2's queries, keys and values have n different A, the file has rank n r: the A side by
  side and the B in blocks, with an alpha that keeps the scale. Adapters of other matrices are then
  padded with zeros, since a file has one rank for all.

  Args:
    directory: where to write.
    adapters: path of a kernel -> `a`, `[layers, in, r]`, and `b`, `[layers, r, out]`.
    adapter_config: their rank and scale.
    config: architecture of the base model.

  Raises:
    FileExistsError: if `directory` holds files but no `adapter_config.json`.
    ValueError: if there is no adapter, or a path or a shape does not fit the architecture.
  """
  layout = parameter_layout(config)
  _check_adapters(adapters, layout, adapter_config.rank)
  groups: dict[tuple[str, ...], list[str]] = {}
  for path in sorted(adapters, key=lambda path: _start(layout[path])):
    groups.setdefault(layout[path].names, []).append(path)
  joined = {names: _join(paths, adapters, layout) for names, paths in groups.items()}
  rank = max(a.shape[-1] for a, _ in joined.values())
  growth = rank / adapter_config.rank
  if adapter_config.rank_stabilized:
    growth **= 0.5

  tensors, modules = {}, []
  for names, (a, b) in joined.items():
    extra = rank - a.shape[-1]
    a = np.pad(a, ((0, 0), (0, 0), (0, extra)))
    b = np.pad(b, ((0, 0), (0, extra), (0, 0)))
    modules.append(re.sub(r"^.*\.\d+\.", "", names[0]).removesuffix(".weight"))
    for layer, name in enumerate(names):
      name_a, name_b = _pair_names(name)
      tensors[name_a] = np.ascontiguousarray(a[layer].T)
      tensors[name_b] = np.ascontiguousarray(b[layer].T)
  settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": rank,
    "lora_alpha": adapter_config.alpha * growth,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": sorted(modules),
    "use_rslora": adapter_config.rank_stabilized,
    "fan_in_fan_out": config.family == "gpt2",
    "inference_mode": True,
  }
  with write_directory(directory, marker="adapter_config.json") as new:
    save_tensors(new / "adapter_model.safetensors", tensors)
    (new / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def adapter_targets(names: Sequence[str], config: DecoderConfig) -> tuple[str, ...]:
  """Translates targets that are named as in peft, such as "q_proj", into those of `LowRankConfig`.

  Args:
    names: ends of the names of modules in checkpoints; others stay as they are.
    config: architecture of the base model.

  Returns:
    Ends of the paths of layers, each once.
  """
  targets = []
  for name in names:
    translated = [
      path.removeprefix("layers/").removesuffix("/kernel")
      for path, leaf in parameter_layout(config).items()
      if leaf.stacked and path.endswith("/kernel") and leaf.names[0].endswith(f".{name}.weight")
    ]
    targets += translated or [name]
  return tuple(dict.fromkeys(targets))


_PREFIX = "base_model.model."
_MODULE = re.compile(r"^base_model\.model\.|\.lora_[AB]\.weight$")


def _module(name: str) -> str:
  return name.removesuffix(".weight")


def _pair_names(name: str) -> tuple[str, str]:
  """Tensors of A and B for the kernel that a checkpoint calls `name`."""
  module = _PREFIX + _module(name)
  return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _start(leaf: LeafLayout) -> int:
  return leaf.columns.start if leaf.columns else 0


def _check_settings(settings: Mapping[str, Any]) -> None:
  missing = [name for name in ("r", "lora_alpha") if settings.get(name) is None]
  if missing:
    raise ValueError(f"it lacks {', '.join(missing)}.")
  check_types(settings, r=int, lora_alpha=float, peft_type=str, bias=str, use_rslora=bool)
  check_at_least(1, r=settings["r"])
  if settings.get("peft_type", "LORA") != "LORA":
    raise ValueError(f"peft_type must be LORA, got {settings['peft_type']!r}.")
  if settings.get("bias", "none") != "none":
    raise ValueError(f"bias must be 'none', got {settings['bias']!r}.")
  used = [name for name in _UNSUPPORTED if settings.get(name)]
  if used:
    raise ValueError(f"adapters with {', '.join(used)} cannot be read.")


_UNSUPPORTED = (
  "alpha_pattern",
  "layers_to_transform",
  "lora_bias",
  "modules_to_save",
  "rank_pattern",
  "use_dora",
)


def _check_tensors(shapes, kernels, rank) -> None:
  expected = {}
  for leaf in kernels.values():
    width, features = leaf.shape[1:]
    features = features if leaf.columns is None else 3 * features
    for name in leaf.names:
      name_a, name_b = _pair_names(name)
      expected |= {name_a: (rank, width), name_b: (features, rank)}
  problems = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - shapes)]
  problems += [f"unexpected {name} {shapes[name]}" for name in sorted(shapes.keys() - expected)]
  for name in sorted(expected.keys() & shapes):
    if shapes[name] != expected[name]:
      problems.append(f"{name} has shape {shapes[name]}, expected {expected[name]}")
  if problems or not expected:
    raise ValueError(f"{'; '.join(problems) or 'no tensors'}.")


def _check_adapters(adapters, layout, rank) -> None:
  if not adapters:
    raise ValueError("adapters must not be empty.")
  for path, adapter in adapters.items():
    if path not in layout or not (path.startswith("layers/") and path.endswith("/kernel")):
      raise ValueError(f"adapter {path!r} is not a kernel of a layer.")
    layers, width, features = layout[path].shape
    expected = {"a": (layers, width, rank), "b": (layers, rank, features)}
    for name, shape in expected.items():
      if np.shape(adapter[name]) != shape:
        raise ValueError(
          f"adapter {path!r}: {name} has shape {np.shape(adapter[name])}, expected {shape}."
        )


def _join(paths, adapters, layout) -> tuple[np.ndarray, np.ndarray]:
  """A and B of one matrix of the checkpoint, `[layers, in, R]` and `[layers, R, out]`."""
  all_a = [np.asarray(adapters[path]["a"]) for path in paths]
  all_b = [np.asarray(adapters[path]["b"]) for path in paths]
  if layout[paths[0]].columns is None:
    return all_a[0], all_b[0]
  layers, rank, width = all_b[0].shape
  shared = all(np.array_equal(all_a[0], a) for a in all_a[1:])
  blocks = 1 if shared else len(paths)
  a = all_a[0] if shared else np.concatenate(all_a, axis=-1)
  b = np.zeros((layers, blocks * rank, 3 * width), all_b[0].dtype)
  for i, (path, part) in enumerate(zip(paths, all_b)):
    row = 0 if shared else i * rank
    b[:, row : row + rank, layout[path].columns] = part
  return a, b
