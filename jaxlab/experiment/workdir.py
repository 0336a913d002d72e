"""The directory of one run: who may write to it, what it holds, how it stays whole.

The files::

  config.json     what was asked for; written first
  metrics.jsonl   one row per line: stage, step, metrics
  stages/         results of finished stages
  checkpoints/    training states
  tensorboard/    events, where tensorboardX is installed
  extras.npz      arrays for the figure
  results.json    what was measured; only of a run that is complete
  figure.png      drawn from the two files above

Every file but the rows of metrics and events appears at once or not at all, so that a run killed
between any two instructions goes on from what stands there.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import numpy as np

from jaxlab.experiment.flags import UsageError
from jaxlab.training.provenance import check_config

_CONFIG = "config.json"
_FILES = ("results.json", "figure.png", "extras.npz", "metrics.jsonl")
# Folders, and what a run writes into them at any depth.
_FOLDERS = {
  "stages": r".+\.npz(\.partial)?",
  "checkpoints": r"\d+(\.corrupt|\.probe|\.orbax-checkpoint-tmp.*)?",
  "tensorboard": r"events\.out\.tfevents\..+",
}
_LOCK = ".lock"


class DamagedFileError(RuntimeError):
  """A file of a run cannot be read back as it was written."""


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the directory and holds it for this process until the block ends.

  The lock goes with the process, however it dies.

  Args:
    workdir: the directory of the run.

  Raises:
    UsageError: if it cannot be made or written to, or another process holds it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / _LOCK, "a+")  # noqa: SIM115 -- closed below, after the lock is let go
  except OSError as error:
    raise UsageError(f"--workdir={workdir} cannot be written to: {error.strerror}.") from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or "unknown"
      raise UsageError(
        f"--workdir={workdir} is in use by another run (process {holder}); wait for it, or give "
        "this one a --workdir of its own."
      ) from error
    except OSError as error:
      raise UsageError(f"--workdir={workdir} cannot be locked: {error.strerror}.") from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    yield


def begin(workdir: pathlib.Path, config: dict[str, Any], *, overwrite: bool = False) -> bool:
  """Writes `config.json`, or checks that the run that stands there is the one asked for.

  Args:
    workdir: a directory that this process holds.
    config: what was asked for, as JSON would hold it (nested dicts count field by field).
    overwrite: whether to remove what an earlier run of the same `slug` left.

  Returns:
    Whether an earlier run of the same configuration is being continued.

  Raises:
    UsageError: if the configurations differ (the message names the first field that does), or if
      files stand there that no run of this program wrote.
  """
  config = json.loads(json.dumps(encode_json(config)))
  path = workdir / _CONFIG
  if not path.exists():
    foreign = [name for name in (*_FILES, *_FOLDERS) if (workdir / name).exists()]
    if foreign:
      raise UsageError(
        f"--workdir={workdir} holds {foreign[0]} but no config.json: another program's directory? "
        "Nothing was changed; choose another one."
      )
  else:
    difference = first_difference(load_json(path), config)
    if difference is None and not overwrite:
      return True
    ours = difference is None or difference[0] not in ("", "slug")
    if not (overwrite and ours):
      name, stored, asked = difference
      raise UsageError(
        f"--workdir={workdir} holds a run with {name or 'config.json'} = {stored!r}, this command "
        f"asks for {asked!r}. Choose another --workdir"
        + (", or --overwrite to lose that run." if ours else "; nothing was changed.")
      )
    clear(workdir)
  save_json(path, config)
  return False


def clear(workdir: pathlib.Path) -> None:
  """Removes what a run wrote, and nothing else; what was measured goes first, `config.json` stays.

  A run that is cut off in between has no results, so that old ones are never shown as new.
  """
  for name in _FILES:
    _remove(workdir / name)
    _remove(_partial(workdir / name))
  for name, written in _FOLDERS.items():
    folder = (workdir / name).resolve()  # Large folders may be links to another disk.
    for path in [path for path in folder.rglob("*") if re.fullmatch(written, path.name)]:
      _remove(path)
    for path in sorted(folder.glob("**/"), reverse=True):
      with contextlib.suppress(OSError):  # It holds files of others.
        path.rmdir()


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def first_difference(stored: Any, asked: Any, name: str = "") -> tuple[str, Any, Any] | None:
  """The dotted name of the first field in which two JSON values differ, and both values."""
  if isinstance(stored, dict) and isinstance(asked, dict):
    for key in dict.fromkeys([*asked, *stored]):
      child = f"{name}.{key}" if name else key
      difference = first_difference(stored.get(key), asked.get(key), child)
      if difference:
        return difference
    return None
  return None if stored == asked else (name, stored, asked)


def write_atomic(path: pathlib.Path, write: Callable[[IO[bytes]], Any]) -> None:
  """Writes a file that appears at once or not at all.

  Args:
    path: where it is to stand; its directory is made.
    write: called with an open binary file.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _partial(path)
  try:
    with names_file(path), open(temporary, "wb") as file:
      write(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:  # On a full disk what was written of it would stay in the way.
    temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def names_file(path: pathlib.Path) -> Iterator[None]:
  """Adds the file to an OSError that names none, as one of a full disk does.

  Args:
    path: the file.

  Raises:
    OSError: as it was raised, naming the file.
  """
  try:
    yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _partial(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.partial")


def save_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON at once; infinities and NaN, which JSON lacks, become text that `float` reads."""
  text = _layout(encode_json(value)) + "\n"
  write_atomic(path, lambda file: file.write(text.encode()))


def _layout(value: Any, indent: str = "") -> str:
  """JSON with a line per item, where an item that holds nothing nested stays on one line."""
  inner = indent + "  "
  if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
    flat = indent and not any(_is_nested(item) for item in value.values())
    if not flat:
      items = [f"{inner}{json.dumps(key)}: {_layout(v, inner)}" for key, v in value.items()]
      return "{\n" + ",\n".join(items) + f"\n{indent}}}"
  elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
    return "[\n" + ",\n".join(inner + _layout(item, inner) for item in value) + f"\n{indent}]"
  return json.dumps(value, allow_nan=False)


def _is_nested(value: Any) -> bool:
  items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return any(isinstance(item, dict | list) for item in items)


def load_json(path: pathlib.Path) -> Any:
  """Reads what `save_json` wrote.

  Raises:
    DamagedFileError: if the file is no longer as it was written.
  """
  with names_damage(path):
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def names_damage(path: Any) -> Iterator[None]:
  """Turns what reading a file of ours raises, which archives do by any exception, into its damage.

  Args:
    path: the file.

  Raises:
    DamagedFileError: naming the file.
    OSError: if it cannot be read at all.
  """
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    raise DamagedFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def encode_json(value: Any) -> Any:
  """The value in types that strict JSON holds."""
  if isinstance(value, dict):
    return {str(key): encode_json(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [encode_json(item) for item in value]
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return encode_json(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def save_tree(file: IO[bytes], tree: Any, *, made_by: Any = None) -> None:
  """Writes nested dicts, lists and tuples of arrays and plain values as one npz, without pickle.

  Args:
    file: open for writing.
    tree: leaves are NumPy or JAX arrays, numbers, text, booleans, None; keys of dicts are text.
    made_by: what `load_tree` may ask for, as JSON holds it.

  Raises:
    TypeError: for any other leaf or key; the message says where it stands.
  """
  arrays: list[np.ndarray] = []
  structure = json.dumps(_structure(tree, arrays, "result"))
  # Types that NumPy does not know (bfloat16) would come back as raw bytes; they are stored as such,
  # and their names stand in the structure.
  raw = [array if _is_native(array.dtype) else array.view(np.uint8) for array in arrays]
  named = {f"array_{i}": array for i, array in enumerate(raw)}
  np.savez(file, structure=np.array(structure), made_by=np.array(json.dumps(made_by)), **named)


def load_tree(path: pathlib.Path | IO[bytes], *, made_by: Any = None) -> Any:
  """Reads what `save_tree` wrote; arrays are NumPy's, those without axes its scalars.

  Args:
    path: the file, or one that is open.
    made_by: what it must have been made by; None asks for nothing.

  Returns:
    The tree.

  Raises:
    MismatchError: if it was made by something else.
    DamagedFileError: if the file is no longer as it was written.
  """
  with names_damage(path), np.load(path, allow_pickle=False) as stored:
    tree = _rebuild(json.loads(str(stored["structure"])), stored)
    by = json.loads(str(stored["made_by"])) if "made_by" in stored else None
  if made_by is not None:
    check_config(str(path), by, made_by)
  return tree


def _structure(tree: Any, arrays: list[np.ndarray], where: str) -> dict[str, Any]:
  if isinstance(tree, dict):
    if not all(isinstance(key, str) for key in tree):
      raise TypeError(f"{where} has keys that are not text: {list(tree)}.")
    return {"dict": {k: _structure(v, arrays, f"{where}[{k!r}]") for k, v in tree.items()}}
  if type(tree) in (list, tuple):
    items = [_structure(item, arrays, f"{where}[{i}]") for i, item in enumerate(tree)]
    return {type(tree).__name__: items}
  if tree is None or type(tree) in (bool, int, float, str):
    return {"value": tree}
  if isinstance(tree, np.ndarray | np.generic | jax.Array) and not _is_opaque(tree):
    # Zero-dimensional arrays have no view of another item size.
    array = np.ascontiguousarray(np.atleast_1d(np.asarray(tree)))
    arrays.append(array)
    return {"array": len(arrays) - 1, "dtype": array.dtype.name, "shape": list(np.shape(tree))}
  raise TypeError(
    f"{where} is a {type(tree).__name__}, which cannot be stored: make it nested dicts, lists and "
    "tuples of arrays, numbers and text."
  )


def _rebuild(node: dict[str, Any], stored: Any) -> Any:
  if "dict" in node:
    return {key: _rebuild(item, stored) for key, item in node["dict"].items()}
  if "list" in node:
    return [_rebuild(item, stored) for item in node["list"]]
  if "tuple" in node:
    return tuple(_rebuild(item, stored) for item in node["tuple"])
  if "array" in node:
    array, name = stored[f"array_{node['array']}"], node["dtype"]
    if array.dtype.name != name:
      array = array.view(np.dtype(name))  # Types that JAX registers
    return array.reshape(node["shape"])[()]
  return node["value"]


def _is_opaque(leaf: Any) -> bool:
  """Arrays without numbers: typed keys, Python objects."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype == object


def _is_native(dtype: np.dtype) -> bool:
  return dtype.isbuiltin == 1 or dtype.kind in "US"
