"""Files of JSON lines that a killed run goes on with after the last complete line."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlab._json import as_json
from jaxlab.experiment import UsageError
from jaxlab.experiment.workdir import encode_json, names_file


def check_new(flag: str, path: pathlib.Path, *, begun: bool) -> None:
  """Raises if a file is there that is not of the run.

  Args:
    flag: that names the file.
    path: the file.
    begun: whether the run has begun earlier, so that the file is its own.

  Raises:
    UsageError: naming flag and file.
  """
  if os.path.lexists(path) and not begun:
    raise UsageError(f"--{flag}={path} is there already; nothing is overwritten.")


def continue_lines(flag: str, path: pathlib.Path, expected: Sequence[int]) -> int:
  """Prepares a file for the lines that it lacks: one that was cut off at the end is removed.

  Args:
    flag: that names the file.
    path: the file, which may be missing.
    expected: number of the line of the prompt ("line") of all lines, in order.

  Returns:
    How many complete lines there are.

  Raises:
    UsageError: if a line is not what the run would have written there, or there are too many.
  """
  if not path.exists():
    return 0
  count, end = 0, 0
  with open(path, "r+b") as file:
    for count, text in enumerate(file):
      if not text.endswith(b"\n"):
        break
      place = f"--{flag}={path}, line {count + 1}"
      line = _parse(place, text)
      if count >= len(expected) or line.get("line") != expected[count]:
        raise UsageError(f"{place} is not what this run wrote there; nothing was changed.")
      end += len(text)
    else:
      count = count + 1 if end else 0
    file.truncate(end)
  return count


def _parse(place: str, text: bytes) -> dict[str, Any]:
  try:
    line = as_json(place, text)
  except ValueError as error:
    raise UsageError(str(error)) from error
  return line if isinstance(line, dict) else {}


def append_lines(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
  """Writes lines to the end of a file, so that they outlast the process.

  Args:
    path: the file, which is made if it is missing.
    lines: the objects.
  """
  text = "".join(json.dumps(encode_json(line), ensure_ascii=False) + "\n" for line in lines)
  path.parent.mkdir(parents=True, exist_ok=True)
  with names_file(path), open(path, "ab") as file:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The lines of a file that is complete.

  Args:
    path: the file.

  Yields:
    The objects.
  """
  with open(path, "rb") as file:
    for number, text in enumerate(file, 1):
      yield _parse(f"{path}, line {number}", text)
