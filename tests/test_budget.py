"""The budget of compiled programs, on a small suite of its own."""

import ast
import os
import pathlib
import subprocess
import sys
import textwrap
import tomllib
import xml.etree.ElementTree as ElementTree

import pytest

from tests import budget

ROOT = pathlib.Path(__file__).parent.parent

SUITE = """
import itertools, jax, numpy as np, pytest

SHAPES = itertools.count()

def compile_programs(count):
  for _ in range(count):
    jax.jit(lambda x: x + 1).lower(np.zeros(next(SHAPES))).compile()

@pytest.mark.parametrize("count", [8, 9, 11, 12])
def test_plain(count):
  compile_programs(count)

@pytest.mark.smoke
@pytest.mark.parametrize("count", [9, 61])
def test_smoke(count):
  compile_programs(count)
"""


@pytest.fixture
def suite(tmp_path):
  """Runs pytest with the budget on a folder whose tests compile as many programs as they say."""
  tests = tmp_path / "tests"
  tests.mkdir()
  (tests / "test_suite.py").write_text(SUITE)
  (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  smoke\n  shipping\n")

  def run(exceptions, *arguments, compiler=""):
    (tests / "budget.toml").write_text(textwrap.dedent(exceptions))
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-p", "tests.budget", "--junitxml=report.xml", *arguments],
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAXLAB_XLA": compiler},
      capture_output=True,
      text=True,
    )
    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    return done, {case.get("name"): case for case in cases}, (tests / "budget.toml").read_text()

  return run


def failures(cases):
  return {
    name: case.find("failure").get("message") for name, case in cases.items() if len(case) > 1
  }


EXCEPTIONS = """
  "test_suite.py::test_plain[11]" = 11
  "test_suite.py::test_plain[12]" = 14
  "test_suite.py::test_plain[8]" = 9
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_too_many_programs_fail_and_so_do_fewer_than_an_exception_says(suite, workers):
  done, cases, _ = suite(EXCEPTIONS, *workers)
  assert done.returncode == 1
  lower = "of tests/budget.toml: lower it by `python -m pytest --write-budget tests/test_suite.py`"
  expected = {
    "test_plain[8]": f"compiles 8 programs, fewer than the 9 {lower}",
    "test_plain[9]": "compiles 9 programs, 8 are allowed",
    "test_plain[12]": f"compiles 12 programs, fewer than the 14 {lower}",
    "test_smoke[61]": "compiles 61 programs, 60 are allowed",
  }
  assert {name: text.removeprefix("Failed: ") for name, text in failures(cases).items()} == expected
  for name, case in cases.items():
    values = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert name.endswith(f"[{values['programs']}]") and float(values["cpu_seconds"]) > 0


def test_exceptions_are_lowered_and_never_raised_or_added(suite):
  done, cases, written = suite(EXCEPTIONS, "--write-budget")
  assert failures(cases).keys() == {"test_plain[9]", "test_smoke[61]"}
  assert tomllib.loads(written) == {
    "test_suite.py::test_plain[11]": 11,
    "test_suite.py::test_plain[12]": 12,
  }
  done, *_ = suite(EXCEPTIONS, "--write-budget", "-n2")
  assert done.returncode == 4 and "--write-budget needs one process" in done.stderr


@pytest.mark.parametrize("selection", [("-m", "not smoke"), ("tests/test_suite.py::test_plain",)])
def test_a_part_of_a_file_is_not_checked(suite, selection):
  done, cases, _ = suite("", *selection)
  assert done.returncode == 0 and "test_plain[9]" in cases


def test_the_shipping_compiler_is_not_checked(suite):
  done, cases, _ = suite("", compiler="shipping")
  assert done.returncode == 0 and len(cases) == 6


def test_a_test_that_hangs_fails_once_and_the_rest_of_its_file_runs(tmp_path):
  (tmp_path / "test_hangs.py").write_text("""
import ctypes, pytest

@pytest.mark.timeout(1)
def test_hangs():
  ctypes.CDLL(None).sleep(100)  # As in a compiled program, no signal reaches Python.

def test_after():
  pass
""")
  (tmp_path / "tests").mkdir()
  (tmp_path / "tests" / "budget.toml").touch()
  (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout_method = thread\n")
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "tests.budget", "-n1"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert "1 failed, 1 passed" in done.stdout
  assert "crashed while running 'test_hangs.py::test_hangs'" in done.stdout


def test_a_unit_is_a_file_or_one_program():
  assert budget.unit("tests/losses/test_bar.py::test_x[a-b]") == "tests/losses/test_bar.py"
  assert budget.unit("tests/test_colabs.py::test_x[pfn]") == "tests/test_colabs.py[pfn]"
  assert budget.unit("tests/test_colabs.py::test_x") == "tests/test_colabs.py"


def test_exceptions_are_of_tests_that_exist():
  exceptions = tomllib.loads((ROOT / "tests" / "budget.toml").read_text())
  functions = {}
  for name in exceptions:
    file, _, test = name.partition("::")
    if file not in functions:
      tree = ast.parse((ROOT / "tests" / file).read_text())
      functions[file] = {x.name for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)}
    assert test.partition("[")[0] in functions[file], name


def test_a_test_of_the_shipping_compiler_says_how_to_run_it(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "tests/samplers/test_top_k.py", "-m", "shipping"],
    cwd=ROOT,
    env={**os.environ, "JAXLAB_XLA": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and "needs XLA as it ships: make test-shipping" in done.stdout
