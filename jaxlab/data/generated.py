"""Data that are made by a program: computed once, and read from disk from then on."""

import hashlib
import json
import os
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlab.data.sources import data_root, locked


def load_generated(
  name: str,
  arguments: Any,
  generate: Callable[[], Mapping[str, np.ndarray]],
  *,
  data_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
  """Generates arrays once per set of arguments and stores them under a hash of the arguments.

  Processes that ask for the same arrays at once wait for the one that generates them. A process
  that is killed leaves no file behind that would be read. A damaged file is replaced, with a
  warning.

  Args:
    name: what the data are called; part of the file's name.
    arguments: all that the arrays depend on, as JSON can hold it.
    generate: computes the arrays.
    data_dir: where the arrays are kept; as in `jaxlab.data.load_source`.

  Returns:
    The arrays that `generate` returned, now or earlier.
  """
  wanted = json.dumps(arguments, sort_keys=True)
  stem = f"{name}_{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
  root = data_root(data_dir)
  path = root / "generated" / f"{stem}.npz"
  with locked(root, stem):
    if path.exists():
      try:
        return _read(path)
      except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path} is damaged ({error}); generated again.", stacklevel=2)
    arrays = generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
      np.savez(file, **arrays)
    part.replace(path)
    return _read(path)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with path.open("rb") as file:
    return dict(np.load(file))
