"""The benchmarks' own arithmetic; what they time is measured by `make bench`, not here."""

import ast
import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as command
from benchmarks import measure, roofline, scores
from benchmarks.measure import Row, Timed
from benchmarks.peers.curves import log_density
from jaxlab import data, uncertainty

ROOT = pathlib.Path(__file__).parent.parent
TIMES = {"ours": np.array([1.0, 2.0, 4.0]), "peer": np.array([3.0, 3.0, 6.0])}


@pytest.fixture
def clock(monkeypatch):
  """A clock that only advances when a function says so."""
  now = [0.0]
  monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

  def advance(seconds):
    now[0] += seconds

  return advance


def test_turns_rotate_after_a_warm_up(clock):
  calls = []

  def function(name, seconds):
    def call():
      calls.append(name)
      clock(seconds)

    return call

  functions = {n: function(n, s) for n, s in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
  times = measure.interleave(functions, quick=False, repetitions=3, min_seconds=0.0)
  assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
  assert {name: list(values) for name, values in times.items()} == {
    "a": [1.0] * 3,
    "b": [2.0] * 3,
    "c": [4.0] * 3,
  }


def test_short_functions_fill_their_turn_and_units_divide(clock):
  calls = [0]

  def call():
    calls[0] += 1
    clock(0.5)

  times = measure.interleave(
    {"a": Timed(call, units=10)}, quick=False, repetitions=2, min_seconds=2.0
  )
  assert calls[0] == 2 + 2 * 4  # Compilation, an estimate, then four calls per turn.
  np.testing.assert_allclose(times["a"], 0.05)


def test_quick_calls_thrice_and_waits_for_arrays():
  calls = [0]

  def call():
    calls[0] += 1
    return jax.numpy.ones(3)

  times = measure.interleave({"a": call}, quick=True)
  assert calls[0] == 3
  assert times["a"].shape == (2,)
  assert (times["a"] > 0).all()


def test_a_ratio_is_the_median_over_turns():
  stored = measure.result(Row("g", "ours", "peer", goal=1.4), TIMES)
  # 3, 1.5 and 1.5, turn by turn.
  assert stored["ratio"] == {"median": 1.5, "min": 1.5, "q25": 1.5, "q75": 2.25}
  assert stored["seconds"]["ours"] == {"median": 2.0, "min": 1.0, "q25": 1.5, "q75": 3.0}
  assert stored["met"] and stored["verdict"] == "met"
  cost = measure.result(Row("g", "ours", "peer", kind="cost"), TIMES)
  np.testing.assert_allclose(cost["ratio"]["median"], 2 / 3)
  assert cost["met"] is None and cost["verdict"] == ""


@pytest.mark.parametrize(
  ("row", "checks", "met", "verdict"),
  [
    (Row("g", "ours", "peer", goal=2.0), {}, False, "missed by 25.0%"),
    (Row("g", "ours", "peer", goal=1.5, stretch=2.0), {}, True, "met, 2.0x missed by 25.0%"),
    (Row("g", "ours", "peer", goal=1.2, stretch=1.5), {}, True, "met, 1.500x too"),
    (Row("g", "peer", "ours", kind="cost", goal=1.2), {}, False, "missed by 25.0%"),
    (Row("g", "peer", "ours", kind="cost", goal=1.5), {"same": True}, True, "met"),
    (
      Row("g", "ours", "peer", goal=1.0),
      {"same": True, "as likely": False},
      False,
      "missed, check failed: as likely, the ratio alone: met",
    ),
    (Row("g", "ours", "peer"), {"as likely": False}, None, "check failed: as likely"),
  ],
)
def test_verdicts_say_by_how_much(row, checks, met, verdict):
  stored = measure.result(row, TIMES, checks=checks)
  assert stored["met"] is met
  assert stored["verdict"] == verdict


def test_likelihood_check_needs_enough_problems():
  row = Row("g", "ours", "peer")
  peer = np.arange(20.0)
  noise = np.where(np.arange(20) % 2, 1.0, -1.0)

  def holds(ours):
    (check,) = scores.compare_scores(row, {"ours": ours, "peer": peer})["checks"].values()
    return check

  assert holds(peer)
  assert holds(peer + 1.0 + noise)
  assert not holds(peer - 2 * scores.MARGIN)
  # With too few problems the check fails.
  assert not holds(peer + noise)


def test_shares_of_what_a_machine_can_do():
  roof = roofline.Roof(flops=1e10, reading=1e9)
  shares = roof.of_flops(1e9, seconds=0.2) | roof.of_reading(1e8, seconds=0.5)
  assert list(shares.values()) == pytest.approx([1.0, 0.5, 100.0, 0.2])


def test_the_least_work_copies_the_bytes_and_evaluates_as_many_exponentials():
  matrix = np.ones((8, 16), np.float32)
  work = roofline.least_work(lambda x: jax.numpy.exp(x).sum(), matrix, moved=matrix.nbytes)
  copied, exponentials = work()
  assert 2 * copied.nbytes == matrix.nbytes
  assert exponentials.shape == (matrix.size // 64,)


def test_recorded_functions_visit_every_problem():
  noted, functions = scores.record({"square": lambda x: [x**2, x**2 + 2]}, [1.0, 2.0, 3.0])
  for _ in range(4):
    functions["square"]()
  np.testing.assert_array_equal(noted["square"], [2.0, 5.0, 10.0])


@pytest.mark.parametrize("name", benchmarks.TABLES)
def test_tables_list_their_rows(name):
  module = importlib.import_module(f"benchmarks.{name}")
  assert module.__doc__ and callable(module.run)
  assert len({(row.group, row.ours, row.peer) for row in module.ROWS}) == len(module.ROWS)
  for row in module.ROWS:
    assert row.kind in ("speedup", "cost")
    assert row.ours != row.peer
    assert row.goal is None or row.goal > 0
    assert row.stretch is None or (row.stretch > row.goal) == (row.kind == "speedup")
  assert any(row.goal for row in module.ROWS)


def test_every_script_is_a_table():
  scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "ROWS" in p.read_text()}
  assert scripts - {"measure"} == set(benchmarks.TABLES)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_peers_are_imported_where_they_are_used(path):
  """The extra `bench` is needed to measure, not to import."""
  imported = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      imported |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module)
  assert not imported & {"torch", "blackjax", "cleanlab", "emcee", "benchmarks.peers.pfn"}


def test_emcee_samples_our_density():
  params = np.array(data.sample_accepted_curves(jax.random.key(0), batch_size=64, length=12).params)
  # Half of them are moved out of the support, in different ways.
  params[32:] += np.random.default_rng(0).standard_normal(params[32:].shape)
  seen = np.linspace(0.3, 0.5, 5, dtype=np.float32)
  ours = jax.jit(
    jax.vmap(lambda theta: uncertainty.learning_curve_log_density(theta, seen, length=12))
  )(params)
  peers = log_density(params.astype(np.float64), seen.astype(np.float64), 12)
  assert np.isfinite(peers[:32]).all() and np.isinf(peers[32:]).any()
  np.testing.assert_allclose(ours, peers, rtol=1e-3)


def test_the_script_stores_what_it_prints(tmp_path, monkeypatch, capsys):
  class module:
    __doc__ = "A table.\n\nMore."
    PACKAGES = ("rich",)

    @staticmethod
    def run(quick):
      assert quick
      yield measure.result(Row("g", "ours", "peer", goal=2.0), TIMES, notes={"error": 0.25})

  path = tmp_path / "results" / "imports.json"
  monkeypatch.setattr(sys, "argv", ["table", "--quick", "--output", str(path)])
  monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
  measure.main(module)
  printed = capsys.readouterr().out
  assert "goal ≥ 2.0x, g, ours / peer: 1.500x, missed by 25.0%" in printed
  assert "error 0.25" in printed
  stored = json.loads(path.read_text())
  assert stored["title"] == "A table" and stored["quick"]
  assert stored["versions"].keys() >= {"jax", "rich"}
  assert stored["machine"]["cores"] >= 1

  results = command.load_results(path.parent)
  text = command.render(results)
  assert "## A table" in text
  assert "0 of 1 goals met." in text
  row = "| g | ours: 2 s per call | peer: 3 s per call | 1.500x (1.500x to 2.2x) | ≥ 2.0x |"
  assert f"{row} missed by 25.0% |" in text
  assert "- g, ours / peer: error 0.25" in text


def test_readme_matches_the_stored_results():
  results = command.load_results()
  assert not any(stored["quick"] for stored in results.values())
  text = (ROOT / "benchmarks" / "README.md").read_text()
  assert text == command.render(results), "run `python -m benchmarks --readme`"


def test_unknown_table_raises(capsys):
  with pytest.raises(SystemExit) as stop:
    command.main(["kitchen"])
  assert stop.value.code == 2
  assert "kitchen" in capsys.readouterr().err
