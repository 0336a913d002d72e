"""Trained prior-data fitted networks on disk, and the data sets that they expect."""

import dataclasses
import hashlib
import json
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
import safetensors.numpy
from flax import traverse_util

from jaxlab._checks import check_at_least, check_choice
from jaxlab.models.pfn import PFN
from jaxlab.models.pretrained_files import read_json


@dataclasses.dataclass(frozen=True)
class PFNTask:
  """The data sets that a trained network expects.

  Attributes:
    num_features: input features; data with fewer are padded with zeros.
    num_classes: largest number of classes of a classifier, None for regression.
    max_context: largest number of context points seen in training, None if unknown.
    input_scaling: how the prior scales a feature: "standard" (mean 0, std 1), "unit" (range
      [0, 1]) or "none".
    target_scaling: the same for the targets of a regression: "standard" or "none".
    rescale_features: divide inputs by used/`num_features`, so that padding keeps their norm.
    full_support: whether the end bars of a density are half-normals.

  Raises:
    ValueError: for a size below 1 (2 for classes) or an unknown scaling.
  """

  num_features: int
  num_classes: int | None = None
  max_context: int | None = None
  input_scaling: str = "standard"
  target_scaling: str = "standard"
  rescale_features: bool = False
  full_support: bool = True

  def __post_init__(self):
    check_at_least(1, num_features=self.num_features, max_context=self.max_context)
    check_at_least(2, num_classes=self.num_classes)
    check_choice("input_scaling", self.input_scaling, ("standard", "unit", "none"))
    check_choice("target_scaling", self.target_scaling, ("standard", "none"))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPFN:
  """A network with its parameters and its task.

  Attributes:
    module: the architecture.
    params: its parameters: `module.apply({"params": params}, x, y, num_context)`.
    task: the data sets that it expects.
    borders: borders of the bars, `[num_outputs + 1]`, if the outputs are a density.
  """

  module: PFN
  params: chex.ArrayTree = dataclasses.field(repr=False)
  task: PFNTask
  borders: chex.Array | None = dataclasses.field(default=None, repr=False)

  def __deepcopy__(self, memo):
    # It is immutable, so the copies that scikit-learn makes may share the parameters.
    return self


def save_pfn(
  directory: str | os.PathLike,
  module: PFN,
  params: chex.ArrayTree,
  *,
  task: PFNTask,
  borders: chex.Array | None = None,
) -> None:
  """Writes a trained network to a directory: `config.json` and a safetensors file.

  The weights are written under a name made of their checksum, then the configuration that points
  to them is replaced in one step: at every moment a reader finds the old network or the new one.

  Args:
    directory: where to write; made if it does not exist.
    module: the architecture.
    params: its parameters, the tree `module.init(...)["params"]`.
    task: the data sets that the network expects.
    borders: borders of the bars, `[module.num_outputs + 1]`, if the outputs are a density.

  Raises:
    ValueError: if a tensor is missing, unknown or of the wrong shape, or if the borders are not
      finite and increasing; the message names the tensor and both shapes.
    TypeError: if `module` is not a `PFN` (a subclass would be loaded as a `PFN`).
  """
  if type(module) is not PFN:
    raise TypeError(f"module must be a PFN, got {type(module).__name__}")
  tensors = {
    f"params/{name}": np.asarray(value)
    for name, value in traverse_util.flatten_dict(params, sep="/").items()
  }
  if borders is not None:
    tensors["borders"] = np.asarray(borders)
  directory = pathlib.Path(directory).expanduser()
  _check_tensors(tensors, module, task, has_borders=borders is not None, source="params")

  weights = safetensors.numpy.save(tensors)
  digest = hashlib.sha256(weights).hexdigest()
  weights_file = f"weights-{digest[:12]}.safetensors"
  config = {
    "format": _FORMAT,
    "module": {name: getattr(module, name) for name in _MODULE_FIELDS},
    "task": dataclasses.asdict(task),
    "has_borders": borders is not None,
    "weights": weights_file,
    "sha256": digest,
  }
  directory.mkdir(parents=True, exist_ok=True)
  _replace(directory / weights_file, weights)
  text = json.dumps(config, indent=2, default=lambda scalar: scalar.item())
  _replace(directory / "config.json", text.encode())
  for stale in directory.glob("weights-*.safetensors"):
    if stale.name != weights_file:
      stale.unlink()


def load_pfn(directory: str | os.PathLike) -> TrainedPFN:
  """Reads a network that `save_pfn` wrote.

  Args:
    directory: the directory of the network.

  Returns:
    The network, with parameters on the default device.

  Raises:
    FileNotFoundError: if the configuration or the weights are missing.
    ValueError: if a file is corrupt or of another format, or a tensor is missing, unknown or of
      the wrong shape; the message names the file or the tensor and both shapes.
  """
  path = pathlib.Path(directory).expanduser() / "config.json"
  config = read_json(path)
  if config.get("format") != _FORMAT:
    raise ValueError(f"{path} does not describe a network of format {_FORMAT!r}")
  try:
    module, task = PFN(**config["module"]), PFNTask(**config["task"])
    weights_path = path.with_name(pathlib.PurePath(config["weights"]).name)
    digest, has_borders = config["sha256"], config["has_borders"]
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path} lacks an entry or has an unknown one: {error}") from error

  with open(weights_path, "rb") as file:
    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
      raise ValueError(f"{weights_path} is corrupt: its checksum is not the one of {path}")
  tensors = safetensors.flax.load_file(weights_path)
  _check_tensors(tensors, module, task, has_borders=has_borders, source=weights_path)
  borders = tensors.pop("borders", None)
  flat = {name.removeprefix("params/"): value for name, value in tensors.items()}
  return TrainedPFN(module, traverse_util.unflatten_dict(flat, sep="/"), task, borders)


_FORMAT = "jaxlab.pfn.1"
_MODULE_FIELDS = tuple(
  field.name for field in dataclasses.fields(PFN) if field.name not in ("parent", "name")
)


def _check_tensors(tensors, module, task, *, has_borders, source):
  """Checks the tensors against the shapes of the architecture."""
  x, y = jnp.zeros((1, 1, task.num_features)), jnp.zeros((1, 1))
  tree = jax.eval_shape(lambda key: module.init(key, x, y, 0)["params"], jax.random.key(0))
  expected = {
    f"params/{name}": leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()
  }
  if has_borders:
    expected["borders"] = (module.num_outputs + 1,)
  for problem, names in (
    ("lacks", expected.keys() - tensors.keys()),
    ("has unknown", tensors.keys() - expected.keys()),
  ):
    if names:
      raise ValueError(f"{source} {problem} tensors: {', '.join(sorted(names))}")
  for name, shape in expected.items():
    if tensors[name].shape != shape:
      raise ValueError(f"{source}: {name} has shape {tensors[name].shape}, expected {shape}")
  if has_borders:
    widths = np.diff(np.asarray(tensors["borders"], np.float32))
    if not (np.isfinite(widths).all() and (widths > 0).all()):
      raise ValueError(f"{source}: borders must be finite and increasing")


def _replace(path, content):
  """Replaces a file atomically, even if the process is killed meanwhile."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
