import signal
import subprocess
import sys

import pytest

from experiments import __main__ as program
from experiments import catalogue
from tests.experiments.test_catalogue import TINY, write_result


def lines(capsys, *arguments, **keywords):
  assert program.main(list(arguments), **keywords) == 0
  return capsys.readouterr().out.splitlines()


def slugs(output):
  """The second words of the table's rows; the rule under its head has one word."""
  rows = [line.split() for line in output[:-1]]
  return [row[1] for row in rows if len(row) > 1 and row[1] != "slug"]


def test_lists_families_slugs_titles_verdicts(capsys):
  output = lines(capsys)
  assert set(slugs(output)) >= {"pfn", "lc_pfn"}
  (row,) = (line for line in output if line.split()[1:2] == ["pfn"])
  assert row.split()[0] == "bayes" and "Transformers Can Do Bayesian Inference" in row


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
  (results.parent / "papers.toml").write_text(TINY)
  assert "Nothing was measured yet." in lines(capsys, "--show=tiny", root=tmp_path)
  assert "not measured" in "\n".join(lines(capsys, root=tmp_path))
  write_result(results)
  text = "\n".join(lines(capsys, "--show=tiny", root=tmp_path))
  assert "tiny, laptop, 3 seeds" in text and "1.100 ± 0.058" in text
  assert "shown: a|b (1.1 against 2.1, difference +1 [" in text
  text = "\n".join(lines(capsys, root=tmp_path))
  assert "shown" in text and "1 no test" in text


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


IMPORTS = """
import os, signal, sys
sys.argv = ["-m", *sys.argv[1:]]
import experiments
os.kill(os.getpid(), signal.SIGINT)
import time
time.sleep(9)
"""


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_ctrl_c_during_imports_is_a_line(debug):
  root = catalogue.ROOT
  command = [sys.executable, "-c", IMPORTS, *debug]
  # A shell starts what it puts into the background with this signal ignored.
  restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
  done = subprocess.run(command, cwd=root, capture_output=True, text=True, preexec_fn=restore)
  assert done.returncode in (-signal.SIGINT, 130)
  assert ("Traceback" in done.stderr) == bool(debug)
  assert bool(debug) or done.stderr == "stopped by SIGINT.\n"
