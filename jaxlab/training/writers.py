"""Metric writers: where the numbers of a run go.

A writer is anything with `write(step, metrics)` and `close()`. One that keeps a record on disk may
also have `truncate(step)`, which drops what lies past `step`: a resumed run calls it, so that
repeated steps are not recorded twice. Writers of clu and runs of Weights & Biases are writers too:
an object with `write_scalars(step, metrics)` or with `log(metrics, step=step)`.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxlab._extras import import_extra


class Writer(Protocol):
  """The interface of a metric writer."""

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Records `metrics` (plain floats) under `step` (updates done so far)."""

  def close(self) -> None:
    """Flushes and releases whatever the writer holds."""


def row_writers(writers: Iterable[Any]) -> list[Callable[[int, Mapping[str, float]], None]]:
  """What each writer does with the step and the metrics of a row.

  Args:
    writers: objects with `write(step, metrics)`, as in this file; `write_scalars(step, metrics)`,
      as in `clu.metric_writers`; or `log(metrics, step=step)`, as `wandb.init` returns.

  Returns:
    One `(step, metrics) -> None` per writer.

  Raises:
    TypeError: if a writer has none of the three; names its place and type.
  """
  return [_row_writer(i, writer) for i, writer in enumerate(writers)]


def _row_writer(place: int, writer: Any) -> Callable[[int, Mapping[str, float]], None]:
  for name in ("write", "write_scalars"):
    if callable(getattr(writer, name, None)):
      return getattr(writer, name)
  if callable(getattr(writer, "log", None)):
    return lambda step, metrics: writer.log(dict(metrics), step=step)
  raise TypeError(
    f"writers[{place}] must have write(step, metrics), write_scalars(step, metrics) or "
    f"log(metrics, step=step), got {type(writer).__name__}."
  )


def write_all(writers: Iterable[Any], step: int, metrics: Mapping[str, Any]) -> None:
  """Passes one row to every writer, on process 0 only.

  Args:
    writers: as for `row_writers`, in the order in which they are called.
    step: number of updates done.
    metrics: name to scalar; arrays of one element become floats here, so writers see no device
      arrays.
  """
  if jax.process_index() != 0:
    return
  row = {name: float(value) for name, value in metrics.items()}
  for write in row_writers(writers):
    write(step, row)


class ConsoleWriter:
  """Shows progress: a bar on a terminal, else one plain line per row.

  Rate and time left come from the time since the previous row, so that compilation and evaluation
  before the first one do not count.
  """

  def __init__(self, total_steps: int):
    """Sets the bar's end.

    Args:
      total_steps: number of updates at which the run is complete, those of earlier runs included.
    """
    self._total = total_steps
    self._last = None
    self._bar = self._task = None
    if sys.stdout.isatty():
      self._bar = Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(file=sys.stdout),
        auto_refresh=False,
      )
      self._task = self._bar.add_task("steps", total=total_steps, text="")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Prints the row; a terminal's bar holds the loss, and evaluations get a separate line."""
    pace = self._pace(step)
    if self._bar is None:
      print("  ".join([f"step {step}/{self._total}", *_texts(metrics), *pace]), flush=True)
      return
    self._bar.start()
    evaluation = {name: value for name, value in metrics.items() if name.startswith("eval/")}
    if evaluation:
      line = "  ".join([f"step {step}", *_texts(evaluation)])
      self._bar.console.print(line, highlight=False)
    loss = {name: value for name, value in metrics.items() if name == "loss"}
    text = "  ".join([*_texts(loss), *pace])
    self._bar.update(self._task, completed=step, text=text, refresh=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.stop()

  def _pace(self, step: int) -> list[str]:
    now = time.perf_counter()
    last, self._last = self._last, (step, now)
    if last is None or step <= last[0]:
      return []
    rate = (step - last[0]) / max(now - last[1], 1e-9)
    left = datetime.timedelta(seconds=round(max(self._total - step, 0) / rate))
    return [f"{rate:.1f} steps/s", f"{left} left"]


class JsonlWriter:
  """Appends rows to a JSON-lines file, each `{"step": ..., name: value, ...}`, flushed at once.

  Existing rows stay until `truncate` drops those past the step of a resumed run. One file holds one
  sequence of steps: every `fit` of a program needs its own file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Makes the file's folder; the file itself is opened by the first row.

    Args:
      path: the file.
    """
    self._path = pathlib.Path(path).expanduser()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; non-finite values are written as `NaN` and `Infinity`, which Python reads."""
    if self._file is None:
      if _is_torn(self._path):
        self._rewrite(read_jsonl(self._path))
      self._file = self._path.open("a", encoding="utf-8")
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()

  def truncate(self, step: int) -> None:
    """Drops the rows past `step`, and an incomplete last line left by a kill."""
    self.close()
    if self._path.exists():
      self._rewrite([row for row in read_jsonl(self._path) if row["step"] <= step])

  def close(self) -> None:
    """Closes the file; a later row opens it again."""
    if self._file is not None:
      self._file.close()
    self._file = None

  def _rewrite(self, rows: list[dict[str, Any]]) -> None:
    # A rename is atomic: a kill in between leaves the file as it was.
    scratch = self._path.with_name(self._path.name + ".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(scratch, self._path)


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads a JSON-lines file back, without an incomplete last line left by a kill.

  Args:
    path: the file.

  Returns:
    The rows, in order.

  Raises:
    ValueError: if any other line is not JSON; names file and line.
  """
  lines = pathlib.Path(path).expanduser().read_bytes().split(b"\n")
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number == len(lines):
        break
      raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
  return rows


class TensorBoardWriter:
  """Writes scalars as TensorBoard events (needs the extra `tensorboard`)."""

  def __init__(self, directory: str | os.PathLike[str]):
    """Checks that tensorboardX is there; the event file is opened by the first row.

    Args:
      directory: the log directory of the run.

    Raises:
      ImportError: if tensorboardX is not installed; names the extra.
    """
    self._open = import_extra("tensorboardX", extra="tensorboard").SummaryWriter
    self._directory = os.path.expanduser(directory)
    self._purge_step = None
    self._events = None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes every metric as one scalar event."""
    if self._events is None:
      self._events = self._open(self._directory, purge_step=self._purge_step)
    for name, value in metrics.items():
      self._events.add_scalar(name, value, global_step=step)
    self._events.flush()

  def truncate(self, step: int) -> None:
    """Makes TensorBoard hide earlier events past `step` (event files cannot be cut)."""
    self.close()
    self._purge_step = step + 1

  def close(self) -> None:
    """Closes the event file; a later row opens another one."""
    if self._events is not None:
      self._events.close()
    self._events = None


def _texts(metrics: Mapping[str, float]) -> list[str]:
  return [f"{name} {value:.4g}" for name, value in metrics.items()]


def _is_torn(path: pathlib.Path) -> bool:
  data = path.read_bytes() if path.exists() else b""
  return bool(data) and not data.endswith(b"\n")
