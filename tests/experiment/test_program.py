import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import matplotlib.figure
import numpy as np
import pytest

from jaxlab import experiment
from jaxlab.experiment import program, report, workdir
from tests.experiment import tiny_experiment as tiny

ROOT = pathlib.Path(__file__).parents[2]


def execute(*arguments, about=None):
  return experiment.execute(tiny, ["tiny", *map(str, arguments)], about=about)


def run(directory, *arguments, preset="smoke"):
  return execute(f"--preset={preset}", f"--workdir={directory}", *arguments)


def stored(directory):
  return json.loads((directory / "results.json").read_text())


def reproduced(directory):
  """What another command with other delays repeats."""
  return {k: v for k, v in report.reproducible(stored(directory)).items() if k != "command"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  directory = tmp_path_factory.mktemp("finished") / "run"
  assert run(directory, "--seeds=3") == 0
  return directory


def test_help_opens_with_what_it_is_about(capsys):
  about = experiment.About("A title", "What it does.", "https://a.link", {"smoke": "a second"})
  assert execute("--help", about=about) == 0
  out = capsys.readouterr().out
  assert out.splitlines()[:4] == ["A title", "https://a.link", "", "What it does."]
  for preset, cost in about.cost.items():
    assert re.search(rf"--preset={preset} +{cost}", out)
  for field in dataclasses.fields(tiny.Config):
    assert f"--{field.name}: " in out
  assert "Where the weights begin: at zero, or at one." in out
  assert "--steps: an integer [4 | 40 | 40]" in out and "--rate: a number [0.1]" in out
  for name in ("preset", "workdir", "seeds", "overwrite", "dry_run", "multihost", "mesh"):
    assert f"--{name}: " in out


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["--preset=huge"], ["--preset=huge", "smoke, laptop, paper"]),
    (["--stpes=3"], ["--stpes=3", "--steps"]),
    (["--steps=many"], ["--steps=many", "an integer"]),
    (["--steps=-1"], ["steps must not be negative, got -1"]),
    (["--seeds=0"], ["--seeds=0", "from 1 to 1000"]),
    (["--seeds=100000000000000000000"], ["from 1 to 1000"]),
    (["--nonoisy=3"], ["nonoisy=3", "does not take an argument"]),
    (["--features=7", "--steps=3"], ["features=7 does not go with 3 steps"]),
    (["--mesh=data"], ["--mesh=data", "data:-1,model:1"]),
    (["--mesh=data:2,data:2"], ["--mesh=data:2,data:2"]),
    (["--mesh=data:0"], ["--mesh=data:0"]),
    (["--mesh=model:1"], ["no axis data"]),
    (["--mesh=data:3,model:-1"], ["--mesh=data:3,model:-1", "8 devices"]),
    (["--host_devices=3"], ["--host_devices=3", "too late"]),
    (["smoke"], ["'smoke' is no flag"]),
  ],
)
def test_wrong_command_lines_exit_2_and_write_nothing(tmp_path, capsys, arguments, words):
  jax.devices()
  assert execute(f"--workdir={tmp_path / 'run'}", *arguments) == 2
  message = capsys.readouterr().err
  for word in words:
    assert word in message
  assert list(tmp_path.iterdir()) == []


def test_unwritable_workdirs_exit_2(tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  assert run(tmp_path / "file" / "run") == 2
  assert "cannot be written to: Not a directory" in capsys.readouterr().err
  assert run("/proc/run") == 2
  assert "--workdir=/proc/run cannot be written to" in capsys.readouterr().err


def test_foreign_directories_are_left_alone(tmp_path, capsys):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "checkpoints" / "theirs").write_text("mine")
  for extra in ([], ["--overwrite"]):
    assert run(tmp_path, *extra) == 2
    assert "holds checkpoints but no config.json" in capsys.readouterr().err
  assert (tmp_path / "checkpoints" / "theirs").read_text() == "mine"


# --- a run ---


def test_a_run_writes_everything(finished):
  names = {path.name for path in finished.iterdir()} - {".lock"}
  assert names == {
    "config.json",
    "metrics.jsonl",
    "stages",
    "checkpoints",
    "tensorboard",
    "extras.npz",
    "results.json",
    "figure.png",
  }
  content = stored(finished)
  assert (content["slug"], content["preset"], content["seeds"]) == ("tiny", "smoke", 3)
  assert content["config"]["steps"] == 4 and content["wall_seconds"] > 0
  assert set(content["versions"]) == {"jax", "flax", "jaxlab"}
  assert content["device"] == "cpu" and content["mesh"] == {"data": 8, "model": 1}
  sizes = {(r["method"], r["quantity"]): np.size(r["values"]) for r in content["records"]}
  assert sizes["descent", "error"] == 3 and sizes["nothing", "dimension"] == 1
  assert [claim["verdict"] for claim in content["claims"]] == ["shown", "no test"]
  assert content["claims"][0]["headline"] and not content["claims"][1]["headline"]
  assert content["command"].endswith("--preset=smoke --seeds=3")
  assert json.loads((finished / "config.json").read_text())["config"] == content["config"]
  assert (finished / "figure.png").read_bytes()[:4] == b"\x89PNG"
  rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  assert [(row["stage"], row["step"]) for row in rows] == [
    (f"line/seed{seed}", step) for seed in range(3) for step in (2, 4)
  ]
  extras = workdir.load_tree(finished / "extras.npz")
  losses = [[r["loss"] for r in rows if r["stage"] == f"line/seed{s}"] for s in range(3)]
  np.testing.assert_array_equal(extras["losses"], losses)
  events = {path.parent.name for path in (finished / "tensorboard").rglob("*tfevents*")}
  assert events == {"seed0", "seed1", "seed2"}


def test_a_finished_run_prints_what_is_stored(finished, capsys, monkeypatch):
  before = (finished / "results.json").read_bytes()
  (finished / "figure.png").unlink()  # As if killed before it was drawn.
  monkeypatch.setattr(tiny, "run", lambda config, context: pytest.fail("ran again"))
  assert run(finished, "--seeds=3") == 0
  out = capsys.readouterr().out
  assert "descent" in out and "shown: Descent comes nearer than nothing" in out
  assert (finished / "results.json").read_bytes() == before
  assert (finished / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_another_configuration_is_refused(finished, capsys):
  before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
  assert run(finished, "--seeds=3", "--rate=0.2", "--widths=1,5") == 2
  message = capsys.readouterr().err
  assert "config.rate = 0.1, this command asks for 0.2" in message and "--overwrite" in message
  assert run(finished) == 2
  assert "seeds = 3, this command asks for 1" in capsys.readouterr().err
  assert {path: path.read_bytes() for path in before} == before


STRANGERS = (
  "notes.txt",
  "stages/notes.txt",
  "stages/line/deep.txt",
  "checkpoints/2 reasons.txt",
  "checkpoints/line/seed0/notes.txt",
  "tensorboard/theirs",
)


def test_overwrite_starts_anew_and_removes_only_what_a_run_wrote(tmp_path):
  assert run(tmp_path, "--steps=2") == 0
  (tmp_path / "checkpoints/line/seed0/3.orbax-checkpoint-tmp").mkdir()  # Of a killed run.
  for name in STRANGERS:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
  assert run(tmp_path, "--overwrite") == 0
  assert stored(tmp_path)["config"]["steps"] == 4
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
  names = {path.name for path in (tmp_path / "checkpoints/line/seed0").iterdir()}
  assert names == {"2", "4", "notes.txt"}
  assert [(tmp_path / name).read_text() for name in STRANGERS] == ["mine"] * len(STRANGERS)


@pytest.mark.parametrize("content", ['{"model_type": "gpt2"}', '{"slug": "other"}', "[1]"])
def test_overwrite_needs_a_run_of_the_same_program(tmp_path, capsys, content):
  (tmp_path / "config.json").write_text(content)
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  (tmp_path / "results.json").write_text("theirs")
  assert run(tmp_path, "--overwrite") == 2
  assert "Choose another --workdir; nothing was changed" in capsys.readouterr().err
  assert (tmp_path / "config.json").read_text() == content
  assert (tmp_path / "results.json").exists() and (tmp_path / "checkpoints" / "1").exists()


def test_one_seed_decides_nothing_and_wall_seconds_are_whole_runs_only(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(tiny, "claims", lambda config, results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(tmp_path)
  assert not (tmp_path / "results.json").exists()
  assert run(tmp_path) == 0
  assert stored(tmp_path)["wall_seconds"] is None
  # One seed says nothing of the spread.
  claim = stored(tmp_path)["claims"][0]
  assert (claim["verdict"], claim["interval"]) == ("unresolved", ["-inf", "inf"])


def test_a_pilot_has_other_seeds(tmp_path):
  drawn = []
  for arguments in ([], ["--pilot"]):
    directory = tmp_path / f"run{len(drawn)}"
    assert run(directory, "--steps=2", *arguments) == 0
    drawn.append(workdir.load_tree(directory / "extras.npz")["losses"])
  assert not np.array_equal(*drawn)
  assert stored(directory)["pilot"] and "--pilot" in stored(directory)["command"]
  context = experiment.Context(tmp_path, jax.random.key(0), seeds=2, first_seed=1000)
  assert [*context.seed_numbers] == [1000, 1001]


def test_a_record_may_have_fewer_seeds_but_not_more(tmp_path, monkeypatch):
  def two_seeds():
    results = experiment.Results()
    results.add({"a": {"x": [1.0, 2.0]}})
    return results

  monkeypatch.setattr(tiny, "run", lambda *_: two_seeds())
  monkeypatch.setattr(tiny, "claims", lambda config, results: [])
  monkeypatch.setattr(tiny, "figure", lambda results: matplotlib.figure.Figure())
  with pytest.raises(ValueError, match="a, x has 2 values for 1 seeds"):
    run(tmp_path / "more")
  assert not (tmp_path / "more" / "results.json").exists()
  assert run(tmp_path / "fewer", "--seeds=3") == 0
  assert stored(tmp_path / "fewer")["records"][0]["values"] == [1.0, 2.0]


def test_two_runs_in_one_workdir(tmp_path, capsys):
  with workdir.lock(tmp_path):
    assert run(tmp_path) == 2
    message = capsys.readouterr().err
    assert f"in use by another run (process {os.getpid()})" in message
  assert {path.name for path in tmp_path.iterdir()} == {".lock"}
  with workdir.lock(tmp_path):
    pass


def test_a_loss_that_is_not_finite_exits_1(tmp_path, capsys):
  assert run(tmp_path, "--break_at=3") == 1
  assert "loss is nan at step 3" in capsys.readouterr().err
  assert not (tmp_path / "results.json").exists()


def test_sigint_in_training_exits_130_and_the_command_goes_on(finished, tmp_path, capsys):
  arguments = ["--seeds=3", "--signal_at=1", f"--workdir={tmp_path}", "--preset=smoke"]
  assert execute(*arguments, "--overwrite") == 130
  message = capsys.readouterr().err
  assert "stopped by SIGINT after step 2" in message
  command = message.splitlines()[-1].split()
  assert command[:2] == ["python", "-m"] or command[0] == "python"
  assert command[-4:] == arguments  # Without --overwrite.
  # Each seed's second batch sends the signal, and a checkpoint lies behind it.
  assert [execute(*arguments) for _ in range(3)] == [130, 130, 0]
  ours, whole = reproduced(tmp_path), reproduced(finished)
  assert ours["config"].pop("signal_at") == 1 and whole["config"].pop("signal_at") is None
  assert ours == whole


def test_sigterm_outside_of_training_lets_the_stage_end_and_exits_143(
  tmp_path, capsys, monkeypatch
):
  done = []

  def stop(config, context):
    def stage():
      signal.raise_signal(signal.SIGTERM)
      done.append("the rest of the stage")
      return 1

    context.cached("first", stage)
    context.cached("second", pytest.fail)

  monkeypatch.setattr(tiny, "run", stop)
  handler = signal.getsignal(signal.SIGTERM)
  assert run(tmp_path) == 143
  errors = capsys.readouterr().err
  assert (
    "SIGTERM: stopping where nothing is lost" in errors
    and "stopped by SIGTERM; to go on:" in errors
  )
  assert done and (tmp_path / "stages/first.npz").exists()
  assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_signal_stops_at_once(tmp_path, capsys, monkeypatch):
  def stop(config, context):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    pytest.fail("went on")

  monkeypatch.setattr(tiny, "run", stop)
  inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    assert run(tmp_path) == 130
  finally:
    signal.signal(signal.SIGINT, inherited)
  assert "stopped by SIGINT; to go on:" in capsys.readouterr().err


@pytest.mark.parametrize(
  "name, status", [("results.json", 1), ("extras.npz", 1), ("config.json", 1)]
)
def test_damaged_files_are_named(finished, tmp_path, capsys, name, status):
  directory = shutil.copytree(finished, tmp_path / "run")
  for content in (b"", (directory / name).read_bytes()[:-40]):
    (directory / name).write_bytes(content)
    capsys.readouterr()
    assert run(directory, "--seeds=3") == status
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {directory / name} is damaged") and errors.count("\n") == 1


# The storage library leaves an unfinished coroutine behind where a file is damaged.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:skipping")
@pytest.mark.parametrize("lost", ["metrics.jsonl", "checkpoints"])
def test_what_is_lost_is_named(finished, tmp_path, capsys, lost):
  directory = shutil.copytree(finished, tmp_path / "run")
  (directory / "results.json").unlink()
  (directory / "metrics.jsonl").unlink()
  if lost == "checkpoints":
    for path in (directory / "checkpoints/line/seed0").rglob("*"):
      if path.is_file():
        path.write_bytes(b"")
  assert run(directory, "--seeds=3") == 1
  errors = capsys.readouterr().err
  assert (
    errors.startswith("error: ") and errors.count("\n") == 1 and f"{directory / lost}" in errors
  )


@pytest.mark.parametrize(("limit", "name"), [(100, "config.json"), (5000, "figure.png")])
def test_a_full_disk_is_named(tmp_path, capsys, monkeypatch, limit, name):
  monkeypatch.setattr(program, "_writers", lambda directory: ())
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    assert run(tmp_path / "run") == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  errors = capsys.readouterr().err
  assert errors.startswith("error: ") and errors.count("\n") == 1
  assert str(tmp_path / "run" / name) in errors
  assert run(tmp_path / "run") == 0


def test_without_tensorboard_a_note(tmp_path, capsys, monkeypatch):
  find = program.importlib.util.find_spec
  without = lambda name, *rest: None if name == "tensorboardX" else find(name, *rest)  # noqa: E731
  monkeypatch.setattr(program.importlib.util, "find_spec", without)
  assert run(tmp_path) == 0
  assert capsys.readouterr().out.count("tensorboardX is not installed") == 1
  assert not (tmp_path / "tensorboard").exists()


# Factorizations that no data order: with few threads they wait for each other for ever.
LAPACK = """
from jaxlab.experiment import arguments
from tests.experiment import tiny_experiment as tiny
values = arguments.define_flags(tiny)
values(["tiny"])
arguments.start_jax(arguments.read_arguments(tiny, values, ["tiny"]))
import jax, jax.numpy as jnp

@jax.jit
def solve(x):
  factors = [jnp.linalg.cholesky(x * scale) for scale in range(1, 7)]
  return [jax.scipy.linalg.solve_triangular(f, x[..., :1], lower=True) for f in factors]

for _ in range(30):
  jax.block_until_ready(solve(jnp.broadcast_to(jnp.eye(24), (2000, 24, 24))))
"""


@pytest.mark.processes
def test_lapack_calls_side_by_side_do_not_hang():
  environment = {k: v for k, v in os.environ.items() if k != "NPROC"} | {"PYTHONPATH": str(ROOT)}
  subprocess.run([sys.executable, "-c", LAPACK], env=environment, check=True, timeout=90)


def wait_for(condition, process, seconds=90):
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None and time.monotonic() < end, process.communicate()
    time.sleep(0.02)


@pytest.mark.processes
def test_killed_runs_give_the_results_of_an_unbroken_one(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  sizes = ["--preset=laptop", "--mesh=data:1"]
  assert execute(*sizes, f"--workdir={whole}") == 0
  environment = {k: v for k, v in os.environ.items() if k != "NPROC"} | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, tiny.__file__, *sizes, "--delay=0.02", f"--workdir={broken}"]

  def start():
    return subprocess.Popen(
      command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

  process = start()
  wait_for((broken / "checkpoints/line/seed0/8").exists, process)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 143, errors
  assert "stopped by SIGTERM after step" in errors and f"--workdir={broken}" in errors

  process = start()
  wait_for((broken / "checkpoints/line/seed1/16").exists, process)
  process.kill()
  process.communicate()
  assert not (broken / "results.json").exists()

  process = start()
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert "line/seed1: 40 steps, from step" in output and "line/seed0" not in output
  ours, theirs = reproduced(broken), reproduced(whole)
  assert ours["config"].pop("delay") == 0.02 and theirs["config"].pop("delay") == 0.0
  assert ours == theirs
  # SIGTERM saved seed 0 between two rows, so that its next row averages fewer steps; a kill goes
  # back to a checkpoint that lies on a row.
  ours, theirs = (workdir.load_tree(d / "extras.npz")["losses"] for d in (broken, whole))
  assert ours.shape == (5, 20)
  np.testing.assert_array_equal(ours[1:], theirs[1:])


def test_a_missing_matplotlib_is_named_before_anything_is_written(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  assert run(tmp_path / "run") != 0
  assert "pip install 'jaxlab[plots]'" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
