import ast
import dataclasses
import importlib
import json
import pathlib
import shutil

import pytest

from experiments import catalogue, common, config_flags, report, workdir
from tests.experiments import tiny_experiment as tiny

PAPERS = catalogue.load_papers()


def write_results(directory, name, *, slug="tiny", preset="laptop", holds=(True,)):
  claims = [report.Claim(f"a|b {i}", h, 0.1, 0.2, "0.3 nats") for i, h in enumerate(holds)]
  content = {"slug": slug, "preset": preset, "seeds": 3}
  content |= report.to_stored(common.Results({"ours": {"nll": [1.0, 2.0, 4.0]}}), claims)
  workdir.write_json(directory / f"{name}.json", content)


@pytest.fixture
def root(tmp_path):
  """A repository of one paper, the tiny one, with one result."""
  results = tmp_path / "experiments" / "results"
  results.mkdir(parents=True)
  write_results(results, "tiny", holds=(True, False))
  shutil.copy(tiny.PAPERS, results.parent / "papers.toml")
  readme = "# Title\n<!-- papers:begin -->\nold\n<!-- papers:end -->\nThe end.\n"
  (tmp_path / "README.md").write_text(readme)
  return tmp_path


@pytest.fixture
def results(root):
  return root / "experiments" / "results"


TINY = catalogue.load_papers(tiny.PAPERS)


@pytest.mark.parametrize("slug", PAPERS)
def test_every_function_resolves(slug):
  functions = PAPERS[slug].functions
  assert functions and len(set(functions)) == len(functions)
  for name in functions:
    assert callable(catalogue.resolve(name)), name


@pytest.mark.parametrize("slug", PAPERS)
def test_every_experiment_is_one(slug):
  paper = PAPERS[slug]
  assert paper.experiment == f"experiments.{paper.family}.{slug}"
  module = importlib.import_module(paper.experiment)
  assert slug == module.PAPER
  assert list(module.PRESETS) == list(paper.cost)
  assert {"smoke", "laptop", "paper"} <= set(module.PRESETS)
  assert all(isinstance(preset, module.Config) for preset in module.PRESETS.values())
  for name in ("run", "claims", "figure", "abstract"):
    assert callable(getattr(module, name))
  comments = config_flags.field_comments(module.Config)
  assert set(comments) == {field.name for field in dataclasses.fields(module.Config)}
  assert common.execute(module, [slug, "--help"]) == 0
  source = ast.parse(pathlib.Path(module.__file__).read_text())
  assert "common.main(sys.modules[__name__])" in ast.unparse(source.body[-1])


@pytest.mark.parametrize("slug", PAPERS)
def test_every_entry_is_whole(slug):
  paper = PAPERS[slug]
  for text in (paper.title, paper.venue, paper.claim, *paper.cost.values()):
    assert text and text == " ".join(text.split())
  assert paper.claim.endswith(".") and ". " not in paper.claim
  assert paper.link == f"https://arxiv.org/abs/{paper.arxiv}"


def test_committed_results_belong_to_papers():
  catalogue.table(PAPERS, catalogue.RESULTS)


def test_incomplete_entries_are_named(tmp_path):
  path = tmp_path / "papers.toml"
  text = tiny.PAPERS.read_text()
  path.write_text(text.replace("venue =", "venu ="))
  with pytest.raises(ValueError, match=r"papers.toml: \[tiny\] lacks field 'venue'"):
    catalogue.load_papers(path)
  path.write_text(text.replace("family =", "colour = 1\nfamily ="))
  with pytest.raises(ValueError, match=r"\[tiny\] has an unknown field 'colour'"):
    catalogue.load_papers(path)


def test_unknown_papers_name_the_near_ones():
  with pytest.raises(ValueError, match="no paper 'lc_pfm' in the catalogue; there is lc_pfn"):
    catalogue.find_paper(PAPERS, "lc_pfm")


def test_claim_states():
  state = lambda *holds: catalogue.claim_state([report.Claim("c", h, 0, 0) for h in holds])  # noqa: E731
  assert state() == "not measured"
  assert state(True) == "1 of 1 hold"
  assert state(True, True, False) == "2 of 3 hold"
  assert state(None, True) == "1 of 2 hold, 1 not judged"


def test_the_table_is_made_from_results(results):
  row = catalogue.table(TINY, results).splitlines()[2]
  assert row == (
    "| test | [Least Squares by Descent](https://arxiv.org/abs/0000.00000), Nowhere 1805 | "
    "`python -m tests.experiments.tiny_experiment` | 1 of 2 hold<br>"
    "holds: a\\|b 0 (measured 0.1, baseline 0.2, paper 0.3 nats)<br>"
    "does not hold: a\\|b 1 (measured 0.1, baseline 0.2, paper 0.3 nats) |"
  )
  write_results(results, "tiny.other", holds=(None,))
  assert "| 1 of 3 hold, 1 not judged<br>" in catalogue.table(TINY, results)
  assert list(catalogue.measured("tiny", results)) == ["tiny", "tiny.other"]


def test_foreign_results_are_refused(results):
  write_results(results, "tiny.smoke", preset="smoke")
  with pytest.raises(ValueError, match="tiny.smoke.json holds results of 'tiny' with preset"):
    catalogue.table(TINY, results)
  write_results(results, "tiny.smoke", slug="other")
  with pytest.raises(ValueError, match="tiny.smoke.json holds results of 'other'"):
    catalogue.table(TINY, results)
  (results / "tiny.smoke.json").rename(results / "other.json")
  with pytest.raises(ValueError, match="results/other.json belongs to no paper"):
    catalogue.table(TINY, results)


def test_write_and_check(root, results, capsys):
  assert catalogue.main(["--check"], root=root) == 1
  assert "docs/papers.md: stale\nREADME.md: stale" in capsys.readouterr().out
  assert catalogue.main(["--write"], root=root) == 0
  assert catalogue.main(["--check"], root=root) == 0
  table = catalogue.table(TINY, results)
  readme = (root / "README.md").read_text()
  assert readme == f"# Title\n<!-- papers:begin -->\n{table}<!-- papers:end -->\nThe end.\n"
  assert (root / "docs" / "papers.md").read_text().endswith(table)

  write_results(results, "tiny", holds=(False,))
  assert catalogue.main(["--check"], root=root) == 1
  capsys.readouterr()
  (root / "README.md").write_text("# No place for a table\n")
  assert catalogue.main(["--write"], root=root) == 1
  assert "README.md needs the lines <!-- papers:begin -->" in capsys.readouterr().err


def test_a_copied_result_is_a_result(results, tmp_path_factory):
  directory = tmp_path_factory.mktemp("run")
  arguments = ["--preset=laptop", "--steps=2", "--seeds=1", f"--workdir={directory}"]
  assert common.execute(tiny, ["tiny", *arguments], papers=tiny.PAPERS) == 0
  shutil.copy(directory / "results.json", results / "tiny.json")
  claims = catalogue.claims_of(catalogue.measured("tiny", results))
  stored = json.loads((directory / "results.json").read_text())["claims"]
  assert [dataclasses.asdict(claim) for claim in claims] == stored
