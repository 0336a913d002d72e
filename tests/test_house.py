"""The rules of the house that import-linter does not hold."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import jaxlab

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = [name for name in jaxlab.__all__ if not name.startswith("__")]
HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "orbax", "sklearn", "matplotlib", "pandas")


def modules_after(statement: str) -> set[str]:
  """The top-level modules that a fresh interpreter holds after `statement`."""
  script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return set(done.stdout.split())


@pytest.mark.parametrize(
  "statement",
  [
    "import jaxlab",
    "from jaxlab import losses, metrics, augment, weights, uncertainty, samplers",
    "from jaxlab import algorithms, data, models",
  ],
)
def test_imports_are_light(statement):
  """`import jaxlab` must cost little beside `import jax, flax, optax`."""
  brought = modules_after(statement) - modules_after("import jax, flax, optax, chex")
  assert not brought & set(HEAVY)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_export_their_public_functions(room):
  module = importlib.import_module(f"jaxlab.{room}")
  assert module.__doc__
  names = list(getattr(module, "__all__", []))
  assert names == sorted(names, key=str.lower)
  for name in names:
    assert getattr(module, name).__doc__, f"jaxlab.{room}.{name} has no docstring"


def test_an_unknown_room_is_an_attribute_error():
  with pytest.raises(AttributeError, match="kitchen"):
    _ = jaxlab.kitchen


def python_files():
  return [
    path
    for folder in ("jaxlab", "experiments", "benchmarks", "colabs", "docs")
    for path in (ROOT / folder).rglob("*.py")
  ]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_crosses_files(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("jaxlab", "exper")):
      private = [alias.name for alias in node.names if alias.name.startswith("_")]
      assert not private, f"{path.name} imports {private} from {node.module}"
