"""Signals that stop a run: they are noted, and looked at where it is safe to stop."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignals:
  """Notes the first SIGTERM or SIGINT, which then does not end the process.

  A second one has its previous effect. A block inside another one notes the signal for both.

  Attributes:
    signum: the signal that was noted, or None.
  """

  def __init__(self, *, note: str = ""):
    """Sets no handler yet.

    Args:
      note: what to say on standard error when the signal comes.
    """
    self.signum: int | None = None
    self._note_text = note
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> StopSignals:
    # Python runs handlers, and lets them be set, in the main thread only.
    if threading.current_thread() is threading.main_thread():
      for signum in (signal.SIGTERM, signal.SIGINT):
        self._previous[signum] = signal.signal(signum, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def requested(self, *, agree: bool) -> bool:
    """Whether to stop; several processes decide together, in calls where all pass `agree`."""
    if jax.process_count() > 1:
      if not agree:
        return False
      self.signum = int(multihost_utils.process_allgather(np.int32(self.signum or 0)).max()) or None
    return self.signum is not None

  def _note(self, signum: int, frame: Any) -> None:
    self.signum = signum
    outer = getattr(self._previous.get(signum), "__self__", None)
    self._restore()
    if isinstance(outer, StopSignals):
      outer._note(signum, frame)
    elif self._note_text:
      print(f"{signal.Signals(signum).name}: {self._note_text}", file=sys.stderr, flush=True)

  def _restore(self) -> None:
    while self._previous:
      signum, handler = self._previous.popitem()
      # None stands for a handler that was not set from Python, which cannot be put back.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
