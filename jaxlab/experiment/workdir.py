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
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import ml_dtypes
import numpy as np

from jaxlab.experiment.flags import UsageError

_NAMES = (
  "metrics.jsonl",
  "stages",
  "checkpoints",
  "tensorboard",
  "extras.npz",
  "figure.png",
  "results.json",
  "config.json",
)
_LOCK = ".lock"


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
    overwrite: whether to remove what an earlier run left.

  Returns:
    Whether an earlier run of the same configuration is being continued.

  Raises:
    UsageError: if the configurations differ (the message names the first field that does), or if
      files stand there that no run of ours wrote.
  """
  config = json.loads(json.dumps(encode_json(config)))
  path = workdir / "config.json"
  if not path.exists():
    foreign = [name for name in _NAMES if (workdir / name).exists()]
    if foreign:
      raise UsageError(
        f"--workdir={workdir} holds {foreign[0]} but no config.json: another program's directory? "
        "Nothing was changed; choose another one."
      )
  elif overwrite:
    clear(workdir)
  else:
    difference = first_difference(load_json(path), config)
    if difference:
      name, stored, asked = difference
      raise UsageError(
        f"--workdir={workdir} holds a run with {name} = {stored!r}, this command asks for "
        f"{asked!r}. Choose another --workdir, or --overwrite to lose that run."
      )
    return True
  save_json(path, config)
  return False


def clear(workdir: pathlib.Path) -> None:
  """Removes what a run wrote, and nothing else; `config.json` goes last."""
  for name in _NAMES:
    path = workdir / name
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
  temporary = path.with_name(f".{path.name}.partial")
  with open(temporary, "wb") as file:
    write(file)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


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
  """Reads what `save_json` wrote."""
  return json.loads(path.read_text())


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


def save_tree(file: IO[bytes], tree: Any) -> None:
  """Writes nested dicts, lists and tuples of arrays and plain values as one npz, without pickle.

  Args:
    file: open for writing.
    tree: leaves are NumPy or JAX arrays, numbers, text, booleans, None; keys of dicts are text.

  Raises:
    TypeError: for any other leaf or key; the message says where it stands.
  """
  arrays: list[np.ndarray] = []
  structure = json.dumps(_structure(tree, arrays, "result"))
  # Types that NumPy does not know (bfloat16) would come back as raw bytes; they are stored as such,
  # and their names stand in the structure.
  raw = [array if _is_native(array.dtype) else array.view(np.uint8) for array in arrays]
  named = {f"array_{i}": array for i, array in enumerate(raw)}
  np.savez(file, structure=np.array(structure), **named)


def load_tree(file: IO[bytes] | pathlib.Path) -> Any:
  """Reads what `save_tree` wrote; arrays are NumPy's, those without axes its scalars."""
  with np.load(file, allow_pickle=False) as stored:
    return _rebuild(json.loads(str(stored["structure"])), stored)


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
      array = array.view(getattr(ml_dtypes, name))
    return array.reshape(node["shape"])[()]
  return node["value"]


def _is_opaque(leaf: Any) -> bool:
  """Arrays without numbers: typed keys, Python objects."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype == object


def _is_native(dtype: np.dtype) -> bool:
  return dtype.isbuiltin == 1 or dtype.kind in "US"
