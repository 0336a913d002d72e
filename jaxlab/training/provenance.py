"""What a checkpoint or a stored stage was made by, and the refusal of what another thing made."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class MismatchError(ValueError):
  """What is stored was made by another configuration, other data, or for another state."""


def fingerprint(value: Any) -> str:
  """A short text that tells values apart: data, a tokenizer, a chat template.

  Example::

      made_by = {"rate": 0.1, "data": fingerprint(path.read_bytes())}
      with Checkpointer(directory, config=made_by) as checkpointer:
        ...

  Args:
    value: bytes, text, numbers, None, arrays that this process holds, dataclasses, or nested dicts
      and sequences of them. The order of a dict's keys does not count, and lists equal tuples.

  Returns:
    The first 16 hexadecimal digits of its SHA-256.

  Raises:
    TypeError: for anything else; the message names the type.
  """
  digest = hashlib.sha256()
  _add(digest, value)
  return digest.hexdigest()[:16]


def _add(digest: Any, value: Any) -> None:
  """Adds a value with its type and size, so that no two values give the same bytes."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    value = sorted(value.items())
    digest.update(f"dict {len(value)};".encode())
    for item in value:
      _add(digest, item)
  elif isinstance(value, list | tuple):
    digest.update(f"list {len(value)};".encode())
    for item in value:
      _add(digest, item)
  elif isinstance(value, bytes | str):
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    digest.update(f"{type(value).__name__} {len(data)};".encode())
    digest.update(data)
  elif value is None or isinstance(value, bool | int | float):
    digest.update(f"{value!r};".encode())
  elif isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object:
    array = np.asarray(value)
    digest.update(f"{array.dtype.name} {array.shape};".encode())
    digest.update(array.tobytes())
  else:
    raise TypeError(f"a {type(value).__name__} has no fingerprint.")


def check_config(name: str, stored: Any, given: Any) -> None:
  """Raises if two configurations differ.

  Args:
    name: the file or folder that holds the stored one.
    stored: what JSON holds, or None.
    given: likewise.

  Raises:
    MismatchError: naming the first path that differs, with both values.
  """
  check_same(name, _flat(stored), _flat(given))


def check_same(name: str, stored: Mapping[str, str], given: Mapping[str, str]) -> None:
  """Raises if two descriptions, path -> text, differ.

  Args:
    name: the file or folder that holds the stored one.
    stored: the description of what is stored.
    given: that of what is asked for.

  Raises:
    MismatchError: naming the first path that differs, with both texts.
  """
  for path in dict.fromkeys([*given, *stored]):
    there, here = stored.get(path, "absent"), given.get(path, "absent")
    if there != here:
      raise MismatchError(f"{name} differs: {path} is {there} in the checkpoint, {here} here")


def _flat(config: Any) -> dict[str, str]:
  """Flattens a config to path -> JSON text (text, because NaN differs from itself)."""
  leaves = jax.tree_util.tree_leaves_with_path({"config": config}, is_leaf=lambda x: x is None)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): json.dumps(value)
    for path, value in leaves
  }
