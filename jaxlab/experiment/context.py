"""What the experiment binary hands to an experiment: where to write, and stages that survive."""

import dataclasses
import io
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

from jaxlab.experiment.processes import agreed
from jaxlab.experiment.wall import Stopped
from jaxlab.experiment.workdir import (
  DamagedFileError,
  load_tree,
  names_damage,
  names_file,
  save_tree,
  write_atomic,
)
from jaxlab.training.checkpoint import Checkpointer
from jaxlab.training.loop import FitResult, fit, resume
from jaxlab.training.mesh import make_mesh
from jaxlab.training.seeds import over_seeds
from jaxlab.training.signals import StopSignals
from jaxlab.training.state import TrainState
from jaxlab.training.writers import ConsoleWriter, Writer, read_jsonl

# Seconds between lines of a stage that goes on, and most between looks at a signal.
_SAY_EVERY, _LOOK_EVERY = 20, 0.1
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
    made_by: what a stored stage must have been made by to be gone on with, as JSON holds it: the
      configuration, a `jaxlab.training.fingerprint` of data. None asks for nothing.
    signals: what notes a signal to stop. Stages look at it before and after, and while a program
      runs: one that is abandoned is repeated. None looks at nothing.
  """

  workdir: pathlib.Path
  key: chex.PRNGKey
  seeds: int = 1
  first_seed: int = 0
  writers: Sequence[Callable[[str], Writer]] = ()
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=lambda: make_mesh({"data": -1}))
  made_by: Any = None
  signals: StopSignals | None = None
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
      batches: an iterator with `get_state` and `set_state`, by which a killed run goes on at its
        next batch: `jaxlab.data.SeededBatches` of a function, `jaxlab.data.batch_iterator`.
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
      TypeError: if `batches` has no state: after a kill it would begin at its first batch again.
      ValueError: if the name is taken or no name.
      MismatchError: if its checkpoint belongs to another state or was made by something else.
      DamagedFileError: if rows of the stage that were logged are no longer there.
      NonFiniteLossError: if training breaks down.
      Interrupted: on SIGTERM or SIGINT, with everything saved.
      Stopped: if the signal came before.
    """
    if not (hasattr(batches, "get_state") and hasattr(batches, "set_state")):
      raise TypeError(
        f"batches of stage {name!r} must have get_state and set_state, which "
        f"{type(batches).__name__} lacks: after a kill it would begin at its first batch again. "
        "jaxlab.data.SeededBatches makes batches of a function and a position."
      )
    self._take("fit", name)
    self._stop_if_asked()
    directory = self.workdir / "checkpoints" / name
    rows = _StageRows(self.workdir / "metrics.jsonl", name)
    writers = [rows, *(make(name) for make in self.writers)]
    with Checkpointer(directory, config=self.made_by) as checkpointer:
      state = resume(checkpointer, state, batches, writers=writers)
      step = int(state.step)
      if step > num_steps:
        raise ValueError(f"stage {name!r} is at step {step} already, past num_steps={num_steps}.")
      before = [row for row in rows.read() if row["step"] <= step]
      if step == num_steps:
        if step and (not before or before[-1]["step"] != step):
          raise DamagedFileError(f"{rows.path} lacks rows of stage {name!r}, which is finished.")
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

  def device_get(self, arrays: chex.ArrayTree) -> Any:
    """`jax.device_get`, whose wait a signal ends.

    Several processes wait to the end, since others may wait for them.

    Args:
      arrays: pytree of arrays.

    Returns:
      The same as NumPy arrays.

    Raises:
      Stopped: after a signal; the program that computes the arrays is abandoned.
    """
    self._wait_for(arrays)
    return jax.device_get(arrays)

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
      MismatchError: if what is stored was made by something else.
      TypeError: if `fn` gives what cannot be stored; the message says where.
      Stopped: after a signal, with the result stored.
    """
    self._take("cached", name)
    started = time.monotonic()
    result, computed = self._stored(name, fn, *args, **kwargs)
    if computed:
      self._say(f"{name}: {time.monotonic() - started:.1f} s")
    self._stop_if_asked()
    return result

  def over_seeds(
    self,
    name: str,
    run_fn: Callable[..., chex.ArrayTree],
    *,
    key: chex.PRNGKey | None = None,
    num_seeds: int | None = None,
    arguments: chex.ArrayTree = None,
  ) -> Any:
    """`jaxlab.training.over_seeds` as a stage that is cut into calls.

    A call runs as many seeds as there are devices, and what it gives is stored. A signal ends the
    run at once, with several processes between two calls: a run that is started again repeats one
    call at most.

    Args:
      name: the stage; words between slashes, once a run.
      run_fn: as for `jaxlab.training.over_seeds`.
      key: split into one per seed; None for the key of the run.
      num_seeds: number n of seeds; None for those of the run.
      arguments: pytree of arrays `[n, ...]`.

    Returns:
      The results as NumPy arrays, with a leading axis of n.

    Raises:
      ValueError: if the name is taken or no name, and as for `jaxlab.training.over_seeds`.
      MismatchError: if what is stored was made by something else.
      Stopped: after a signal, with the results up to there stored.
    """
    self._take("cached", name)
    started = said = time.monotonic()
    key, total = self.key if key is None else key, num_seeds or self.seeds
    per_call, parts, computed = self.mesh.shape["data"], [], False
    for first in range(0, total, per_call):
      # The last call has as many seeds as the others, or it would be another program.
      seeds = [seed % total for seed in range(first, first + per_call)]
      options = {"num_seeds": total, "arguments": arguments, "mesh": self.mesh, "only": seeds}
      part, new = self._stored(f"{name}/{first}", over_seeds, key, run_fn, **options)
      parts.append(part)
      computed |= new
      if new and time.monotonic() - said > _SAY_EVERY and first + per_call < total:
        said = time.monotonic()
        self._say(f"{name}: {first + per_call} of {total} seeds, {said - started:.0f} s")
      self._stop_if_asked()
    if computed:
      self._say(f"{name}: {time.monotonic() - started:.1f} s")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:total], *parts)

  def _stored(self, name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any):
    """What `fn` gives, computed now or earlier, and whether it was computed now."""
    self._stop_if_asked()
    path = self.workdir / "stages" / f"{name}.npz"
    if agreed(path.exists()):
      return load_tree(path, made_by=self.made_by), False
    result = fn(*args, **kwargs)
    self._wait_for(result)
    buffer = io.BytesIO()
    save_tree(buffer, result, made_by=self.made_by)
    if jax.process_index() == 0:
      write_atomic(path, lambda file: file.write(buffer.getbuffer()))
    buffer.seek(0)
    return load_tree(buffer), True

  @staticmethod
  def _say(text: str) -> None:
    if jax.process_index() == 0:
      print(text, flush=True)

  def _stop_if_asked(self) -> None:
    if self.signals is not None and self.signals.requested(agree=True):
      raise Stopped(self.signals.signum)

  def _wait_for(self, arrays: chex.ArrayTree) -> None:
    waiting = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    pause = 0.001
    while self.signals is not None and jax.process_count() == 1:
      waiting = [array for array in waiting if not array.is_ready()]
      if not waiting:
        return
      if self.signals.requested(agree=False):
        raise Stopped(self.signals.signum, abandons=True)
      time.sleep(pause)
      pause = min(2 * pause, _LOOK_EVERY)

  def _take(self, kind: str, name: str) -> None:
    """Two stages of one name, or one inside the other, would read each other's files."""
    if not _NAME.fullmatch(name):
      raise ValueError(f"name must be words between slashes, got {name!r}.")
    for taken_kind, taken in self._taken:
      nested = f"{taken}/".startswith(f"{name}/") or f"{name}/".startswith(f"{taken}/")
      if taken_kind == kind and nested:
        raise ValueError(f"stage name {name!r} clashes with {taken!r}, which this run has used.")
    self._taken.add((kind, name))


class _StageRows:
  """The rows of one stage in the run's `metrics.jsonl`."""

  def __init__(self, path: pathlib.Path, stage: str):
    self.path, self._stage = path, stage

  def read(self) -> list[dict[str, Any]]:
    """The stage's rows, as `fit` logged them."""
    rows = [row for row in self._all() if row["stage"] == self._stage]
    return [{name: value for name, value in row.items() if name != "stage"} for row in rows]

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row and hands it to the operating system, so that a kill does not lose it."""
    with names_file(self.path), open(self.path, "a", encoding="utf-8") as file:
      file.write(_line({"stage": self._stage, "step": step, **metrics}))

  def truncate(self, step: int) -> None:
    """Drops this stage's rows past `step`, and a line that a kill left half-written."""
    rows = [row for row in self._all() if row["stage"] != self._stage or row["step"] <= step]
    text = "".join(map(_line, rows)).encode()
    write_atomic(self.path, lambda file: file.write(text))

  def close(self) -> None:
    """Nothing stays open."""

  def _all(self) -> list[dict[str, Any]]:
    if not self.path.exists():
      return []
    with names_damage(self.path):
      rows = read_jsonl(self.path)
      if not all({"stage", "step"} <= row.keys() for row in rows):
        raise ValueError("a row has no stage or no step")
      return rows


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(row) + "\n"
