import pytest

from experiments import catalogue, pages
from jaxlab import experiment
from jaxlab.experiment import records, workdir

PAPERS = catalogue.load_papers()
TINY = """
[tiny]
family = "test"
title = "Least Squares by Descent"
venue = "Nowhere 1805"
arxiv = "0000.00000"
claim = "Gradient descent finds the line that made the data."
idea = "Follow the gradient."
equation = 'w \\leftarrow w - \\eta \\nabla L(w)'
snippet = "import jaxlab"
deviations = ["Eight rows in place of a comet."]
experiment = "tests.experiment.tiny_experiment"
functions = ["jaxlab.training.build_update"]

[tiny.cost]
smoke = "a second"
laptop = "two seconds"
paper = "a machine with 100 GB"
"""


def write_result(directory, name="tiny", *, slug="tiny", preset="laptop", shift=1.0, **fields):
  results = experiment.Results()
  results.add({"ours": {"nll": [1.0, 1.1, 1.2]}, "theirs": {"nll": [1.0 + shift, 2.0, 2.3]}})
  ours, theirs = (results.select("nll", method=method) for method in ("ours", "theirs"))
  met = experiment.precondition("theirs is above 1", theirs, at_least=1.0)
  failed = experiment.precondition("theirs is above 9", theirs, at_least=9.0)
  claims = [
    experiment.compare("a|b", ours, theirs, better="lower", headline=True, requires=[met]),
    experiment.compare("second", ours, theirs, requires=[failed], paper="0.3 nats"),
  ]
  content = {
    "slug": slug,
    "preset": preset,
    "seeds": 3,
    "command": "python -m tiny",
    "versions": {"jax": "0.10"},
    "device": "cpu",
    "wall_seconds": 120.0,
    "claims": [experiment.claim_to_stored(claim) for claim in claims],
    "records": records.to_stored(results),
  }
  workdir.save_json(directory / f"{name}.json", content | fields)


@pytest.fixture
def root(tmp_path):
  """A repository of one paper, the tiny one, with one result."""
  results = tmp_path / "experiments" / "results"
  results.mkdir(parents=True)
  write_result(results)
  (results.parent / "papers.toml").write_text(TINY)
  readme = "# Title\n<!-- papers:begin -->\nold\n<!-- papers:end -->\nThe end.\n"
  (tmp_path / "README.md").write_text(readme)
  return tmp_path


@pytest.mark.parametrize("slug", PAPERS)
def test_every_function_resolves(slug):
  functions = PAPERS[slug].functions
  assert functions and len(set(functions)) == len(functions)
  for name in functions:
    assert callable(catalogue.resolve(name)), name


@pytest.mark.parametrize("slug", PAPERS)
def test_every_entry_is_whole(slug):
  paper = PAPERS[slug]
  texts = (paper.title, paper.venue, paper.claim, *paper.cost.values(), *paper.deviations)
  for text in (*texts, paper.idea):
    assert text and text == " ".join(text.split())
  assert paper.claim.endswith(".") and ". " not in paper.claim
  assert paper.equation.strip() and paper.link == f"https://arxiv.org/abs/{paper.arxiv}"
  assert paper.experiment == f"experiments.{paper.family}.{slug}"


@pytest.mark.example
@pytest.mark.parametrize("slug", PAPERS)
def test_snippets_run_and_use_the_paper(slug):
  snippet = PAPERS[slug].snippet
  assert len(snippet.strip().splitlines()) <= 20
  assert any(name.rpartition(".")[2] in snippet for name in PAPERS[slug].functions)
  exec(compile(snippet, f"{slug}.snippet", "exec"), {})


@pytest.mark.parametrize("slug", PAPERS)
def test_committed_results_keep_the_rules(slug):
  stored = catalogue.measured(slug)
  if stored:
    experiment.check_claims(catalogue.claims_of(stored))
    assert stored["preset"] == "laptop" and records.from_stored(stored["records"]).records


def test_the_pages_are_made_from_what_is_committed():
  assert not pages.stale()


def test_incomplete_entries_are_named(tmp_path):
  path = tmp_path / "papers.toml"
  path.write_text(TINY.replace("venue =", "venu ="))
  with pytest.raises(ValueError, match=r"papers.toml: \[tiny\] lacks field 'venue'"):
    catalogue.load_papers(path)
  path.write_text(TINY.replace("family =", "color = 1\nfamily ="))
  with pytest.raises(ValueError, match=r"\[tiny\] has an unknown field 'color'"):
    catalogue.load_papers(path)


def test_unknown_papers_name_the_near_ones():
  with pytest.raises(ValueError, match="no paper 'lc_pfm' in the catalogue; there is lc_pfn"):
    catalogue.find_paper(PAPERS, "lc_pfm")


def test_a_page_has_claims_preconditions_and_deviations(root):
  page = pages.pages(root)[root / "docs" / "papers" / "tiny.md"]
  rows = [line for line in page.splitlines() if line.startswith("|")]
  low, high = experiment.compare("c", [1.0, 1.1, 1.2], [2.0, 2.0, 2.3], better="lower").interval
  assert rows[2] == f"| shown | **a\\|b** | 1.1, 2.1 | +1 [{low:+.3g}, {high:+.3g}] | 0 |  |"
  assert rows[3].startswith("| no test | second | 1.1, 2.1 | -1 [") and "0.3 nats" in rows[3]
  assert "- met: theirs is above 1 (measured 2.1)" in page
  assert "- **not met**: theirs is above 9 (measured 2.1)" in page
  assert "- Eight rows in place of a comet." in page and "python -m tiny" in page
  assert "3 seeds, 2 minutes on cpu, JAX 0.10." in page
  assert "$$\nw \\leftarrow w - \\eta \\nabla L(w)\n$$" in page
  assert "figures/tiny.png" not in page
  (root / "experiments" / "figures").mkdir()
  (root / "experiments" / "figures" / "tiny.png").touch()
  (root / "experiments" / "selections").mkdir()
  write_result(root / "experiments" / "selections", command="python -m tiny --pilot")
  page = pages.pages(root)[root / "docs" / "papers" / "tiny.md"]
  assert "figures/tiny.png" in page and "chosen beforehand" in page and "tiny --pilot" in page


def test_write_and_check(root, capsys):
  assert catalogue.main(["--check"], root=root) == 1
  assert "docs/papers.md: stale\ndocs/papers/tiny.md: stale" in capsys.readouterr().out
  assert catalogue.main(["--write"], root=root) == 0
  assert catalogue.main(["--check"], root=root) == 0
  assert (root / "docs" / "headlines.png").read_bytes()[:4] == b"\x89PNG"
  readme = (root / "README.md").read_text()
  assert "[Least Squares by Descent](docs/papers/tiny.md), Nowhere 1805 | a\\|b | +1 [" in readme
  assert "| **shown**; of 1 more: 1 no test |" in readme
  assert readme.startswith("# Title\n") and readme.endswith("<!-- papers:end -->\nThe end.\n")
  assert "## Test\n" in (root / "docs" / "papers.md").read_text()

  write_result(root / "experiments" / "results", shift=2.0)
  (root / "docs" / "papers" / "gone.md").write_text("a paper that was removed")
  assert catalogue.main(["--check"], root=root) == 1
  assert "docs/papers/gone.md: stale" in capsys.readouterr().out
  assert catalogue.main(["--write"], root=root) == 0
  assert not (root / "docs" / "papers" / "gone.md").exists()
  (root / "README.md").write_text("# No place for a table\n")
  assert catalogue.main(["--write"], root=root) == 1
  assert "README.md needs the lines <!-- papers:begin -->" in capsys.readouterr().err


def test_papers_without_results_say_so(root):
  (root / "experiments" / "results" / "tiny.json").unlink()
  texts = pages.pages(root)
  assert "| not measured |" in texts[root / "docs" / "papers.md"]
  assert "Nothing was measured yet." in texts[root / "docs" / "papers" / "tiny.md"]


def test_foreign_results_are_refused(root):
  results = root / "experiments" / "results"
  write_result(results, preset="smoke")
  with pytest.raises(ValueError, match="tiny.json holds results of 'tiny' with preset 'smoke'"):
    pages.pages(root)
  write_result(results, slug="other")
  with pytest.raises(ValueError, match="tiny.json holds results of 'other'"):
    pages.pages(root)
  write_result(results)
  write_result(results, "other")
  with pytest.raises(ValueError, match="results/other.json belongs to no paper"):
    pages.pages(root)


@pytest.fixture
def quoted(tmp_path, monkeypatch):
  """A catalogue of the tiny paper, and a finished laptop run of it."""
  for name in ("results", "figures", "selections"):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(catalogue, name.upper(), tmp_path / name)
  (tmp_path / "papers.toml").write_text(TINY)
  monkeypatch.setattr(catalogue.load_papers, "__defaults__", (tmp_path / "papers.toml",))
  from tests.experiment import tiny_experiment

  return lambda *arguments: experiment.execute(tiny_experiment, ["tiny", *arguments])


def test_a_finished_run_is_quoted_with_its_figure(quoted, tmp_path):
  directory = tmp_path / "laptop"
  quoted("--preset=laptop", f"--workdir={directory}")
  assert catalogue.main([f"--quote={directory}"]) == 0
  copied = (tmp_path / "results" / "tiny.json").read_bytes()
  assert copied == (directory / "results.json").read_bytes()
  picture = (tmp_path / "figures" / "tiny.png").read_bytes()
  assert picture[:4] == b"\x89PNG" and len(picture) <= 80_000
  # The same run, had it been interrupted.
  stored = workdir.load_json(directory / "results.json")
  workdir.save_json(directory / "results.json", stored | {"wall_seconds": None})
  with pytest.raises(ValueError, match="not from one unbroken run"):
    catalogue.quote(directory)


def test_a_pilot_is_kept_as_the_record_of_a_selection(quoted, tmp_path):
  directory = tmp_path / "pilot"
  quoted("--preset=smoke", "--rate=0.2", "--pilot", f"--workdir={directory}")
  assert catalogue.quote(directory) == "tiny"
  stored = workdir.load_json(tmp_path / "selections" / "tiny.json")
  assert stored["pilot"] and "--pilot" in stored["command"]
  assert not list((tmp_path / "results").iterdir())


def test_what_is_no_laptop_run_is_not_quoted(quoted, tmp_path, capsys):
  assert catalogue.main([f"--quote={tmp_path}"]) == 1
  assert "holds no results.json" in capsys.readouterr().err
  quoted("--preset=smoke", f"--workdir={tmp_path / 'smoke'}")
  with pytest.raises(ValueError, match="with preset = 'smoke', the laptop preset has 'laptop'"):
    catalogue.quote(tmp_path / "smoke")
  quoted("--preset=laptop", "--rate=0.2", f"--workdir={tmp_path / 'changed'}")
  with pytest.raises(ValueError, match="config.rate = 0.2, the laptop preset has 0.1"):
    catalogue.quote(tmp_path / "changed")
  assert not list((tmp_path / "results").iterdir())


def test_the_tally_counts_verdicts():
  claims = [experiment.compare("c", [2.0, 2.1 + i], 1.0) for i in range(2)]
  assert catalogue.tally(claims) == "1 shown, 1 unresolved"
  assert catalogue.tally([]) == ""
