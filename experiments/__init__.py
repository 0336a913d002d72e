"""One program a paper: `python -m experiments` lists them."""

import sys


def _say_stopped(kind, error, traceback):
  """One line for Ctrl-C during imports, which take seconds before a program can look."""
  if issubclass(kind, KeyboardInterrupt) and "--debug" not in sys.argv:
    print("stopped by SIGINT.", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:  # Python is still looking for the program that it is to run.
  sys.excepthook = _say_stopped
