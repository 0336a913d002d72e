"""Executes the notebooks: `python -m colabs.execute [--write] [NAME ...]`.

A cell that raises ends the run with its traceback and exit status 1. `--write` keeps the executed
notebooks, without what changes between runs (execution times, widget states).
"""

import argparse
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent


def execute(path: pathlib.Path, *, timeout: int = 300):
  """Executes one notebook in a fresh kernel, in the repository's root.

  Args:
    path: the notebook.
    timeout: seconds that one cell may take.

  Returns:
    The executed notebook (an `nbformat` node); the file is left as it is.

  Raises:
    nbclient.exceptions.CellExecutionError: if a cell raises.
  """
  import nbclient
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=timeout,
    coalesce_streams=True,
    resources={"metadata": {"path": str(FOLDER.parent)}},
  )
  # The kernel draws into the notebook, whatever backend this process uses.
  client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)
  notebook.metadata.pop("widgets", None)
  return notebook


def main() -> int:
  """Executes the named notebooks, or all."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("names", nargs="*", help="notebooks without .ipynb; default: all")
  parser.add_argument("--write", action="store_true", help="keep the executed notebooks")
  options = parser.parse_args()
  import nbformat

  known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
  for name in options.names:
    if name not in known:
      parser.error(f"no notebook {name!r}; there are {', '.join(known)}")
  for name in options.names or known:
    notebook = execute(FOLDER / f"{name}.ipynb")
    print(f"{name}: {len(notebook.cells)} cells ran")
    if options.write:
      nbformat.write(notebook, FOLDER / f"{name}.ipynb")
  return 0


if __name__ == "__main__":
  sys.exit(main())
