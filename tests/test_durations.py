"""The table of slow tests."""

from docs import durations

_REPORT = """<testsuites><testsuite time="90.0">
<testcase classname="tests.losses.test_bar" name="test_quick" time="0.5"/>
<testcase classname="tests.losses.test_bar" name="test_slow[1-a]" time="12.34"/>
</testsuite></testsuites>"""


def test_the_slowest_come_first():
  page = durations.page(_REPORT)
  assert "2 tests in 1.5 minutes" in page
  rows = [line for line in page.splitlines() if line.startswith("| `")]
  assert rows == [
    "| `losses/test_bar.py::test_slow[1-a]` | 12.3 |",
    "| `losses/test_bar.py::test_quick` | 0.5 |",
  ]
