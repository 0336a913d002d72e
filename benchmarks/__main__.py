"""Measures tables, each in a process of its own: `python -m benchmarks [NAME ...] [--quick]`."""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import TABLES, measure

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
QUICK_RESULTS = HERE.parent / "runs" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs scripts one after the other, then makes README.md anew; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
  parser.add_argument(
    "--quick",
    action="store_true",
    help="tiny sizes, to see that all runs; written to runs/benchmarks, README.md stays",
  )
  parser.add_argument("--readme", action="store_true", help="only make README.md anew")
  arguments = parser.parse_args(argv)
  unknown = set(arguments.names) - set(TABLES)
  if unknown:
    parser.error(f"no table {', '.join(sorted(unknown))}; there is {', '.join(TABLES)}")
  failed = []
  for name in () if arguments.readme else arguments.names or TABLES:
    output = (QUICK_RESULTS if arguments.quick else RESULTS) / f"{name}.json"
    flags = ["--quick"] if arguments.quick else []
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output), *flags]
    if subprocess.run(command, cwd=HERE.parent).returncode:
      failed.append(name)
  if not arguments.quick:
    README.write_text(render(load_results()))
  if failed:
    print(f"failed: {', '.join(failed)}", file=sys.stderr)
  return int(bool(failed))


def load_results(directory: pathlib.Path = RESULTS) -> dict[str, dict[str, Any]]:
  """What was measured, in the order of the tables."""
  paths = {name: directory / f"{name}.json" for name in TABLES}
  return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
  """README.md: every number in it stands in a stored result."""
  rows = [row for stored in results.values() for row in stored["rows"]]
  judged = [row for row in rows if row["met"] is not None]
  lines = [
    "# Benchmarks",
    "",
    "Made by `python -m benchmarks` from `results/*.json`; no number is typed. Rivals run in one",
    "process, in turns; a ratio is the median over the turns, with its quartiles. A speedup (goal",
    "≥) is the peer's time over ours, a cost (goal ≤) ours over the peer's.",
    "",
    f"{sum(row['met'] for row in judged)} of {len(judged)} goals met."
    if judged
    else "Nothing was measured yet.",
  ]
  for name, stored in results.items():
    lines += ["", *_section(name, stored)]
  return "\n".join(lines) + "\n"


def _section(name: str, stored: Mapping[str, Any]) -> list[str]:
  machine, versions = stored["machine"], stored["versions"]
  lines = [
    f"## {stored['title']}",
    "",
    f"`python -m benchmarks {name}`, {stored['date']}, {stored['wall_seconds'] / 60:.1f} minutes.",
    f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
    f"{machine['system']}, Python {machine['python']}, {machine['busy_before']:.0%} busy before; "
    f"{', '.join(f'{package} {version}' for package, version in versions.items())}.",
    "",
    _line(measure.HEADINGS),
    _line(["---"] * len(measure.HEADINGS)),
    *(_line(measure.cells(row)) for row in stored["rows"]),
  ]
  notes = [f"- {measure.notes(row)}" for row in stored["rows"] if row["notes"]]
  return [*lines, *([""] if notes else []), *notes]


def _line(texts: Sequence[str]) -> str:
  return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
  sys.exit(main())
