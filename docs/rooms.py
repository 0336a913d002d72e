"""The sources of the reference: a page a room, a section a family, read by Sphinx's autodoc."""

import ast
import importlib
import inspect
import pathlib

import jaxlab


def write(folder: pathlib.Path) -> None:
  """Writes `<room>.rst` for every room of `jaxlab.__all__`."""
  folder.mkdir(exist_ok=True)
  for room in jaxlab.__all__:
    if not room.startswith("__"):
      (folder / f"{room}.rst").write_text(page(f"jaxlab.{room}"))


def page(room: str) -> str:
  """The page of one room in reStructuredText.

  Args:
    room: its address, as `jaxlab.losses`.

  Returns:
    The room's docstring; then for every module that the room exports something of, the module's
    docstring and an autodoc directive for each name, under its public address.

  Raises:
    KeyError: if `__all__` has a name that the room imports from nowhere.
  """
  module = importlib.import_module(room)
  homes = _homes(module)
  families = {}
  for name in getattr(module, "__all__", ()):
    families.setdefault(homes[name], []).append(name)
  parts = [".. highlight:: python", _heading(room, "=")]
  parts.append(f".. automodule:: {room}\n   :no-members:")
  for family in sorted(families):
    title = family.removeprefix(f"{room}.").replace("_", " ")
    parts += [_heading(title, "-"), inspect.getdoc(importlib.import_module(family))]
    for name in families[family]:
      parts.append(f".. {_directive(getattr(module, name))}:: {room}.{name}")
  return "\n\n".join(parts) + "\n"


def _homes(module) -> dict[str, str]:
  # Read from the import statements: a constant does not know where it was written.
  return {
    alias.name: node.module
    for node in ast.walk(ast.parse(inspect.getsource(module)))
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }


def _heading(text: str, line: str) -> str:
  return f"{text}\n{line * len(text)}"


def _directive(value) -> str:
  if isinstance(value, type):
    return "autoclass"
  return "autofunction" if callable(value) else "autodata"
