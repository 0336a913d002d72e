import errno
import io
import os
import signal

import jax
import pytest

from jaxlab.experiment import Stopped, UsageError
from jaxlab.experiment.wall import guard
from jaxlab.experiment.workdir import DamagedFileError
from jaxlab.training import (
  CorruptCheckpointError,
  Interrupted,
  MismatchError,
  NonFiniteLossError,
)

FULL = OSError(errno.ENOSPC, "No space left on device", "out/model")
ENDINGS = [
  (UsageError("--rate=x is\nbad."), 2, "error: --rate=x is bad.\n"),
  (FULL, 1, "error: [Errno 28] No space left on device: 'out/model'\n"),
  (
    CorruptCheckpointError("every checkpoint is corrupt"),
    1,
    "error: every checkpoint is corrupt\n",
  ),
  (DamagedFileError("a.npz is damaged"), 1, "error: a.npz is damaged\n"),
  (MismatchError("a differs"), 1, "error: a differs\n"),
  (ImportError("needs rich: pip install rich"), 1, "error: needs rich: pip install rich\n"),
  (MemoryError(), 1, "error: out of memory.\n"),
  (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "error: out of memory. RESOURCE_EX"),
  (
    NonFiniteLossError(3, "loss", float("nan")),
    1,
    "error: loss is nan at step 3; nothing saved.\n",
  ),
  (Interrupted(4, signal.SIGTERM), 143, "stopped by SIGTERM after step 4; once more.\n"),
  (Stopped(signal.SIGINT), 130, "stopped by SIGINT; once more.\n"),
  (KeyboardInterrupt(), 130, "stopped by SIGINT; once more.\n"),
]


def raising(error):
  def run():
    raise error

  return run


@pytest.mark.parametrize("error, status, line", ENDINGS)
def test_every_ending_is_a_line_and_a_status(capsys, error, status, line):
  words = {"resume": "once more.", "advice": "nothing saved."}
  assert guard(raising(error), **words) == status
  out, err = capsys.readouterr()
  assert out == "" and err.startswith(line) and err.count("\n") == 1
  assert guard(raising(error), debug=True, **words) == status
  err = capsys.readouterr().err
  assert err.startswith("Traceback") and line in err


def test_a_program_that_still_runs_is_left_at_once(capsys, monkeypatch):
  def leave(status):
    raise SystemExit(status)

  monkeypatch.setattr("os._exit", leave)
  with pytest.raises(SystemExit, match="143"):
    guard(raising(Stopped(signal.SIGTERM, abandons=True)), resume="once more.")
  assert capsys.readouterr().err == "stopped by SIGTERM; once more.\n"


@pytest.mark.parametrize(
  "error", [ValueError("x"), TypeError("x"), jax.errors.JaxRuntimeError("INTERNAL: x")]
)
def test_faults_of_ours_keep_their_traceback(error):
  with pytest.raises(type(error)):
    guard(raising(error))


def say(text):
  def run():
    print(text)
    return 0

  return run


def test_what_a_program_returns_is_its_status(capsys):
  assert guard(lambda: 7) == 7
  assert guard(say("a")) == 0
  assert capsys.readouterr() == ("a\n", "")


def test_outputs_that_take_no_more(capsys, monkeypatch):
  reading, writing = os.pipe()
  os.close(reading)
  for output, line in (
    (os.fdopen(writing, "w"), "error: the output was closed before its end.\n"),
    (
      os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"),
      "error: [Errno 28] No space left on device\n",
    ),
  ):
    with monkeypatch.context() as patched, output:
      patched.setattr("sys.stdout", output)
      assert guard(say("a")) == 1
      print("what is written after it goes nowhere")
    assert capsys.readouterr().err == line


def test_streams_that_are_closed_or_narrow(monkeypatch):
  output = io.BytesIO()
  monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding="ascii"))
  monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
  assert guard(lambda: print("\u00e9", ascii(input())) or 0) == 0
  assert output.getvalue() == b"\\xe9 '\\udcff'\n"
  for name in ("stdin", "stdout", "stderr"):
    monkeypatch.setattr(f"sys.{name}", None)
  assert guard(say("a")) == 0
  assert guard(raising(UsageError("x"))) == 2
