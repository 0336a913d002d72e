"""Timing: functions interleaved in one process, with one ratio per repetition."""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.table

from jaxlab import training

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "benchmarks"
_QUIET = 0.05
_VERSIONS = ("jaxlab", "jax", "jaxlib", "flax", "optax", "numpy")


class Row(NamedTuple):
  """A line of a table: the two timings that are compared, and the goal.

  Attributes:
    group: what is measured; rows of a group are timed together.
    ours: name of the timing that is evaluated.
    peer: name of the timing that it is compared with.
    kind: "speedup" is the peer's time over ours, "cost" ours over the peer's.
    goal: the smallest speedup or the largest cost that is requested.
    stretch: a more ambitious goal.
    unit: the unit of work that a time refers to.
  """

  group: str
  ours: str
  peer: str
  kind: str = "speedup"
  goal: float | None = None
  stretch: float | None = None
  unit: str = "call"


class Timed(NamedTuple):
  """A function that does `units` units of work per call; its times are reported per unit."""

  call: Callable[[], Any]
  units: int = 1


def start(*, divides: int) -> jax.sharding.Mesh:
  """Makes one host device per core, as the experiment binary does, and a mesh of them.

  Args:
    divides: rows of the batch; there are fewer devices than cores if the cores do not divide it.

  Returns:
    A mesh with the axis `data`.
  """
  devices = max(n for n in range(1, num_cores() + 1) if divides % n == 0)
  # With fewer threads LAPACK calls wait for each other for ever; the experiment binary has as many.
  os.environ["NPROC"] = str(max(16, 2 * num_cores(), int(os.environ.get("NPROC", 0))))
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  return training.make_mesh({"data": devices})


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def interleave(
  functions: Mapping[str, Callable[[], Any] | Timed],
  *,
  quick: bool,
  repetitions: int = 15,
  min_seconds: float = 0.25,
) -> dict[str, np.ndarray]:
  """Times functions in turns, so that a slow machine affects all of them alike.

  Every function is called twice first (compilation, then an estimate), and the order rotates from
  one repetition to the next.

  Args:
    functions: name -> function; JAX arrays that it returns are waited for.
    quick: whether to do two repetitions of one call each only, to check that all runs.
    repetitions: number of turns.
    min_seconds: short functions are called repeatedly in a turn, for at least this long.

  Returns:
    name -> seconds per unit of work, one mean per turn, `[repetitions]`.
  """
  timed = {n: f if isinstance(f, Timed) else Timed(f) for n, f in functions.items()}
  if quick:
    repetitions, min_seconds = min(repetitions, 2), 0.0
  calls = {}
  for name, function in timed.items():
    _seconds(function.call, 1)
    calls[name] = 1
    if min_seconds:
      calls[name] = math.ceil(min_seconds / _seconds(function.call, 1))
  names = list(timed)
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for i in range(repetitions):
    for name in names[i % len(names) :] + names[: i % len(names)]:
      function = timed[name]
      seconds[name].append(_seconds(function.call, calls[name]) / function.units)
  return {name: np.array(values) for name, values in seconds.items()}


def _seconds(call: Callable[[], Any], times: int) -> float:
  """Mean seconds of some calls in a row."""
  begin = time.perf_counter()
  for _ in range(times):
    jax.block_until_ready(call())
  return (time.perf_counter() - begin) / times


def result(
  row: Row,
  times: Mapping[str, np.ndarray],
  *,
  checks: Mapping[str, bool] | None = None,
  notes: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Compares two timings.

  Args:
    row: the timings and their goal.
    times: what `interleave` returned.
    checks: sentence -> whether it holds; a goal is met only if all do.
    notes: name -> number to be reported with the row.

  Returns:
    The stored form of the row: plain numbers and text.
  """
  ours, peer = times[row.ours], times[row.peer]
  ratio = peer / ours if row.kind == "speedup" else ours / peer
  failed = [text for text, holds in (checks or {}).items() if not holds]
  median = float(np.median(ratio))
  return {
    **row._asdict(),
    "seconds": {"ours": _summary(ours), "peer": _summary(peer)},
    "ratio": _summary(ratio),
    "repetitions": len(ratio),
    "checks": {text: bool(holds) for text, holds in (checks or {}).items()},
    "notes": {name: float(value) for name, value in (notes or {}).items()},
    "met": None if row.goal is None else not failed and _short(row, median, row.goal) <= 0,
    "verdict": _verdict(row, median, failed),
  }


def _summary(values: np.ndarray) -> dict[str, float]:
  low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
  return {"median": median, "min": float(values.min()), "q25": low, "q75": high}


def _short(row: Row, ratio: float, goal: float) -> float:
  """The share by which a ratio misses a goal; at most 0 if it does not."""
  return 1 - ratio / goal if row.kind == "speedup" else ratio / goal - 1


def _verdict(row: Row, ratio: float, failed: list[str]) -> str:
  if row.goal is None:
    return "; ".join(f"check failed: {text}" for text in failed)
  short = _short(row, ratio, row.goal)
  parts = ["met" if short <= 0 else f"missed by {short:.1%}"]
  if short <= 0 and row.stretch is not None:
    further = _short(row, ratio, row.stretch)
    text = number(row.stretch)
    parts.append(f"{text} too" if further <= 0 else f"{text} missed by {further:.1%}")
  if failed:
    parts = [f"missed, check failed: {'; '.join(failed)}", f"the ratio alone: {parts[0]}"]
  return ", ".join(parts)


def number(ratio: float) -> str:
  """A ratio as text."""
  digits = 3 if ratio < 2 else 1 if ratio < 100 else 0
  return f"{ratio:,.{digits}f}x"


def cells(stored: Mapping[str, Any]) -> tuple[str, ...]:
  """A stored row as text: group, ours, peer, ratio, goal, verdict."""
  ratio, goal, unit = stored["ratio"], stored["goal"], stored["unit"]
  sign = "≥" if stored["kind"] == "speedup" else "≤"
  times = (
    f"{stored[who]}: {_duration(stored['seconds'][who]['median'])} per {unit}"
    for who in ("ours", "peer")
  )
  return (
    stored["group"],
    *times,
    f"{number(ratio['median'])} ({number(ratio['q25'])} to {number(ratio['q75'])})",
    "" if goal is None else f"{sign} {number(goal)}",
    stored["verdict"],
  )


def notes(stored: Mapping[str, Any]) -> str:
  """The notes of a stored row, as text."""
  texts = (f"{name} {value:.4g}" for name, value in stored["notes"].items())
  return f"{stored['group']}, {stored['ours']} / {stored['peer']}: {', '.join(texts)}"


def _duration(seconds: float) -> str:
  sizes = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
  unit = next((unit for unit, size in sizes.items() if seconds >= size), "ns")
  return f"{seconds / sizes.get(unit, 1e-9):.3g} {unit}"


HEADINGS = ("", "ours", "peer", "ratio (quartiles)", "goal", "verdict")


def main(module: ModuleType) -> None:
  """Runs a table's script: measures, prints, and stores the results if a path is given.

  Args:
    module: the script, with `ROWS`, `PACKAGES` and `run(quick)`, an iterator over stored rows.
  """
  parser = argparse.ArgumentParser(description=module.__doc__.partition("\n")[0])
  parser.add_argument(
    "--quick", action="store_true", help="tiny sizes and few repetitions, for tests"
  )
  parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
  arguments = parser.parse_args()
  machine, begin = describe_machine(), time.monotonic()
  if machine["busy_before"] > _QUIET:
    print(f"{machine['busy_before']:.0%} of the cores are already busy: ratios will be unreliable")
  stored = {
    "title": module.__doc__.partition("\n")[0].rstrip("."),
    "quick": arguments.quick,
    "date": datetime.date.today().isoformat(),
    "machine": machine,
    "versions": {name: importlib.metadata.version(name) for name in _VERSIONS + module.PACKAGES},
    "rows": list(_shown(module.run(arguments.quick))),
  }
  stored["wall_seconds"] = round(time.monotonic() - begin, 1)
  _print(stored)
  if arguments.output:
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(stored, indent=2, ensure_ascii=False) + "\n")


def _shown(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields rows and prints each when it is ready: some take minutes."""
  for row in rows:
    print(f"{row['group']}: {row['ours']} / {row['peer']}: {cells(row)[3]}", flush=True)
    yield row


def _print(stored: Mapping[str, Any]) -> None:
  table = rich.table.Table(title=stored["title"], box=rich.box.SIMPLE_HEAD)
  for heading in HEADINGS:
    table.add_column(heading)
  for row in stored["rows"]:
    table.add_row(*cells(row))
  rich.console.Console(markup=False, highlight=False, width=160).print(table)
  for row in stored["rows"]:
    if row["notes"]:
      print(notes(row))
  for row in stored["rows"]:
    if row["met"] is not None:
      print(
        f"goal {cells(row)[4]}, {row['group']}, {row['ours']} / {row['peer']}: "
        f"{number(row['ratio']['median'])}, {row['verdict']}"
      )


def describe_machine() -> dict[str, Any]:
  """The machine and versions that the results depend on."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return {
    "processor": _processor(),
    "cores": num_cores(),
    "memory_gib": round(memory / 2**30),
    "system": platform.platform(),
    "python": platform.python_version(),
    "busy_before": round(_busy(), 2),
  }


def _busy(seconds: float = 1.0) -> float:
  """Share of the cores' time that others use; the load average would count the last script too."""
  path = pathlib.Path("/proc/stat")
  if not path.exists():
    return math.nan

  def times():
    user, nice, system, idle, waiting, *rest = map(
      int, path.read_text().split("\n")[0].split()[1:8]
    )
    return np.array([user + nice + system + sum(rest), idle + waiting])

  before = times()
  time.sleep(seconds)
  busy, idle = times() - before
  return float(busy / max(busy + idle, 1))


def _processor() -> str:
  lines = pathlib.Path("/proc/cpuinfo")
  if lines.exists():
    for line in lines.read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()
