"""What the experiment binary hands to an experiment: where to write, and stages that survive."""

import dataclasses
import io
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlab.experiment.workdir import load_tree, save_tree, write_atomic
from jaxlab.training.checkpoint import Checkpointer
from jaxlab.training.loop import FitResult, fit, resume
from jaxlab.training.mesh import make_mesh
from jaxlab.training.state import TrainState
from jaxlab.training.writers import ConsoleWriter, Writer, read_jsonl

_NAME = re.compile(r"[\w=+,-][\w=+,. -]*(/[\w=+,-][\w=+,. -]*)*")


@dataclasses.dataclass(frozen=True)
class Context:
  """One run of an experiment.

  An experiment is a sequence of named stages: `fit` trains, `cached` computes. A run that was
  killed and is started again takes finished stages from the workdir and goes on inside the one that
  was cut off, so that its results are those of an unbroken run.

  Attributes:
    workdir: directory of the run; several hosts must see the same one.
    key: random key of the run.
    seeds: number of seeds.
    first_seed: number of the first of them; a pilot has others than a measured run.
    writers: each makes a metric writer for the training stage of a name.
    mesh: the devices; by default all of them, on the axis `data`.
  """

  workdir: pathlib.Path
  key: chex.PRNGKey
  seeds: int = 1
  first_seed: int = 0
  writers: Sequence[Callable[[str], Writer]] = ()
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=lambda: make_mesh({"data": -1}))
  _taken: set[tuple[str, str]] = dataclasses.field(default_factory=set, init=False, repr=False)

  @property
  def seed_numbers(self) -> range:
    """The numbers of the seeds, by which data and splits are drawn."""
    return range(self.first_seed, self.first_seed + self.seeds)

  def seed_key(self, seed: int) -> chex.PRNGKey:
    """The key of one seed, the one that `over_seeds(context.key, ..., num_seeds=seeds)` gives it.

    Args:
      seed: 0 to `seeds` - 1.

    Returns:
      A random key.

    Raises:
      ValueError: if there is no such seed.
    """
    if not 0 <= seed < self.seeds:
      raise ValueError(f"seed must lie in [0, {self.seeds}), got {seed}.")
    return jax.random.split(self.key, self.seeds)[seed]

  def fit(
    self,
    name: str,
    state: TrainState,
    update: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    batches: Any,
    *,
    num_steps: int,
    steps_per_call: int = 1,
    log_every: int = 50,
    eval_every: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    save_every: int | None = None,
  ) -> FitResult:
    """Trains as a stage: `jaxlab.training.fit` that goes on from its newest checkpoint.

    Args:
      name: the stage, for example f"teacher/seed{seed}"; words between slashes, once a run.
      state: the state to begin with if there is no checkpoint.
      update: as for `fit`.
      batches: as for `fit`; an iterator with `get_state` and `set_state` goes on at its next batch,
        any other one starts anew after a kill and so must not care.
      num_steps: total number of updates.
      steps_per_call: as for `fit`.
      log_every: as for `fit`.
      eval_every: as for `fit`.
      evaluate: as for `fit`.
      save_every: steps between checkpoints; None saves about ten times. Multiples of `log_every`
        make the history of a run that was killed that of an unbroken one. (SIGTERM saves at once:
        the row after it averages fewer steps.)

    Returns:
      The final state, and every logged row from the first step on, whichever process logged it.

    Raises:
      ValueError: if the name is taken or no name, or its checkpoint belongs to another state.
      NonFiniteLossError: if training breaks down.
      Interrupted: on SIGTERM or SIGINT, with everything saved.
    """
    self._take("fit", name)
    rows = _StageRows(self.workdir / "metrics.jsonl", name)
    writers = [rows, *(make(name) for make in self.writers)]
    with Checkpointer(self.workdir / "checkpoints" / name) as checkpointer:
      state = resume(checkpointer, state, batches, writers=writers)
      step = int(state.step)
      if step > num_steps:
        raise ValueError(f"stage {name!r} is at step {step} already, past num_steps={num_steps}.")
      before = [row for row in rows.read() if row["step"] <= step]
      if step == num_steps:
        return FitResult(state, before)
      if jax.process_index() == 0:
        print(f"{name}: {num_steps} steps" + (f", from step {step} on" if step else ""), flush=True)
      writers.append(ConsoleWriter(num_steps))
      try:
        result = fit(
          state,
          update,
          batches,
          num_steps=num_steps,
          steps_per_call=steps_per_call,
          log_every=log_every,
          eval_every=eval_every,
          evaluate=evaluate,
          save_every=save_every or -(-num_steps // (10 * log_every)) * log_every,
          checkpointer=checkpointer,
          writers=writers,
        )
      finally:
        for writer in writers:
          writer.close()
    return FitResult(result.state, before + result.history)

  def cached(self, name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Computes `fn(*args, **kwargs)` once in the life of the run.

    Times that `fn` measures are therefore measured once as well.

    Args:
      name: the stage; words between slashes, once a run.
      fn: gives nested dicts, lists and tuples of arrays, numbers and text.
      *args: its arguments.
      **kwargs: its keyword arguments.

    Returns:
      What `fn` gave, its arrays as NumPy arrays, whether it was computed now or earlier.

    Raises:
      ValueError: if the name is taken or no name.
      TypeError: if `fn` gives what cannot be stored; the message says where.
    """
    self._take("cached", name)
    path = self.workdir / "stages" / f"{name}.npz"
    if agreed(path.exists()):
      return load_tree(path)
    started = time.monotonic()
    buffer = io.BytesIO()
    save_tree(buffer, fn(*args, **kwargs))
    if jax.process_index() == 0:
      write_atomic(path, lambda file: file.write(buffer.getbuffer()))
      print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    buffer.seek(0)
    return load_tree(buffer)

  def _take(self, kind: str, name: str) -> None:
    """Two stages of one name, or one inside the other, would read each other's files."""
    if not _NAME.fullmatch(name):
      raise ValueError(f"name must be words between slashes, got {name!r}.")
    for taken_kind, taken in self._taken:
      nested = f"{taken}/".startswith(f"{name}/") or f"{name}/".startswith(f"{taken}/")
      if taken_kind == kind and nested:
        raise ValueError(f"stage name {name!r} clashes with {taken!r}, which this run has used.")
    self._taken.add((kind, name))


def agreed(value: bool) -> bool:
  """What process 0 says, in every process: files may show up at different times on each host."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class _StageRows:
  """The rows of one stage in the run's `metrics.jsonl`."""

  def __init__(self, path: pathlib.Path, stage: str):
    self._path, self._stage = path, stage

  def read(self) -> list[dict[str, Any]]:
    """The stage's rows, as `fit` logged them."""
    rows = [row for row in self._all() if row["stage"] == self._stage]
    return [{name: value for name, value in row.items() if name != "stage"} for row in rows]

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row and hands it to the operating system, so that a kill does not lose it."""
    with open(self._path, "a", encoding="utf-8") as file:
      file.write(_line({"stage": self._stage, "step": step, **metrics}))

  def truncate(self, step: int) -> None:
    """Drops this stage's rows past `step`, and a line that a kill left half-written."""
    rows = [row for row in self._all() if row["stage"] != self._stage or row["step"] <= step]
    text = "".join(map(_line, rows)).encode()
    write_atomic(self._path, lambda file: file.write(text))

  def close(self) -> None:
    """Nothing stays open."""

  def _all(self) -> list[dict[str, Any]]:
    return read_jsonl(self._path) if os.path.exists(self._path) else []


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(row) + "\n"
