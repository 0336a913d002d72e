"""Makes the API reference from the docstrings: `python -m docs.api [--write | --check]`."""

import argparse
import difflib
import importlib
import inspect
import pathlib
import sys

import jaxlab

PAGE = pathlib.Path(__file__).parent / "reference.md"


def reference() -> str:
  """The page: every public name of every room, its signature and what it is for."""
  parts = [
    "# API reference",
    "",
    "Made from the docstrings by `python -m docs.api --write`. `help(name)` tells the rest: shapes,"
    " units, errors, and the paper that a function comes from.",
  ]
  for room in (name for name in jaxlab.__all__ if not name.startswith("__")):
    module = importlib.import_module(f"jaxlab.{room}")
    names = getattr(module, "__all__", [])
    parts += ["", f"## jaxlab.{room}", "", inspect.getdoc(module).splitlines()[0]]
    for name in names:
      value = getattr(module, name)
      summary = inspect.getdoc(value).split("\n\n")[0].replace("\n", " ")
      parts += ["", f"### {name}", "", f"`{_signature(name, value)}`", "", summary]
  return "\n".join(parts) + "\n"


def _signature(name: str, value) -> str:
  # Every flax module takes these two; they say nothing about this one.
  hidden = ("parent", "name") if hasattr(value, "apply") else ()
  if not callable(value):
    return name
  if isinstance(value, type) and issubclass(value, BaseException):
    value = value.__init__
  parameters = inspect.signature(value).parameters.values()
  shown = [
    parameter.replace(annotation=inspect.Parameter.empty, default=_default(parameter.default))
    for parameter in parameters
    if parameter.name not in ("self", *hidden)
  ]
  return f"{name}{inspect.Signature(shown)}"


class _Named:
  """Shown by a name: the representation of a function holds its address, another in every run."""

  def __init__(self, name: str):
    self._name = name

  def __repr__(self) -> str:
    return self._name


def _default(value):
  if value is inspect.Parameter.empty or not callable(value):
    return value
  return _Named(getattr(value, "__name__", type(value).__name__))


def main() -> int:
  """Prints, writes or checks the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
  parser.add_argument("--check", action="store_true", help="exit 1 if the page is stale")
  options = parser.parse_args()
  page = reference()
  if options.write:
    PAGE.write_text(page)
  elif options.check:
    old = PAGE.read_text() if PAGE.exists() else ""
    if old != page:
      lines = list(difflib.unified_diff(old.splitlines(), page.splitlines(), lineterm="", n=0))
      print(f"{PAGE.name} is stale; run `make docs`:", *lines[2:22], sep="\n")
      return 1
  else:
    print(page)
  return 0


if __name__ == "__main__":
  sys.exit(main())
