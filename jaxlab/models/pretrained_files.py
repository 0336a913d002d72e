"""Directories of safetensors files: opened shard by shard, checked, written atomically."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxlab._json import as_json, check_types, naming


def existing_directory(path: str | os.PathLike) -> pathlib.Path:
  """The directory of a model on this machine.

  Args:
    path: where it is; `~` is the home directory.

  Returns:
    The path.

  Raises:
    FileNotFoundError: if it is no directory; for what may be a model's name on the Hugging Face
      hub, the message says how to fetch it.
  """
  directory = pathlib.Path(path).expanduser()
  if not directory.is_dir():
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path))
    hint = f"; a model of the hub is fetched by `hf download {path} --local-dir DIR`"
    raise FileNotFoundError(f"there is no directory {path}{hint if is_name else ''}.")
  return directory


class TensorFiles(NamedTuple):
  """Open tensor files, whose tensors are read on request.

  Attributes:
    shapes: name -> shape of every tensor.
    read: `(name, slices) -> array`, a part of a tensor, which `check_weights` passed.
  """

  shapes: dict[str, tuple[int, ...]]
  read: Any


@contextlib.contextmanager
def open_tensors(directory: str | os.PathLike, stem: str = "model") -> Iterator[TensorFiles]:
  """Opens the weights of a directory.

  Args:
    directory: holds `<stem>.safetensors`, or `<stem>.safetensors.index.json` and its shards.
    stem: first part of the file names.

  Yields:
    A `TensorFiles`.

  Raises:
    FileNotFoundError: if there are no weights, or a shard is missing.
    ValueError: if there are only pickled weights, which are never read, or a file is malformed.
  """
  directory = pathlib.Path(directory).expanduser()
  with contextlib.ExitStack() as stack:
    handles, shapes = {}, {}
    for path in _weight_files(directory, stem):
      try:
        file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
      except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
      names = file.keys()
      for name in names:
        handles[name] = file
        shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
      return check_weights(name, handles[name].get_slice(name)[index])

    yield TensorFiles(shapes, read)


def check_weights(name: str, weights: np.ndarray) -> np.ndarray:
  """Raises if weights that others wrote cannot be used as they are.

  Args:
    name: of the tensor.
    weights: the tensor or a part of it.

  Returns:
    The weights.

  Raises:
    ValueError: naming the tensor, if it is not of a floating type (quantised weights mean nothing
      without their scales) or not finite.
  """
  if not jnp.issubdtype(weights.dtype, jnp.floating):
    raise ValueError(f"{name} must have weights of a floating type, got {weights.dtype}.")
  if not _all_finite(weights):
    raise ValueError(f"{name} has weights that are NaN or infinite.")
  return weights


def _all_finite(weights: np.ndarray) -> bool:
  if weights.dtype.itemsize != 2:
    return bool(np.isfinite(weights).all())
  # By the bits, since NumPy's test of half precision takes as long as reading the file.
  infinity = np.array(np.inf, weights.dtype).view(np.uint16)
  return bool(((weights.view(np.uint16) & 0x7FFF) < infinity).all())


def _weight_files(directory: pathlib.Path, stem: str) -> list[pathlib.Path]:
  single = directory / f"{stem}.safetensors"
  index = directory / f"{stem}.safetensors.index.json"
  if single.is_file():
    return [single]
  if index.is_file():
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
      raise ValueError(f"{index} lacks weight_map.")
    with naming(index):
      check_types(weight_map, **dict.fromkeys(weight_map, str))
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if pathlib.PurePath(name).name != name]
    if outside:
      raise ValueError(f"{index} points outside its directory: {', '.join(outside)}.")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
      raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}.")
    return [directory / name for name in names]
  pickled = sorted(path.name for ending in _PICKLED for path in directory.glob(ending))
  if pickled:
    raise ValueError(
      f"{directory} has pickled weights, {', '.join(pickled)}, which are never read; "
      "convert them to safetensors."
    )
  raise FileNotFoundError(f"{directory} has neither {single.name} nor {index.name}.")


_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the object in a JSON file.

  Args:
    path: the file.

  Returns:
    The object.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it holds something else.
  """
  content = as_json(os.fspath(path), pathlib.Path(path).read_bytes())
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold an object, got {type(content).__name__}.")
  return content


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file, in the form that `transformers` reads.

  Args:
    path: the file.
    tensors: name -> contiguous array.

  Raises:
    OSError: if it cannot be written.
  """
  try:
    safetensors.numpy.save_file(dict(tensors), path, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    raise OSError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def write_directory(directory: str | os.PathLike, *, marker: str) -> Iterator[pathlib.Path]:
  """Yields a temporary sibling to write into, which replaces the directory at the end.

  A reader finds the old directory or the new one. If the body raises, the old one stays.

  Args:
    directory: the directory; files of an old one that are not written again are removed.
    marker: an existing directory is replaced only if it is empty or has a file of this name.

  Yields:
    The temporary directory.

  Raises:
    FileExistsError: if `directory` is anything else.
  """
  directory = pathlib.Path(directory).expanduser().absolute()
  if directory.exists() and not (directory / marker).is_file() and _has_content(directory):
    raise FileExistsError(f"{directory} holds other files and no {marker}.")
  directory.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
  try:
    new, old = temporary / "new", temporary / "old"
    new.mkdir()
    yield new
    for path in new.iterdir():
      with open(path, "rb") as file:
        os.fsync(file.fileno())
    if directory.exists():
      os.rename(directory, old)
    try:
      os.rename(new, directory)
    except OSError:
      if old.exists():
        os.rename(old, directory)
      raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _has_content(path: pathlib.Path) -> bool:
  return not path.is_dir() or any(path.iterdir())
