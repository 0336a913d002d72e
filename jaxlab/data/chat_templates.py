"""Chat templates, rendered in a process of their own under limits of time and memory.

A template comes with somebody else's checkpoint. Jinja's sandbox keeps it from reaching out, but
not from running for ever or filling the memory: only the system can. Rendering in one process that
stays also compiles a template once for all conversations.
"""

# The process runs this file and pays for every import.
import atexit
import contextlib
import datetime
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

_SECONDS = 5.0  # Of one processor, for a conversation.
_MEBIBYTES = 1024
_LOCK = threading.Lock()


def render_chat(
  template: str,
  messages: list[dict[str, Any]],
  *,
  add_generation_prompt: bool = False,
  bos_token: str = "",
  eos_token: str = "",
  **variables: Any,
) -> str:
  """Writes a conversation as the text that a model was trained on.

  The template runs in a sandbox, which shows it its variables and does not let it change them, and
  in a process of its own, which may take 5 seconds of a processor and 1 GiB of memory.

  Args:
    template: jinja template, as `Tokenizer.chat_template`.
    messages: turns, each with "role" and "content".
    add_generation_prompt: whether to end with the start of an assistant's turn.
    bos_token: text of the beginning of a sequence.
    eos_token: text of its end.
    **variables: other variables of the template, such as `tools`; as JSON can hold them.

  Returns:
    The text.

  Raises:
    ValueError: if the template calls `raise_exception`, as for roles out of order, is malformed,
      fails or exceeds its limits, or a variable is nothing that JSON can hold.
    ImportError: if the package jinja2 is not installed; names the extra.
  """
  if importlib.util.find_spec("jinja2") is None:
    raise ImportError("jinja2 is needed here: pip install 'jaxlab[text]'")
  variables |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
  variables |= {"bos_token": bos_token, "eos_token": eos_token}
  try:
    request = json.dumps([_SECONDS, template, variables])
  except (RecursionError, TypeError, ValueError) as error:
    raise ValueError(f"messages and variables must be JSON: {error}") from error
  text, problem = _ask(request)
  if problem is not None:
    raise ValueError(f"template fails: {problem}")
  return text


def _ask(request: str) -> tuple[str | None, str | None]:
  """The text, or what went wrong."""
  with _LOCK:
    process = _start(os.getpid())
    try:
      process.stdin.write(request + "\n")
      process.stdin.flush()
      answer = process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    except BaseException:
      # An interrupt: the answer would be taken for that to the next request.
      process.kill()
      _end(process)
      raise
    if not answer:
      status = _end(process)
      if status == -signal.SIGPROF:
        return None, f"it runs for more than {_SECONDS:g} s."
      return None, f"its process, of at most {_MEBIBYTES} MiB, ended with status {status}."
  return json.loads(answer)


@functools.lru_cache(maxsize=1)
def _start(pid: int) -> subprocess.Popen:
  """The process that renders for process `pid`: a fork has pipes of its own."""
  del pid
  paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
  process = subprocess.Popen(
    [sys.executable, "-P", __file__],
    env=os.environ | {"PYTHONPATH": paths},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    encoding="ascii",
  )
  atexit.register(_end, process)
  return process


def _end(process: subprocess.Popen) -> int:
  """The status of a process that has ended or was killed; the next request starts another."""
  _start.cache_clear()
  with contextlib.suppress(BrokenPipeError):
    process.stdin.close()
  process.stdout.close()
  return process.wait()


def _serve() -> None:
  """Answers each line, a request, by a line: the text and None, or None and what went wrong."""
  import resource

  import jinja2
  import jinja2.sandbox

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends with the process that asks.
  size = _MEBIBYTES << 20
  resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
  environment.filters["tojson"] = _to_json
  compiled = functools.lru_cache(maxsize=8)(environment.from_string)
  for line in sys.stdin:
    try:
      seconds, template, variables = json.loads(line)
      # Unlike an exception, the signal also ends what is one operation to Python.
      signal.setitimer(signal.ITIMER_PROF, seconds)
      answer = json.dumps([compiled(template).render(variables), None])
    except jinja2.TemplateError as error:
      answer = json.dumps([None, str(error)])
    except Exception as error:  # A template can raise whatever Python can.
      answer = json.dumps([None, f"{type(error).__name__} {error}".rstrip()])
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(answer, flush=True)


def _raise(message: str) -> None:
  import jinja2

  raise jinja2.TemplateError(message)


def _now(format: str) -> str:
  return datetime.datetime.now().strftime(format)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """JSON as it is; jinja's own filter escapes it for HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


if __name__ == "__main__":
  _serve()
