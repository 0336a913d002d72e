import dataclasses
import json
import math
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl import flags

from experiments import catalogue, common, config_flags, dry_run, report, workdir
from jaxlab.training.seeds import over_seeds
from tests.experiments import tiny_experiment as tiny

ROOT = pathlib.Path(__file__).parents[2]


def execute(*arguments):
  return common.execute(tiny, ["tiny", *map(str, arguments)], papers=tiny.PAPERS)


def run(directory, *arguments, preset="smoke"):
  return execute(f"--preset={preset}", f"--workdir={directory}", *arguments)


def stored(directory):
  return json.loads((directory / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  directory = tmp_path_factory.mktemp("finished") / "run"
  assert run(directory, "--seeds=3") == 0
  return directory


# --- results, claims ---


def test_quantity_is_mean_and_standard_error():
  values = [1.0, 2.0, 4.0, 7.5]
  mean = sum(values) / 4
  variance = sum((v - mean) ** 2 for v in values) / 3
  found = common.quantity(values)
  np.testing.assert_allclose(found, (mean, math.sqrt(variance / 4)), rtol=1e-12)
  assert common.quantity([2.0]).mean == common.quantity(2.0).mean == 2.0
  assert math.isnan(common.quantity([2.0]).standard_error)
  for wrong in ([], [[1.0, 2.0]]):
    with pytest.raises(ValueError, match="values must hold one number a seed"):
      common.quantity(wrong)


def test_compare_judges_paired_differences():
  method, baseline = np.array([1.0, 2.0, 3.0]), np.array([0.8, 1.9, 2.7])
  difference = method - baseline
  edge = difference.mean() - difference.std(ddof=1) / math.sqrt(3)
  assert common.compare("c", method, baseline, margin=edge - 1e-9).holds is True
  assert common.compare("c", method, baseline, margin=edge + 1e-9).holds is False
  # Unpaired, the spread over seeds would hide this difference.
  assert common.compare("c", method, baseline).holds is True
  assert common.compare("c", method, baseline, better="lower").holds is False
  assert common.compare("c", baseline, method, better="lower").holds is True
  assert common.compare("c", baseline, method, margin=-0.5).holds is True
  claim = common.compare("text", method, baseline, paper="0.2 nats")
  assert claim == common.Claim("text", True, 2.0, np.mean(baseline), "0.2 nats")


def test_compare_with_a_threshold_and_at_the_edge():
  assert common.compare("c", [1.0, 1.0, 1.0], 0.9).holds is True
  assert common.compare("c", [1.0, 1.0, 1.0], 1.0).holds is False  # Strictly more.
  assert common.compare("c", 1.0, [0.9, 0.8, 0.7]).holds is True
  assert common.compare("c", [1.0, np.nan, 1.0], 0.0).holds is False


def test_two_seeds_are_not_judged():
  claim = common.compare("c", [5.0, 6.0], [0.0, 0.0])
  assert claim.holds is None
  assert report.format_claim(claim).startswith("not judged: c (measured 5.5")


def test_compare_errors():
  with pytest.raises(ValueError, match="better must be 'higher' or 'lower', got 'more'"):
    common.compare("c", [1.0], [1.0], better="more")
  with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
    common.compare("c", [1.0, 2.0, 3.0], [1.0, 2.0])


def test_results_check_their_shapes():
  results = common.Results({"a": {"x": [1, 2], "y": 3}}, {"grid": [1, 2, 3]})
  np.testing.assert_array_equal(results["a", "x"], [1.0, 2.0])
  assert results["a", "y"].ndim == 0 and isinstance(results.extras["grid"], np.ndarray)
  with pytest.raises(ValueError, match="a/x must hold one number a seed"):
    common.Results({"a": {"x": [[1, 2]]}})
  with pytest.raises(ValueError, match="extras 'model' must be an array"):
    common.Results({}, {"model": {"w": 1}})


def test_results_survive_storage():
  results = common.Results({"a": {"x": [1, math.nan, math.inf], "y": 3}})
  claims = [common.compare("c", [1.0, 2.0], math.inf)]
  text = json.dumps(workdir.encode_json(report.to_stored(results, claims)), allow_nan=False)
  again, same_claims = report.from_stored(json.loads(text))
  np.testing.assert_array_equal(again["a", "x"], results["a", "x"])
  assert again["a", "y"] == 3.0 and same_claims == claims


def test_table_shows_digits_that_mean_something(capsys):
  assert report.format_quantity([0.1234, 0.1239]) == "0.12365 ± 0.00025"
  assert report.format_quantity([1000.0, 3000.0]) == "2000 ± 1e+03"
  assert report.format_quantity(3.0) == "3"
  results = common.Results({"ours": {"nll": [1.0, 2.0]}, "theirs": {"seconds": 3.0}})
  report.print_report("Title", results, [common.Claim("c", False, 1.0, 2.0, 3.0)])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("Title")
  assert any("nll" in line and "seconds" in line for line in lines)
  assert any("ours" in line and "1.50 ± 0.50" in line for line in lines)
  assert lines[-1] == "does not hold: c (measured 1, baseline 2, paper 3)"


def test_groups_get_tables_and_wide_ones_are_turned(capsys):
  wide = {f"gp/nll c={c}": [1.0, 2.0] for c in range(7)}
  quantities = {"ours": {**wide, "real/auc": 0.5}, "theirs": {"real/auc": 0.25}}
  report.print_report("T", common.Results(quantities), [])
  lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
  assert [line for line in lines if line[0] == "T:"] == [["T:", "gp"], ["T:", "real"]]
  assert ["quantity", "ours"] in lines and ["nll", "c=6", "1.50", "±", "0.50"] in lines
  assert ["method", "auc"] in lines and ["theirs", "0.25"] in lines


def test_times_are_not_reproducible():
  entry = {"values": [1.0]}
  content = {
    "wall_seconds": 3.0,
    "seeds": 1,
    "quantities": {"a": {"nll": entry, "fit seconds": entry, "speedup": entry}},
    "claims": [{"text": "A speedup"}, {"text": "a 50x speedup."}, {"text": "A seconds thing"}],
  }
  assert report.reproducible(content) == {
    "seeds": 1,
    "quantities": {"a": {"nll": entry}},
    "claims": [{"text": "A seconds thing"}],
  }


# --- flags ---


@dataclasses.dataclass(frozen=True)
class Fields:
  whole: int = 1  # A number
  # of things.
  share: float = 0.5
  name: str = "n"
  on: bool = False
  kind: Literal["a", "b"] = "a"
  level: Literal[1, 2] = 1
  sizes: tuple[int, ...] = (1, 2)
  pair: tuple[int, float] = (1, 2.0)
  kinds: tuple[Literal["a", "b"], ...] = ()
  limit: float | None = None

  # A heading, apart.

  bare: int = 0


def parsed(*arguments):
  values = flags.FlagValues()
  config_flags.define_config_flags(values, Fields)
  config_flags.parse(values, ["program", *arguments])
  return config_flags.config_from_flags(values, Fields(whole=7))


@pytest.mark.parametrize(
  "argument,expected",
  [
    ("--whole=12_000", {"whole": 12000}),
    ("--share=1e-3", {"share": 1e-3}),
    ("--name=x y", {"name": "x y"}),
    ("--on", {"on": True}),
    ("--noon", {"on": False}),
    ("--on=true", {"on": True}),
    ("--kind=b", {"kind": "b"}),
    ("--level=2", {"level": 2}),
    ("--sizes=3", {"sizes": (3,)}),
    ("--sizes=3, 4,5", {"sizes": (3, 4, 5)}),
    ("--sizes=", {"sizes": ()}),
    ("--pair=3,0.5", {"pair": (3, 0.5)}),
    ("--kinds=a,b,a", {"kinds": ("a", "b", "a")}),
    ("--limit=2", {"limit": 2.0}),
    ("--limit=none", {"limit": None}),
  ],
)
def test_flags_take_every_type(argument, expected):
  assert parsed(argument) == dataclasses.replace(Fields(whole=7), **expected)


@pytest.mark.parametrize(
  "argument,words",
  [
    ("--whole=1.5", ["--whole=1.5", "an integer"]),
    ("--share=nan", ["--share=nan", "a number"]),
    ("--on=maybe", ["--on=maybe"]),
    ("--kind=c", ["--kind=c", "one of a, b"]),
    ("--sizes=1,x", ["--sizes=1,x", "an integer, any number of them between commas"]),
    ("--pair=1", ["--pair=1", "an integer , a number"]),
    ("--kinds=a,c", ["--kinds=a,c", "one of a, b"]),
    ("--whle=1", ["--whle=1 is no flag", "there is --whole"]),
    ("--whle", ["--whle is no flag", "there is --whole"]),
    ("whole", ["'whole' is no flag"]),
  ],
)
def test_flags_refuse_and_say_what_is_allowed(argument, words):
  with pytest.raises(common.UsageError) as caught:
    parsed(argument)
  for word in words:
    assert word in str(caught.value)


def test_every_written_value_reads_back():
  for field in dataclasses.fields(Fields):
    value = getattr(Fields(), field.name)
    text = config_flags.as_text(value)
    assert config_flags.value_parser(Fields.__annotations__[field.name])[0](text) == value


def test_comments_are_help():
  assert config_flags.field_comments(Fields) == {"whole": "A number", "share": "of things."}
  assert config_flags.field_comments(tiny.Config)["start"] == (
    "Where the weights begin: at zero, or at one."
  )


def test_flags_refuse_types_and_names():
  @dataclasses.dataclass(frozen=True)
  class Wrong:
    table: dict = None

  with pytest.raises(TypeError, match="cannot make a flag of"):
    config_flags.define_config_flags(flags.FlagValues(), Wrong)

  values = flags.FlagValues()
  config_flags.define_flag(values, "whole", int, "")
  with pytest.raises(ValueError, match="Fields.whole has the name"):
    config_flags.define_config_flags(values, Fields)


# --- the command line ---


def test_help_opens_with_the_paper(capsys):
  assert execute("--help") == 0
  out = capsys.readouterr().out
  paper = catalogue.load_papers(tiny.PAPERS)["tiny"]
  opening = [f"{paper.title} ({paper.venue})", paper.link, "", paper.claim]
  assert out.splitlines()[:4] == opening
  for preset, cost in paper.cost.items():
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
    (["--seeds=0"], ["--seeds=0", "at least 1"]),
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
  entry = content["quantities"]["descent"]["error"]
  found = common.quantity(entry["values"])
  assert len(entry["values"]) == 3
  assert (entry["mean"], entry["standard_error"]) == found
  assert [claim["holds"] for claim in content["claims"]] == [True, False]
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
  assert "descent" in out and "holds: Descent comes nearer than nothing" in out
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


def test_overwrite_starts_anew(tmp_path):
  assert run(tmp_path, "--steps=2") == 0
  (tmp_path / "notes.txt").write_text("mine")
  assert run(tmp_path, "--overwrite") == 0
  assert stored(tmp_path)["config"]["steps"] == 4
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
  assert (tmp_path / "notes.txt").read_text() == "mine"


def test_smoke_is_not_judged_and_wall_seconds_are_whole_runs_only(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(tiny, "claims", lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(tmp_path)
  assert not (tmp_path / "results.json").exists()
  assert run(tmp_path) == 0
  assert stored(tmp_path)["wall_seconds"] is None
  assert [claim["holds"] for claim in stored(tmp_path)["claims"]] == [None, None]


def test_seeds_must_all_be_there(tmp_path, monkeypatch):
  monkeypatch.setattr(tiny, "run", lambda *_: common.Results({"a": {"x": [1.0, 2.0]}}))
  monkeypatch.setattr(tiny, "claims", lambda results: [])
  with pytest.raises(ValueError, match="a/x has 2 values for 1 seeds"):
    run(tmp_path)
  assert not (tmp_path / "results.json").exists()


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
  assert common.execute(tiny, ["tiny", *arguments, "--overwrite"], papers=tiny.PAPERS) == 130
  message = capsys.readouterr().err
  assert "stopped by SIGINT after step 2" in message
  command = message.splitlines()[-1].split()
  assert command[:2] == ["python", "-m"] or command[0] == "python"
  assert command[-4:] == arguments  # Without --overwrite.
  # Each seed's second batch sends the signal, and a checkpoint lies behind it.
  assert [execute(*arguments) for _ in range(3)] == [130, 130, 0]
  ours, whole = report.reproducible(stored(tmp_path)), report.reproducible(stored(finished))
  assert ours["config"].pop("signal_at") == 1 and whole["config"].pop("signal_at") is None
  assert ours == whole


def test_sigterm_outside_of_training_exits_143(tmp_path, capsys, monkeypatch):
  def stop(config, context):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)

  monkeypatch.setattr(tiny, "run", stop)
  handler = signal.getsignal(signal.SIGTERM)
  assert run(tmp_path) == 143
  assert "stopped by SIGTERM; to go on:" in capsys.readouterr().err
  assert signal.getsignal(signal.SIGTERM) is handler


def test_without_tensorboard_a_note(tmp_path, capsys, monkeypatch):
  find = common.importlib.util.find_spec
  without = lambda name, *rest: None if name == "tensorboardX" else find(name, *rest)  # noqa: E731
  monkeypatch.setattr(common.importlib.util, "find_spec", without)
  assert run(tmp_path) == 0
  assert capsys.readouterr().out.count("tensorboardX is not installed") == 1
  assert not (tmp_path / "tensorboard").exists()


# --- a dry run ---


def test_dry_run_allocates_nothing(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  alive = len(jax.live_arrays())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert execute("--preset=paper", "--dry_run", "--mesh=data:4,model:2", "--nonoisy") == 0
  out = capsys.readouterr().out
  assert "parameters        2,000,000,000\n" in out
  # Eight rows, forward, and backward into the weights only.
  assert re.search(r"FLOPs a step +64 G \(64000000000;", out)
  # Weights, momentum, and a quarter of eight rows.
  found = re.search(r"bytes a device +\S+ GB \((\d+); arguments 32 GB", out)
  assert int(found[1]) >= 4 * 2 * 10**9 * (2 + 2)
  assert "devices           8\n" in out
  assert len(jax.live_arrays()) == alive and list(tmp_path.iterdir()) == []
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 10**6  # One GB.


def test_dry_run_needs_abstract(capsys, monkeypatch):
  monkeypatch.setattr(tiny, "abstract", lambda config, mesh: (sum, jnp.zeros(3)))
  with pytest.raises(TypeError, match=r"returned an array of shape \(3,\)"):
    execute("--dry_run")
  monkeypatch.delattr(tiny, "abstract")
  assert execute("--dry_run") == 2
  assert "needs a function abstract(config, mesh)" in capsys.readouterr().err


def test_flops_count_every_turn_and_device():
  square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  one = 2.0 * 4**3

  def scanned(w, x):
    return jax.lax.scan(lambda c, _: (jax.checkpoint(jnp.dot)(c, w), None), x, None, length=5)[0]

  assert dry_run.count_flops(scanned, square, square) == 5 * one
  branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)  # noqa: E731
  assert dry_run.count_flops(branches, square) == 2 * one
  mesh = common.make_mesh({"data": 4})
  spec = jax.sharding.PartitionSpec("data")
  sharded = jax.jit(
    jax.shard_map(lambda x: x @ jnp.ones((4, 4)), mesh=mesh, in_specs=spec, out_specs=spec)
  )
  assert dry_run.count_flops(sharded, square) == one
  image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 6))
  convolved = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
  )
  assert dry_run.count_flops(convolved, image, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


# --- stages ---


def context_at(directory, seeds=1):
  return common.Context(directory, jax.random.key(0), seeds)


def test_a_context_has_all_devices_unless_it_is_given_others(tmp_path):
  assert dict(context_at(tmp_path).mesh.shape) == {"data": 8}
  mesh = common.make_mesh({"data": 2})
  assert common.Context(tmp_path, jax.random.key(0), mesh=mesh).mesh is mesh


def test_seed_keys_are_those_of_over_seeds(tmp_path):
  context = context_at(tmp_path, 3)
  draws = over_seeds(context.key, jax.random.normal, num_seeds=3)
  expected = [jax.random.normal(context.seed_key(seed)) for seed in range(3)]
  np.testing.assert_array_equal(draws, expected)
  with pytest.raises(ValueError, match=r"\[0, 3\), got 3"):
    context.seed_key(3)


def test_cached_computes_once(tmp_path):
  calls = []

  def fn(a, *, b):
    calls.append((a, b))
    return {
      "tree": [np.arange(3), (jnp.ones((2, 2), jnp.bfloat16), 1.5)],
      "scalar": np.float32(0.1),
      "plain": {"text": "ü", "none": None, "flag": True, "whole": 7, "nan": math.nan},
      "empty": [np.zeros((0, 3)), {}, ()],
      "words": np.array(["a", "bcd"]),
    }

  first = context_at(tmp_path).cached("a/b c=1", fn, 1, b=2)
  second = context_at(tmp_path).cached("a/b c=1", fn, 1, b=2)
  assert calls == [(1, 2)]
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert type(x) is type(y)
    np.testing.assert_array_equal(x, y)
  assert second["tree"][1][0].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(second["tree"][1][0], np.ones((2, 2)))
  assert second["scalar"] == np.float32(0.1) and second["scalar"].dtype == np.float32
  assert second["empty"][0].shape == (0, 3) and second["words"].tolist() == ["a", "bcd"]


def test_cached_refuses_what_it_cannot_store(tmp_path):
  for value, where in (
    ({"a": [object()]}, r"result\['a'\]\[0\] is a object"),
    ({1: 2.0}, "keys that are not text"),
    ([jax.random.key(0)], r"result\[0\] is a"),
    (common.quantity([1.0, 2.0]), "result is a Quantity"),
    (np.array([None]), "result is a ndarray"),
  ):
    with pytest.raises(TypeError, match=where):
      context_at(tmp_path).cached("x", lambda value=value: value)
  assert not list(tmp_path.rglob("*.npz"))


def test_stage_names(tmp_path):
  context = context_at(tmp_path)
  context.cached("a/b", int)
  for clash in ("a/b", "a", "a/b/c"):
    with pytest.raises(ValueError, match="clashes with 'a/b'"):
      context.cached(clash, int)
  context.cached("a/bc", int)
  for wrong in ("", "../x", "/x", "a//b", "a/", ".x", "a/../b"):
    with pytest.raises(ValueError, match="words between slashes"):
      context.cached(wrong, int)


def test_fit_takes_a_finished_stage_from_the_workdir(tmp_path):
  config = tiny.Config(steps=6)
  init, update = tiny.build(config, None)

  def train(num_steps, batches):
    state = init(jax.random.key(1))
    return context_at(tmp_path).fit("s", state, update, batches, num_steps=num_steps, log_every=2)

  whole = train(6, tiny.Batches(0, config))
  again = train(6, tiny.Batches(0, dataclasses.replace(config, break_at=0)))  # Would fail.
  np.testing.assert_array_equal(whole.state.params, again.state.params)
  assert whole.history == again.history and [row["step"] for row in again.history] == [2, 4, 6]
  longer = train(8, tiny.Batches(0, config))
  assert longer.history[:3] == whole.history and longer.history[3]["step"] == 8
  with pytest.raises(ValueError, match="is at step 8 already, past num_steps=4"):
    train(4, tiny.Batches(0, config))


def test_files_appear_whole(tmp_path):
  path = tmp_path / "file"
  workdir.write_atomic(path, lambda file: file.write(b"old"))

  def fail(file):
    file.write(b"half")
    raise RuntimeError

  with pytest.raises(RuntimeError):
    workdir.write_atomic(path, fail)
  assert path.read_bytes() == b"old"


# --- processes ---


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
  ours, theirs = report.reproducible(stored(broken)), report.reproducible(stored(whole))
  assert ours["config"].pop("delay") == 0.02 and theirs["config"].pop("delay") == 0.0
  assert ours == theirs
  # SIGTERM saved seed 0 between two rows, so that its next row averages fewer steps; a kill goes
  # back to a checkpoint that lies on a row.
  ours, theirs = (workdir.load_tree(d / "extras.npz")["losses"] for d in (broken, whole))
  assert ours.shape == (3, 20)
  np.testing.assert_array_equal(ours[1:], theirs[1:])
