"""The wall around every program: whatever ends it ends in one line and an exit status.

A traceback is for faults of ours. What cannot be obeyed, what the machine refuses and what a signal
ends is said in a line; `--debug` shows the traceback of that too.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxlab.experiment.flags import UsageError
from jaxlab.experiment.workdir import DamagedFileError
from jaxlab.training.checkpoint import CorruptCheckpointError
from jaxlab.training.loop import Interrupted, NonFiniteLossError, runtime_failed
from jaxlab.training.provenance import MismatchError


class Stopped(BaseException):
  """A signal came outside of training; no `except Exception` in between may swallow it.

  Attributes:
    signum: the signal's number.
    abandons: whether a program still runs on the devices, whose results nobody waits for.
  """

  def __init__(self, signum: int, *, abandons: bool = False):
    super().__init__(signum)
    self.signum = signum
    self.abandons = abandons

  def __str__(self) -> str:
    return f"stopped by {signal.Signals(self.signum).name}"


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
  """Turns SIGTERM and SIGINT into `Stopped`; `fit`, which saves first, has its own handlers."""

  def stop(signum: int, frame: Any) -> None:
    raise Stopped(signum)

  previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def guard(
  run: Callable[[], int], *, debug: bool = False, resume: str = "", advice: str = ""
) -> int:
  """Runs a program, or a part of one that knows more about how to go on.

  Standard streams that are closed become the null device, text that the output cannot encode is
  written as escapes, and bytes of the input that are no text become halves of surrogate pairs.

  Args:
    run: the program; returns its exit status.
    debug: whether to show the traceback of what ended it.
    resume: how to go on after a signal.
    advice: what to say of a training that broke down.

  Returns:
    The exit status: that of the program; 2 for a `UsageError`; 128 and the signal's number; 1 for
    a training that broke down, a missing package, or what the machine refuses, such as a full disk.
  """
  _open_streams()
  try:
    status = run()
    sys.stdout.flush()
    return status
  except BaseException as error:
    ending = _ending(error, resume, advice)
    if ending is None:
      raise
    line, status = ending
    with contextlib.suppress(OSError):
      if debug:
        traceback.print_exc()
      print(line, file=sys.stderr, flush=True)
    _give_up_output()
    if _lost_a_process(error) or (isinstance(error, Stopped) and error.abandons):
      os._exit(status)  # To leave in order is to wait for what is gone, or no longer wanted.
    return status


def _ending(error: BaseException, resume: str, advice: str) -> tuple[str, int] | None:
  """The line and the status of what ended a program, None if that is a fault of ours."""
  text = " ".join(str(error).splitlines())
  if isinstance(error, KeyboardInterrupt):
    error = Stopped(signal.SIGINT)
  if isinstance(error, Interrupted | Stopped):
    return f"{error}; {resume}" if resume else f"{error}.", 128 + error.signum
  if isinstance(error, UsageError):
    return f"error: {text}", 2
  if isinstance(error, NonFiniteLossError):
    return f"error: {text}; {advice}" if advice else f"error: {text}.", 1
  if isinstance(error, BrokenPipeError):
    return "error: the output was closed before its end.", 1
  if isinstance(error, MemoryError) or (
    isinstance(error, jax.errors.JaxRuntimeError) and text.startswith("RESOURCE_EXHAUSTED")
  ):
    return f"error: out of memory. {text}".rstrip(), 1
  if _lost_a_process(error):
    where = " ".join(getattr(error, "__notes__", ()))
    text = f"process {jax.process_index()} cannot reach another one {where}".rstrip() + f": {text}"
    return f"error: {text[:300]}; {resume}", 1
  if isinstance(error, CorruptCheckpointError | DamagedFileError | MismatchError):
    return f"error: {text}", 1
  if isinstance(error, ImportError | OSError):
    return f"error: {text}", 1
  return None


def _lost_a_process(error: BaseException) -> bool:
  """Whether a collective failed, as it does where another process has ended."""
  return runtime_failed(error) and jax.process_count() > 1


def _open_streams() -> None:
  for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- open as long as the program runs
  for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors=errors)


def _give_up_output() -> None:
  """Python writes what is left of the output at its end, and would fail again."""
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
