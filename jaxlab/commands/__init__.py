"""Programs for people's own files and checkpoints: `jaxlab chat`, `finetune`, `sample`, ...

A command is a module of this room, and `python -m jaxlab.commands.chat` is `jaxlab chat`.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

# Every command is a module of its name. They are imported when called: JAX takes seconds.
COMMANDS = {
  "audit": "finds labels of a file or a table that are probably wrong",
  "chat": "talks to a language model in a Hugging Face directory",
  "finetune": "fine-tunes one on responses or on preferences",
  "reinforce": "trains one on its own responses, which a function verifies",
  "sample": "samples from one, or from two, and chooses among the samples",
  "score": "scores a file of samples: coverage, votes, verifiers, and their curves",
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command that a command line names, and exits with its status.

  Args:
    argv: the program's name, the command and its flags; None for those of this process.
  """
  name, *arguments = (sys.argv if argv is None else argv)[1:] or ["--help"]
  if name in ("--help", "-h"):
    print(_usage())
    sys.exit(0)
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=3) or COMMANDS
    print(f"error: there is no command {name!r}; there is {', '.join(near)}.", file=sys.stderr)
    sys.exit(2)
  try:
    program = importlib.import_module("jaxlab.commands.program")
    module = importlib.import_module(f"jaxlab.commands.{name}")
  except KeyboardInterrupt:
    print("stopped by SIGINT.", file=sys.stderr)
    sys.exit(130)
  program.main(module, [f"jaxlab {name}", *arguments])


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
  more = "`jaxlab COMMAND --help` lists the flags of a command."
  return "\n".join(["jaxlab COMMAND [--flag=value ...]", "", *lines, "", more])
