"""What pip install of the wheel brings, outside of the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
UV = shutil.which("uv") or str(pathlib.Path(sys.executable).with_name("uv"))


def run(*command, cwd, **environment):
  kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=kept | environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A directory with a bare environment that holds the wheel and what it asks for."""
  home = tmp_path_factory.mktemp("home")
  steps = (
    (UV, "build", "--quiet", "--wheel", "--out-dir", home / "dist", ROOT),
    (UV, "venv", "--quiet", "--python", sys.executable, home / "env"),
  )
  for step in steps:
    status, _, errors = run(*step, cwd=home)
    assert status == 0, errors
  (wheel,) = (home / "dist").glob("*.whl")
  pinned = home / "pinned.txt"
  pinned.write_text(
    "\n".join(re.findall(r"^[\w.-]+==[^\\\n]+", (ROOT / "requirements.lock").read_text(), re.M))
  )
  status, _, errors = run(
    UV, "pip", "install", "--quiet", "-c", pinned, wheel, cwd=home, VIRTUAL_ENV=str(home / "env")
  )
  assert status == 0, errors
  (example,) = re.findall(
    r"## An experiment of your own\n.*?```python\n(.*?)```", (ROOT / "BUILD.md").read_text(), re.S
  )
  (home / "ridge.py").write_text(example)
  return home


def test_a_module_of_ones_own_is_a_program(home):
  python = home / "env" / "bin" / "python"
  status, output, errors = run(python, "ridge.py", "--penalty=1", "--seeds=8", cwd=home)
  assert status == 0, errors
  assert "Ridge regression against least squares, on few rows" in output
  assert re.search(r"^(shown|unresolved|refuted): ridge errs less \(.*n = 8\)$", output, re.M)
  # Another flag has a directory of its own, and a finished run prints what it stored.
  status, _, errors = run(python, "ridge.py", "--penalty=2", "--seeds=8", cwd=home)
  assert status == 0, errors
  names = sorted(path.name for path in (home / "runs" / "ridge").iterdir())
  assert names == ["default,penalty=1.0,seeds=8", "default,penalty=2.0,seeds=8"]
  assert run(python, "ridge.py", "--penalty=1", "--seeds=8", cwd=home)[1].splitlines()[-1] in output
  status, _, errors = run(python, "ridge.py", "--penlty=1", cwd=home)
  assert status == 2 and "there is --penalty" in errors


def test_experiments_stay_outside_and_commands_come_along(home):
  python = home / "env" / "bin" / "python"
  status, _, errors = run(python, "-c", "import experiments", cwd=home)
  assert status == 1 and "No module named 'experiments'" in errors
  status, output, errors = run(home / "env" / "bin" / "jaxlab", "--help", cwd=home)
  assert status == 0 and "finetune" in output and "chat" in output, errors
