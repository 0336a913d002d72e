"""Makes docs/tests.md from the last `make test-all`: `python -m docs.durations`."""

import collections
import pathlib
import sys
import tomllib
import xml.etree.ElementTree as ElementTree

_ROOT = pathlib.Path(__file__).parent.parent
PAGE = _ROOT / "docs" / "tests.md"
REPORTS = [_ROOT / ".cache" / name for name in ("tests.xml", "tests-shipping.xml")]
_SHOWN = 25
_PLANNED_PAPERS = 95
_CORES = 2


def page(reports: list[str], num_papers: int) -> str:
  """The page: what the whole run cost by room, its dearest tests, and what 95 papers will cost.

  Args:
    reports: JUnit XML of the run's sessions, whose tests carry their `programs` and `cpu_seconds`.
      A fixture that several tests share is paid for by the first.
    num_papers: number of papers that were tested.

  Returns:
    The page in Markdown.
  """
  suites = [ElementTree.fromstring(report).find("testsuite") for report in reports]
  tests, rooms = {}, collections.defaultdict(lambda: [0, 0, 0.0])
  for case in (case for suite in suites for case in suite.iter("testcase")):
    values = {one.get("name"): float(one.get("value")) for one in case.iter("property")}
    cost = int(values.get("programs", 0)), values.get("cpu_seconds", 0.0)
    path = f"{case.get('classname').replace('.', '/')}.py".removeprefix("tests/")
    tests[f"{path}::{case.get('name')}"] = cost
    room = rooms[path.split("/")[0]]
    room[:] = room[0] + 1, room[1] + cost[0], room[2] + cost[1]
  programs, seconds = (sum(values) for values in zip(*tests.values()))
  planned = seconds / num_papers * _PLANNED_PAPERS / _CORES / 60
  dearest = sorted(tests, key=lambda name: tests[name][1], reverse=True)[:_SHOWN]
  lines = [
    "# What the tests cost",
    "",
    "Made from the reports of `make test-all` by `python -m docs.durations`. Programs are those of"
    " the test's own process, CPU seconds those of its subprocesses too.",
    "",
    f"{len(tests):,} tests of {num_papers} papers: {seconds:,.0f} CPU seconds; {programs:,}"
    f" programs. If all of it grows with the papers, {_PLANNED_PAPERS} take {planned:.0f} minutes"
    f" on {_CORES} cores.",
    "",
    "| room | tests | programs | CPU seconds |",
    "|---|---|---|---|",
    *(
      f"| `{name}` | {count:,} | {compiled:,} | {cpu:,.0f} |"
      for name, (count, compiled, cpu) in sorted(rooms.items(), key=lambda room: -room[1][2])
    ),
    "",
    "The dearest tests:",
    "",
    "| test | programs | CPU seconds |",
    "|---|---|---|",
    *(f"| `{name}` | {tests[name][0]:,} | {tests[name][1]:.1f} |" for name in dearest),
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  if missing := [str(path) for path in REPORTS if not path.exists()]:
    sys.exit(f"{' and '.join(missing)} not there: run `make test-all` first.")
  papers = tomllib.loads((_ROOT / "experiments" / "papers.toml").read_text())
  PAGE.write_text(page([path.read_text() for path in REPORTS], len(papers)))
