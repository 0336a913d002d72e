"""The README's examples run, and its commands and links exist."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^## ([^\n]*)\n\n```python\n(.*?)^```", TEXT, re.M | re.S)


def test_there_are_examples():
  assert len(EXAMPLES) == 3


@pytest.mark.example
@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_example_runs(code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", TEXT))))
def test_module_of_a_command_exists(module):
  assert importlib.util.find_spec(module)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([\w-]+)", TEXT, re.M))))
def test_make_target_exists(target):
  assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("document", ["README.md", "BUILD.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(document):
  links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", (ROOT / document).read_text())
  missing = [x for x in links if not x.startswith("http") and not (ROOT / x).exists()]
  assert not missing
