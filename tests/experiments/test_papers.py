"""What every paper's experiment must do: smoke, dry run, claims, figure, and resume."""

import ast
import dataclasses
import functools
import json
import pathlib
import shutil

import pytest

from experiments import catalogue
from jaxlab import experiment
from jaxlab.experiment import records, report
from jaxlab.experiment.flags import field_comments

PAPERS = catalogue.load_papers()
FIRST = {paper.family: paper.slug for paper in reversed(PAPERS.values())}.values()


def of_papers(mark=None):
  """One test per paper; the first of a family is part of `make test`."""
  marks = {
    slug: [m for m in (mark, pytest.mark.first_of_family) if m and (m is mark or slug in FIRST)]
    for slug in PAPERS
  }
  return pytest.mark.parametrize("slug", [pytest.param(s, marks=m) for s, m in marks.items()])


def load(slug):
  return catalogue.load_experiment(PAPERS[slug])


def execute(module, *arguments):
  return experiment.execute(module, [module.PAPER, *arguments, "--mesh=data:2,model:1"])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  """The directory of a paper's smoke run, one run for all tests."""

  @functools.cache
  def run(slug):
    directory = tmp_path_factory.mktemp(slug) / "run"
    assert execute(load(slug), "--preset=smoke", f"--workdir={directory}") == 0
    return directory

  return run


def stored(directory):
  return json.loads((directory / "results.json").read_text())


@pytest.mark.parametrize("slug", PAPERS)
def test_an_experiment_has_all_parts(slug, capsys):
  paper, module = PAPERS[slug], load(slug)
  assert slug == module.PAPER
  assert list(module.PRESETS) == list(paper.cost)
  assert {"smoke", "laptop", "paper"} <= set(module.PRESETS)
  assert all(isinstance(preset, module.Config) for preset in module.PRESETS.values())
  for name in ("run", "claims", "figure", "abstract"):
    assert getattr(module, name).__doc__
  comments = field_comments(module.Config)
  assert set(comments) == {field.name for field in dataclasses.fields(module.Config)}
  assert experiment.execute(module, [slug, "--help"], about=catalogue.about(paper)) == 0
  assert capsys.readouterr().out.startswith(paper.title)
  last = ast.parse(pathlib.Path(module.__file__).read_text()).body[-1]
  assert "catalogue.run(sys.modules[__name__])" in ast.unparse(last)


@pytest.mark.parametrize("slug", [slug for slug in PAPERS if slug != "open_set_tta"])
def test_impossible_sizes_are_refused_before_anything_is_written(slug, tmp_path, capsys):
  module = load(slug)
  for preset in module.PRESETS.values():
    module.validate(preset)
  smallest = 0
  for field in dataclasses.fields(module.Config):
    value = getattr(module.PRESETS["smoke"], field.name)
    first = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, bool) or not isinstance(first, int | float):
      continue
    text = ",".join(["-1", *map(str, value[1:])]) if isinstance(value, tuple) else "-1"
    arguments = ("--preset=smoke", f"--workdir={tmp_path / 'run'}", f"--{field.name}={text}")
    assert execute(module, *arguments) == 2
    assert field.name in capsys.readouterr().err
    smallest += 1
  assert smallest >= 5 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("slug", [slug for slug in PAPERS if slug != "open_set_tta"])
def test_batches_are_no_larger_than_the_data(slug, tmp_path, capsys):
  module = load(slug)
  names = [f.name for f in dataclasses.fields(module.Config) if "batch" in f.name]
  # Fresh data are drawn for every update of these.
  fresh = {slug: names for slug in ("pfn", "lc_pfn", "gpicl", "icl_uncertainty")}
  fresh["self_ensembled_icl"] = ["pretraining_batch"]
  for name in set(names) - {*fresh.get(slug, ()), "ghost_batch"}:
    arguments = ("--preset=smoke", f"--workdir={tmp_path / 'run'}", f"--{name}=1000000000")
    assert execute(module, *arguments) == 2
    assert name in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


@of_papers(pytest.mark.smoke)
def test_smoke_measures_claims_and_draws(slug, smoke):
  content = stored(smoke(slug))
  results = records.from_stored(content["records"])
  assert len(results.distinct("method")) >= 2
  claims = catalogue.claims_of(content)
  experiment.check_claims(claims)
  assert catalogue.headline_of(claims).requires, "the headline has no precondition"
  # One seed decides nothing, whatever the preconditions say.
  assert {claim.verdict for claim in claims} <= {"no test", "unresolved"}
  assert (smoke(slug) / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("slug", PAPERS)
def test_the_paper_preset_compiles_from_shapes(slug, capsys):
  assert execute(load(slug), "--preset=paper", "--dry_run") == 0
  assert "bytes a device" in capsys.readouterr().out


@pytest.mark.smoke
@pytest.mark.parametrize("slug", FIRST)
def test_a_run_that_lost_its_last_stages_ends_the_same(slug, smoke, tmp_path):
  module, whole, broken = load(slug), smoke(slug), tmp_path / "broken"
  shutil.copytree(whole, broken)
  for name in ("results.json", "extras.npz", "figure.png"):
    (broken / name).unlink()
  stages = sorted((broken / "stages").rglob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
  kept = {path: path.stat().st_mtime_ns for path in stages[: len(stages) // 2]}
  assert len(stages) >= 2
  for path in stages[len(kept) :]:
    path.unlink()
  assert execute(module, "--preset=smoke", f"--workdir={broken}") == 0
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert report.reproducible(stored(broken)) == report.reproducible(stored(whole))
