"""Makes docs/tests.md from the last `make test`: `python -m docs.durations`."""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

PAGE = pathlib.Path(__file__).parent / "tests.md"
REPORT = pathlib.Path(__file__).parent.parent / ".cache" / "tests.xml"
_SHOWN = 25


def page(report: str) -> str:
  """The page: how long the whole run took, and its slowest tests.

  Args:
    report: the run's JUnit XML. A test's time counts its fixtures, and the first test that needs
      a shared one pays for it.

  Returns:
    The page in Markdown.
  """
  suite = ElementTree.fromstring(report).find("testsuite")
  seconds = {
    f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}": float(case.get("time"))
    for case in suite.iter("testcase")
  }
  slowest = sorted(seconds, key=seconds.get, reverse=True)[:_SHOWN]
  lines = [
    "# What the tests cost",
    "",
    "Made from the report of a run by `python -m docs.durations`.",
    "",
    f"`make test`: {len(seconds):,} tests in {float(suite.get('time')) / 60:.1f} minutes on two"
    " cores, set-up aside. The budget, with every paper in, is 30 minutes. The slowest:",
    "",
    "| test | seconds |",
    "|---|---|",
    *(f"| `{name.removeprefix('tests/')}` | {seconds[name]:.1f} |" for name in slowest),
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  if not REPORT.exists():
    sys.exit(f"{REPORT} is not there: run `make test` first.")
  PAGE.write_text(page(REPORT.read_text()))
