import importlib
import pathlib
import runpy
import subprocess
import sys
import tomllib

import pytest

from jaxlab import commands

ROOT = pathlib.Path(__file__).parents[2]


def run(capsys, *arguments):
  """Exit status, what was printed, and what was said of errors."""
  with pytest.raises(SystemExit) as exit:
    commands.main(["jaxlab", *arguments])
  return exit.value.code, *capsys.readouterr()


def test_alone_it_lists_the_commands(capsys):
  status, out, err = run(capsys)
  assert (status, err) == (0, "") and run(capsys, "--help") == (0, out, "")
  assert [line.split()[0] for line in out.splitlines()[2:-2]] == list(commands.COMMANDS)


@pytest.mark.parametrize(
  "name, near",
  [("finetun", "finetune"), ("xyz", "audit, chat, finetune, reinforce, sample, score")],
)
def test_an_unknown_command_names_the_near_ones(capsys, name, near):
  message = f"error: there is no command {name!r}; there is {near}.\n"
  assert run(capsys, name) == (2, "", message)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_command_is_a_module_of_its_own_too(capsys, monkeypatch, name):
  status, out, err = run(capsys, name, "--help")
  assert (status, err) == (0, "") and f"  jaxlab {name} " in out
  monkeypatch.setattr("sys.argv", [name, "--help"])
  monkeypatch.delitem(sys.modules, f"jaxlab.commands.{name}")
  with pytest.raises(SystemExit):
    runpy.run_module(f"jaxlab.commands.{name}", run_name="__main__", alter_sys=True)
  assert capsys.readouterr().out == out


def test_an_interrupt_while_packages_are_imported(capsys, monkeypatch):
  def interrupt(name):
    raise KeyboardInterrupt

  monkeypatch.setattr(commands.importlib, "import_module", interrupt)
  assert run(capsys, "chat") == (130, "", "stopped by SIGINT.\n")


def test_the_list_is_whole():
  files = pathlib.Path(commands.__file__).parent.glob("*.py")
  programs = {path.stem for path in files if 'if __name__ == "__main__":\n' in path.read_text()}
  assert programs == set(commands.COMMANDS)


def test_the_list_needs_no_jax():
  script = "import sys, jaxlab.commands; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_the_entry_point_is_main():
  scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
  module, _, name = scripts["jaxlab"].partition(":")
  assert getattr(importlib.import_module(module), name) is commands.main
