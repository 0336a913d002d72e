"""The notebooks run from nothing, and what is kept of them is what they print."""

import pathlib
import re
import sys

import jax
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from colabs import execute

NOTEBOOKS = sorted(execute.FOLDER.glob("*.ipynb"))
MAX_BYTES = 400_000
ABSOLUTE_PATH = re.compile(
  r"(?<![\w.:/])/(home|root|tmp|usr|var|opt|mnt|work|Users|content)/|site-packages|[A-Z]:\\\\"
)
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@pytest.fixture
def kernel_environment(monkeypatch):
  """What a kernel inherits: the tests' compilation cache, but not their simulated devices."""
  monkeypatch.delenv("NPROC", raising=False)
  # Notebooks train in scans, which the flags of the tests slow down by half.
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
  """All text that a cell put out; how it was cut into pieces depends on the moment."""
  return "".join(
    output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
    for output in cell.outputs
  )


def pictures(cell) -> int:
  return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def without_numbers(text: str) -> str:
  """Text whose numbers may differ from machine to machine."""
  return " ".join(NUMBER.sub("#", text).split())


def by_name(path: pathlib.Path) -> str:
  return path.stem


def test_there_are_notebooks():
  names = {"adaptation", "alignment", "compose", "inference_scaling", "label_errors", "language"}
  assert {*names, "pfn", "series", "uncertainty"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_kept_notebook_was_executed_whole(path):
  assert path.stat().st_size < MAX_BYTES
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  cells = code_cells(notebook)
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert "%pip install" in cells[0].source
  assert any(pictures(cell) for cell in cells)
  for cell in cells:
    kinds = [output.output_type for output in cell.outputs]
    assert "error" not in kinds
    assert "stderr" not in [output.get("name") for output in cell.outputs]
    assert "execution" not in cell.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_kept_notebook_names_no_place_of_one_machine(path):
  for cell in nbformat.read(path, as_version=4).cells:
    text = cell.source + (printed(cell) if cell.cell_type == "code" else "")
    assert not ABSOLUTE_PATH.search(text)
    assert str(execute.FOLDER.parent) not in text


@pytest.mark.notebook
@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, marks=[pytest.mark.first_of_family] if path.stem == "compose" else [])
    for path in NOTEBOOKS
  ],
  ids=by_name,
)
def test_a_notebook_runs_and_prints_what_is_kept(path, kernel_environment):
  kept = code_cells(nbformat.read(path, as_version=4))
  fresh = code_cells(execute.execute(path, timeout=500))
  for old, new in zip(kept, fresh, strict=True):
    assert without_numbers(printed(old)) == without_numbers(printed(new)), old.source
    assert pictures(old) == pictures(new), old.source


# ------------------------------------------------------------------------------------- the executor


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder of two notebooks, one of which raises."""
  monkeypatch.setattr(execute, "FOLDER", tmp_path / "colabs")
  execute.FOLDER.mkdir()
  for name, source in (("good", "print(6 * 7)"), ("bad", "1 / 0")):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, execute.FOLDER / f"{name}.ipynb")
  return execute.FOLDER


def run_main(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["execute", *arguments])
  return execute.main()


def test_write_keeps_the_outputs(folder, monkeypatch, capsys):
  before = (folder / "good.ipynb").read_text()
  assert run_main(monkeypatch, "good") == 0
  assert (folder / "good.ipynb").read_text() == before
  assert run_main(monkeypatch, "--write", "good") == 0
  (cell,) = nbformat.read(folder / "good.ipynb", as_version=4).cells
  assert printed(cell) == "42\n"
  assert "execution" not in cell.metadata
  assert "good: 1 cells ran" in capsys.readouterr().out


def test_a_cell_that_raises_ends_the_run(folder, monkeypatch):
  with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
    run_main(monkeypatch, "--write", "bad")
  assert not nbformat.read(folder / "bad.ipynb", as_version=4).cells[0].outputs


def test_an_unknown_notebook_is_named(folder, monkeypatch, capsys):
  with pytest.raises(SystemExit):
    run_main(monkeypatch, "ugly")
  message = capsys.readouterr().err
  assert "'ugly'" in message and "bad, good" in message
