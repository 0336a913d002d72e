import shutil

import pytest

from experiments import __main__ as program
from experiments import common, report, workdir
from tests.experiments import tiny_experiment as tiny


def lines(capsys, *arguments, **keywords):
  assert program.main(list(arguments), **keywords) == 0
  return capsys.readouterr().out.splitlines()


def slugs(output):
  """The second words of the table's rows; the rule under its head has one word."""
  rows = [line.split() for line in output[:-1]]
  return [row[1] for row in rows if len(row) > 1 and row[1] != "slug"]


def test_lists_families_slugs_titles_states(capsys):
  output = lines(capsys)
  assert set(slugs(output)) >= {"pfn", "lc_pfn"}
  (row,) = (line for line in output if line.split()[1:2] == ["pfn"])
  assert row.split()[0] == "bayes" and "Transformers Can Do Bayesian Inference" in row
  assert "measured" in row or "hold" in row


def test_filters(capsys):
  assert set(slugs(lines(capsys, "--family=bayes"))) >= {"pfn", "lc_pfn"}
  assert slugs(lines(capsys, "--search=CURVE extrapolation")) == ["lc_pfn"]
  assert slugs(lines(capsys, "--search=bar_nll")) == ["pfn"]
  assert slugs(lines(capsys, "--search=no such words")) == []


def test_shows_one_paper(capsys):
  text = "\n".join(lines(capsys, "--show=lc_pfn"))
  for part in ("NeurIPS 2023", "https://arxiv.org/abs/2310.20447", "--preset=paper: "):
    assert part in text
  assert "python -m experiments.bayes.lc_pfn" in text
  assert "jaxlab.samplers.affine_invariant_mcmc" in text


def test_shows_what_was_measured(capsys, tmp_path):
  results = tmp_path / "experiments" / "results"
  results.mkdir(parents=True)
  shutil.copy(tiny.PAPERS, results.parent / "papers.toml")
  assert "Nothing was measured yet." in lines(capsys, "--show=tiny", root=tmp_path)
  content = {"slug": "tiny", "preset": "laptop", "seeds": 3}
  measured = common.Results({"ours": {"nll": [1.0, 2.0, 4.0]}})
  claims = [report.Claim("It is good", False, 2.3, 2.0)]
  workdir.write_json(results / "tiny.json", content | report.to_stored(measured, claims))
  text = "\n".join(lines(capsys, "--show=tiny", root=tmp_path))
  assert "tiny, laptop, 3 seeds" in text and "2.33 ± 0.88" in text
  assert "does not hold: It is good (measured 2.3, baseline 2)" in text
  assert "0 of 1 hold" in "\n".join(lines(capsys, root=tmp_path))


@pytest.mark.parametrize(
  "argument,words",
  [
    ("--show=pfm", "no paper 'pfm' in the catalogue; there is pfn"),
    ("--family=bays", "--family=bays is no family; there is bayes"),
  ],
)
def test_wrong_names_exit_2(capsys, argument, words):
  assert program.main([argument]) == 2
  assert words in capsys.readouterr().err


def test_wrong_flags_exit_2(capsys):
  with pytest.raises(SystemExit) as caught:
    program.main(["--shw=pfn"])
  assert caught.value.code == 2 and "--shw=pfn" in capsys.readouterr().err
