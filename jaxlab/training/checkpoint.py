"""Checkpoints: written atomically in the background, and verified when they are restored."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxlab._checks import check_at_least
from jaxlab.training.leaves import descriptions, fingerprints, is_key, like, storable, target
from jaxlab.training.mesh import texts_of_processes
from jaxlab.training.provenance import MismatchError, check_config, check_same


class CorruptCheckpointError(RuntimeError):
  """A checkpoint, or every checkpoint of a directory, cannot be read back as it was written."""


class Restored(NamedTuple):
  """A restored checkpoint.

  Attributes:
    state: the state, with the types, shardings and structure of `state_like`.
    data_state: what was saved as `data_state`, or None.
  """

  state: chex.ArrayTree
  data_state: Any


class Checkpointer:
  """Saves and restores training states in one directory.

  A checkpoint appears by one rename once all of it is on disk, so a kill at any moment leaves the
  previous one intact. Besides the arrays it holds the run's config, and the shape, dtype and a
  fingerprint of the bits of every array, so silent corruption is detected. Typed and raw random
  keys are both stored as key data. Use it as a context manager, or call `close`.

  Several processes call every method together; process 0 owns the directory.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    max_to_keep: int | None = 3,
    config: Any = None,
  ):
    """Opens the directory, or makes it.

    Args:
      directory: where the checkpoints are, one folder per step.
      max_to_keep: number of newest checkpoints that are kept; None keeps all.
      config: what makes the checkpoints: settings of the run, and the `fingerprint` of its data: a
        dataclass or anything JSON can hold. Restoring with a different one is an error; None skips
        this check.

    Raises:
      ValueError: if `max_to_keep` is below 1 or `config` is not JSON-able.
      OSError: if the directory cannot be made.
    """
    check_at_least(1, max_to_keep=max_to_keep)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
      config = dataclasses.asdict(config)
    self._config = json.loads(_dumps("config", config))
    self._corrupt: set[int] = set()
    self._has_saved = False
    path = os.fspath(directory)
    path = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep)
    with _names_directory(path):
      self._manager = ocp.CheckpointManager(path, options=options)

  def save(self, step: int, state: chex.ArrayTree, data_state: Any = None) -> None:
    """Saves `state` as the checkpoint of `step`; returns once the arrays are copied to the host.

    The caller may donate `state` right away; writing goes on in the background. An error there is
    raised by the next call of `save`, `restore`, `wait` or `close`.

    Args:
      step: number of updates done; must be past every checkpoint in the directory.
      state: any tree of arrays and random keys.
      data_state: state of the data iterator that belongs to `step` (`get_state()`): bytes, or
        nested dicts, lists and scalars with bytes in them. Each process stores its own.

    Raises:
      ValueError: if the directory holds a checkpoint of this step or a later one, or `data_state`
        is not JSON-able.
      OSError: if the directory cannot be written to or is full.
    """
    data_state = _dumps("data_state", _encode(data_state))
    self._prepare(step)
    newest = self.latest_step()
    if newest is not None and newest >= step:
      raise ValueError(
        f"cannot save step {step}: {self._manager.directory} already holds step {newest};"
        " restore that one, or use another directory"
      )
    stored = jax.tree.map(storable, state)
    record = {
      "config": self._config,
      "leaves": descriptions(state),
      "key_impls": [str(jax.random.key_impl(x)) for x in jax.tree.leaves(state) if is_key(x)],
      "fingerprints": fingerprints(stored),
      "data_states": texts_of_processes(data_state),
    }
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(stored),
      record=ocp.args.JsonSave({"crc32": _crc32(record), "record": record}),
    )
    with _names_directory(self._manager.directory):
      self._manager.save(step, args=args, force=True)

  def restore(self, state_like: chex.ArrayTree, *, step: int | None = None) -> Restored:
    """Reads a checkpoint back: the newest intact one, or that of `step`.

    A corrupt newest checkpoint is skipped with a warning that names it, and set aside as
    `<step>.corrupt` by the next `save`.

    Args:
      state_like: a state, or one of `jax.ShapeDtypeStruct`, of the wanted structure, shapes and
        dtypes. Arrays come back with its shardings, whatever mesh they were saved from; leaves that
        are not bound to devices stay unbound.
      step: the step to restore; None takes the newest one that can be read.

    Returns:
      `(state, data_state)`.

    Raises:
      FileNotFoundError: if there is no checkpoint, or none of `step`.
      MismatchError: if the checkpoint has a different config, or other shapes or dtypes; names the
        first path that differs, with both values.
      CorruptCheckpointError: if the checkpoint of `step`, or every one, is corrupt.
    """
    self.wait()
    directory = self._manager.directory
    steps = sorted(self._manager.all_steps(), reverse=True)
    if step is not None:
      if step not in steps:
        raise FileNotFoundError(f"{directory} has no checkpoint of step {step}, only {steps[::-1]}")
      return self._read(step, state_like)
    if not steps:
      raise FileNotFoundError(f"{directory} has no checkpoint")
    for candidate in steps:
      try:
        return self._read(candidate, state_like)
      except CorruptCheckpointError as error:
        self._corrupt.add(candidate)
        warnings.warn(f"skipping a corrupt checkpoint: {error}", stacklevel=2)
    raise CorruptCheckpointError(f"every checkpoint in {directory} is corrupt: {steps[::-1]}")

  def latest_step(self) -> int | None:
    """Returns the newest step that is saved or being saved, without reading it; None if none is."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns once everything saved so far is on disk.

    Raises:
      OSError: if the directory cannot be written to or is full.
    """
    with _names_directory(self._manager.directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits as `wait` does, then stops the background threads."""
    with _names_directory(self._manager.directory):
      self._manager.close()

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _prepare(self, step: int) -> None:
    """Tests that the directory is writable; moves remains of killed runs and damage aside."""
    directory = self._manager.directory
    if jax.process_index() == 0:
      with _names_directory(directory):
        # Tested here, since on failure the background threads would wait for each other for
        # minutes.
        probe = directory / f"{step}.probe"
        probe.write_text("can this directory be written to?")
        probe.unlink()
        for remains in () if self._has_saved else directory.glob("*.orbax-checkpoint-tmp*"):
          remains.rmtree()
        for corrupt in self._corrupt:
          aside = directory / f"{corrupt}.corrupt"
          if aside.exists():
            aside.rmtree()
          (directory / str(corrupt)).rename(aside)
    if self._corrupt:
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices("corrupt checkpoints set aside")
      self._manager.reload()
    self._corrupt.clear()
    self._has_saved = True

  def _read(self, step: int, state_like: chex.ArrayTree) -> Restored:
    name = str(self._manager.directory / str(step))
    with _marks_corrupt(name):
      args = ocp.args.Composite(record=ocp.args.JsonRestore())
      stored = self._manager.restore(step, args=args)["record"]
      record = stored["record"]
      if stored["crc32"] != _crc32(record):
        raise ValueError("its record does not match its checksum")
    if self._config is not None:
      check_config(name, record["config"], self._config)
    check_same(name, record["leaves"], descriptions(state_like))
    data_state = _of_this_process(name, record["data_states"])

    with _marks_corrupt(name):
      wanted = ocp.args.StandardRestore(jax.tree.map(target, state_like))
      stored = self._manager.restore(step, args=ocp.args.Composite(state=wanted))["state"]
      found = fingerprints(stored)
      for path, written, read in zip(record["leaves"], record["fingerprints"], found):
        if written != read:
          raise ValueError(f"{path} is not what was written")
    impls = iter(record["key_impls"])
    state = jax.tree.map(lambda leaf, x: like(leaf, x, impls), state_like, stored)
    return Restored(state, _decode(json.loads(data_state)))


@contextlib.contextmanager
def _names_directory(directory: Any) -> Iterator[None]:
  try:
    yield
  except Exception as error:
    raise OSError(f"cannot write checkpoints to {directory}: {_brief(error)}") from error


@contextlib.contextmanager
def _marks_corrupt(name: str) -> Iterator[None]:
  # The storage library reports damage by exceptions of any kind, JSON and Unicode errors included.
  problem = None
  try:
    yield
  except Exception as error:
    problem = error
  # All processes must agree, or some would restore an older checkpoint than others.
  if jax.process_count() > 1 and not multihost_utils.process_allgather(problem is None).all():
    problem = problem or RuntimeError("another process could not read it")
  if problem is not None:
    raise CorruptCheckpointError(f"{name}: {_brief(problem)}") from problem


def _brief(error: Exception) -> str:
  first_line = str(error).strip().partition("\n")[0]
  return f"{type(error).__name__}: {first_line[:300]}"


def _dumps(name: str, value: Any) -> str:
  try:
    return json.dumps(value)
  except TypeError as error:
    raise ValueError(f"{name} must be JSON-able: {error}") from error


def _crc32(record: Any) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


_BYTES = "__base64__"


def _encode(value: Any) -> Any:
  if isinstance(value, bytes):
    return {_BYTES: base64.b64encode(value).decode()}
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):  # JSON would turn it into one
        raise ValueError(f"data_state must be JSON-able: key {key!r} is not a string")
    return {key: _encode(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_encode(item) for item in value]
  return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
  if isinstance(value, dict):
    if set(value) == {_BYTES}:
      return base64.b64decode(value[_BYTES])
    return {key: _decode(item) for key, item in value.items()}
  return [_decode(item) for item in value] if isinstance(value, list) else value


def _of_this_process(name: str, states: list[str]) -> str:
  count = jax.process_count()
  if len(states) == count:
    return states[jax.process_index()]
  if len(set(states)) == 1:
    return states[0]
  raise MismatchError(f"{name} differs: {len(states)} processes in the checkpoint, {count} here")
