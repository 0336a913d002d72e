"""The page of what the tests cost."""

from docs import durations


def _case(file, name, programs, seconds):
  return f"""<testcase classname="tests.{file}" name="{name}"><properties>
    <property name="programs" value="{programs}"/><property name="cpu_seconds" value="{seconds}"/>
  </properties></testcase>"""


def _report(*cases):
  return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def test_costs_are_summed_by_room_and_the_dearest_tests_come_first():
  quick, slow = (
    _case("losses.test_bar", "test_quick", 3, 0.5),
    _case("losses.test_bar", "test_slow[1-a]", 1200, 12.0),
  )
  other = _case("test_readme", "test_links", 0, 2.5)
  page = durations.page([_report(quick, slow), _report(other)], num_papers=3)
  assert "3 tests of 3 papers: 15 CPU seconds; 1,203 programs" in page
  assert "95 take 4 minutes on 2 cores" in page  # 15 s / 3 papers, on two cores
  assert [line for line in page.splitlines() if line.startswith("| `")] == [
    "| `losses` | 2 | 1,203 | 12 |",
    "| `test_readme.py` | 1 | 0 | 2 |",
    "| `losses/test_bar.py::test_slow[1-a]` | 1,200 | 12.0 |",
    "| `test_readme.py::test_links` | 0 | 2.5 |",
    "| `losses/test_bar.py::test_quick` | 3 | 0.5 |",
  ]
