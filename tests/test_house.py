"""Rules of the code base that import-linter does not enforce."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import jaxlab

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = [name for name in jaxlab.__all__ if not name.startswith("__")]
PAPERS = tomllib.loads((ROOT / "experiments" / "papers.toml").read_text())
PACKAGES = [f"jaxlab.{room}" for room in ROOMS]
HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "orbax", "sklearn", "matplotlib", "pandas")


def modules_after(statement: str) -> set[str]:
  """The top-level modules that a fresh interpreter has loaded after `statement`."""
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
  """`import jaxlab` must load no heavy module beyond those of `import jax, flax, optax, chex`."""
  added = modules_after(statement) - modules_after("import jax, flax, optax, chex")
  assert not added & set(HEAVY)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_export_their_public_functions(room):
  module = importlib.import_module(f"jaxlab.{room}")
  assert module.__doc__
  names = list(getattr(module, "__all__", []))
  assert names == sorted(names, key=str.lower)
  for name in names:
    assert getattr(module, name).__doc__, f"jaxlab.{room}.{name} has no docstring"


@pytest.mark.parametrize("package", [jaxlab, *map(importlib.import_module, PACKAGES)])
def test_dir_and_type_checkers_see_all_exports(package):
  """Names may be imported on first use, but type checkers need an import statement for each."""
  names = [*package.__all__]
  assert dir(package) == sorted(names)
  imported = {
    alias.asname or alias.name
    for node in ast.walk(ast.parse(pathlib.Path(package.__file__).read_text()))
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxlab")
    for alias in node.names
  }
  assert imported == set(names) - {"__version__"}


def modules_of(room: str) -> dict[str, set[str]]:
  """The modules of a room by address, with the public names that each defines."""
  modules = {}
  for path in sorted((ROOT / "jaxlab" / room).glob("[!_]*.py")):
    tree = ast.parse(path.read_text())
    assert "__all__" not in names_in(tree.body), f"{path.name} has an __all__ besides its room's"
    public = {name for name in names_in(tree.body) if not name.startswith("_")}
    assert public, f"{path.name} defines no public name and only re-exports"
    modules[f"jaxlab.{room}.{path.stem}"] = public
  return modules


def names_in(body: list[ast.stmt]) -> set[str]:
  """Names that a module defines itself: functions, classes and variables, not imports."""
  names = set()
  for node in body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names |= {leaf.id for x in targets for leaf in ast.walk(x) if isinstance(leaf, ast.Name)}
  return names


def test_every_public_name_has_one_address():
  rooms, homes = {}, {}
  for room in ROOMS:
    modules = modules_of(room)
    exported = importlib.import_module(f"jaxlab.{room}").__all__
    for module, names in modules.items():
      assert module.rpartition(".")[2] not in exported, f"{module} has the name of a function"
      for name in names:
        assert name not in homes, f"{name} is defined in {homes.get(name)} and in {module}"
        homes[name] = module
    for name in exported:
      assert name not in rooms, f"{name} is exported by {rooms.get(name)} and by {room}"
      rooms[name] = room
      assert homes.get(name) in modules, f"jaxlab.{room} exports {name}, which it does not define"


def test_names_are_imported_from_the_modules_that_define_them():
  homes = {module: names for room in ROOMS for module, names in modules_of(room).items()}
  for path in [*python_files(), *(ROOT / "tests").rglob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module in homes:
        foreign = {alias.name for alias in node.names} - homes[node.module]
        assert not foreign, f"{path.name} imports {foreign} from {node.module}"


ADDRESS = re.compile(rf"jaxlab\.(?:{'|'.join(ROOMS)})\.\w+\.\w+")


@pytest.mark.parametrize("pattern", ["*.md", "docs/*.md", "colabs/*.ipynb", "experiments/*.toml"])
def test_docs_show_only_public_addresses(pattern):
  for path in ROOT.glob(pattern):
    assert not ADDRESS.findall(path.read_text()), path.name


def test_unknown_room_raises_attribute_error():
  with pytest.raises(AttributeError, match="kitchen"):
    _ = jaxlab.kitchen


def python_files():
  return [
    path
    for folder in ("jaxlab", "experiments", "benchmarks", "colabs", "docs")
    for path in (ROOT / folder).rglob("*.py")
  ]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_not_imported(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("jaxlab", "exper")):
      private = [alias.name for alias in node.names if alias.name.startswith("_")]
      assert not private, f"{path.name} imports {private} from {node.module}"


ENTRY = re.compile(r"^ *((?:\*{0,2}\w+(?:, )?)+):", re.M)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_argument_is_documented(path):
  """Like ruff's D417, which does not accept `logits, borders: as in ...`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.FunctionDef) or "\nArgs:\n" not in (ast.get_docstring(node) or ""):
      continue
    section = ast.get_docstring(node).split("\nArgs:\n")[1].split("\n\n")[0]
    described = {name.strip("*") for entry in ENTRY.findall(section) for name in entry.split(", ")}
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    named = {arg.arg for arg in every if arg is not None and not arg.arg.startswith("_")}
    missing = named - described - {"self", "cls"}
    assert not missing, f"{path.name}: {node.name} does not document {missing}"


@pytest.mark.parametrize("slug", PAPERS)
def test_a_paper_is_one_short_file_or_a_short_package(slug):
  paths = [*ROOT.glob(f"experiments/*/{slug}.py"), *ROOT.glob(f"experiments/*/{slug}/__main__.py")]
  assert len(paths) == 1, f"{slug} is {[str(path.relative_to(ROOT)) for path in paths]}"
  files = paths if paths[0].stem == slug else [*paths[0].parent.rglob("*.py")]
  lines = {path.name: len(path.read_text().splitlines()) for path in files}
  assert max(lines.values()) <= 300 and sum(lines.values()) <= 600, lines
  beside = {path.stem for path in ROOT.glob(f"experiments/*/{slug}_*.py")} - set(PAPERS)
  assert not beside, f"{slug} has siblings {beside}: make it a package"
