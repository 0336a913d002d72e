"""Counts what every test compiles and fails those that compile too many programs.

How many programs a test compiles is the same on every machine, so it can be held to a limit; CPU
seconds are only written down. Both go into the JUnit file, of which `python -m docs.durations`
makes docs/tests.md.

A program counts when it is asked for, whether or not the cache on disk has it. Compiled programs
are forgotten at the start of every file, so that a count depends on its file alone, and not on
what the worker ran before (forgetting them at every test would cost half as much again). A part
of a file is not checked, since the first test that needs a program pays for it.
"""

import gc
import json
import os
import pathlib
import tomllib

import jax
import pytest

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_LOCK = pathlib.Path(__file__).parent.parent / "requirements.lock"
_LIMIT, _SMOKE_LIMIT = 8, 60
# Every parameter of these files is a program of its own: workers share the files out, and
# compiled programs are forgotten in between.
_PROGRAMS = ("test_colabs.py", "test_papers.py")


def unit(nodeid: str) -> str:
  """What one worker runs without a break: a file, or one parameter of a file of programs."""
  file, _, test = nodeid.partition("::")
  return file + test[test.find("[") :] if file.endswith(_PROGRAMS) and "[" in test else file


def pytest_addoption(parser):
  parser.addoption(
    "--write-budget",
    action="store_true",
    help="lower the exceptions in tests/budget.toml to what this run compiles (without -n)",
  )


def pytest_configure(config):
  if config.option.write_budget and config.getoption("numprocesses", None):
    raise pytest.UsageError("--write-budget needs one process: leave out -n")
  config.pluginmanager.register(_Budget(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  from xdist.scheduler import LoadScopeScheduling

  class Units(LoadScopeScheduling):
    def _split_scope(self, nodeid):
      return unit(nodeid)

    def remove_node(self, node):
      # A test that took its worker down has failed; xdist would run it again on every new one.
      for tests in self.assigned_work[node].values():
        for nodeid, completed in tests.items():
          if not completed:
            tests[nodeid] = True
            super().remove_node(node)
            return nodeid
      return super().remove_node(node)

  return Units(config, log)


class _Budget:
  def __init__(self, config):
    self._path = config.rootpath / "tests" / "budget.toml"
    self._exceptions = tomllib.loads(self._path.read_text())
    self._write = config.option.write_budget
    # The exceptions are counts of whole files, with the JAX of the lock.
    locked = f"\njax=={jax.__version__} " in _LOCK.read_text()
    self._checked = locked and not any("::" in argument for argument in config.args)
    self._incomplete = set()
    self._unit = None
    self._programs = 0
    jax.monitoring.register_event_duration_secs_listener(self._count)

  def _count(self, event, duration, **_):
    self._programs += event == _COMPILE_EVENT

  def pytest_collection_modifyitems(self, items):
    """Units in one piece, files of programs first, or one worker ends alone with the longest."""
    first = {}
    for index, item in enumerate(items):
      first.setdefault(unit(item.nodeid), index)
    items.sort(key=lambda item: (item.path.name not in _PROGRAMS, first[unit(item.nodeid)]))

  def pytest_deselected(self, items):
    # Without the shipping compiler, tests that need it never compile anything.
    self._incomplete |= {
      unit(item.nodeid) for item in items if not item.get_closest_marker("shipping")
    }

  def pytest_runtest_logreport(self, report):
    if report.failed and report.when == "setup":
      self._incomplete.add(unit(report.nodeid))

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item):
    if self._unit != unit(item.nodeid):
      self._unit = unit(item.nodeid)
      jax.clear_caches()
      gc.collect()
    self._programs, self._cpu = 0, sum(os.times()[:4])
    return (yield)

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_call(self, item):
    try:
      result = yield
    except BaseException:
      self._incomplete.add(self._unit)
      raise
    finally:
      item.user_properties.append(("programs", self._programs))
    if self._checked and self._unit not in self._incomplete and not _shipping():
      self._check(item)
    return result

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_teardown(self, item):
    try:
      return (yield)
    finally:
      item.user_properties.append(("cpu_seconds", round(sum(os.times()[:4]) - self._cpu, 2)))

  def _check(self, item):
    # tests/compat runs in an environment of its own, beside eager peers; tests/contracts runs a
    # function operation by operation where its traces are not enough.
    if item.get_closest_marker("example") or {"compat", "contracts"} & {*item.path.parts}:
      return
    name = item.nodeid.removeprefix("tests/")
    limit = _SMOKE_LIMIT if item.get_closest_marker("smoke") else _LIMIT
    allowed = self._exceptions.get(name, limit)
    if self._programs > allowed:
      pytest.fail(f"compiles {self._programs} programs, {allowed} are allowed", pytrace=False)
    if name not in self._exceptions or self._programs == allowed > limit:
      return
    if not self._write:
      pytest.fail(
        f"compiles {self._programs} programs, fewer than the {allowed} of tests/budget.toml:"
        f" lower it by `python -m pytest --write-budget {self._unit}`",
        pytrace=False,
      )
    self._exceptions[name] = self._programs
    if self._programs <= limit:
      del self._exceptions[name]

  def pytest_sessionfinish(self):
    if self._write:
      lines = [
        f"{json.dumps(name)} = {self._exceptions[name]}" for name in sorted(self._exceptions)
      ]
      self._path.write_text("\n".join(lines) + "\n")


def _shipping() -> bool:
  return os.environ.get("JAXLAB_XLA") == "shipping"
