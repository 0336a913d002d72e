"""Rows of prompts and responses, from JSON lines, JSON arrays or Parquet.

Columns are those that the field, and TRL, use:

  supervised   prompt, response (or completion); or messages; or text, of which all is learnt
  pairs        prompt, chosen, rejected; or another layout of `jaxlab.data.load_preferences`
  unpaired     prompt, response (or completion), label; or pairs
  prompts      prompt, and whatever a verifier of responses reads

Each of them but the label is text, or messages with role and content, which the chat template
writes out: a list of objects, or an object of lists as `datasets` keeps them. Pairs may leave out
the prompt: it is what both begin with, in text up to whole words. A prompt of text before messages
is the user's first turn, unless they begin with a turn of the user or the system.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from jaxlab._json import naming
from jaxlab.data.preference_files import group_ratings, has_pair, parse_pair
from jaxlab.data.records import (
  FileRecord,
  Text,
  after_prompt,
  check_same_type,
  has,
  parse_groups,
  read_records,
  require,
  response_column,
  text_column,
)
from jaxlab.experiment import UsageError

Kind = Literal["supervised", "pairs", "unpaired", "prompts"]
_SHOWN = 3
_Item = TypeVar("_Item")


class Row(NamedTuple):
  """What one line (or item of an array) says, in part if it has several examples.

  Attributes:
    line: its number.
    place: where it stands, for messages.
    prompt: text or messages; either may be empty.
    responses: one, or the chosen and the rejected one; of the type of the prompt.
    label: whether the response is a good one.
    columns: all columns of a prompt without responses.
  """

  line: int
  place: str
  prompt: Text
  responses: tuple[Text, ...]
  label: bool = True
  columns: Mapping[str, Any] = {}


def read_rows(
  path: str | os.PathLike, kind: Kind, *, split: str | None = None, skip_unusable: bool = False
) -> list[Row]:
  """Reads a file of JSON lines, where empty ones are passed over, of one JSON array, or of Parquet.

  Args:
    path: the file.
    kind: which columns it must have. The rows of "unpaired" have two responses: the second is that
      of the next row with another prompt.
    split: only rows whose column `split` is this; None for all.
    skip_unusable: whether to leave out rows that cannot be learnt from, and to print how many and
      the first of them.

  Returns:
    The rows.

  Raises:
    UsageError: if there is no such file or no row, or a line is not JSON, lacks a column or holds
      what cannot be learnt from; names file, line and column.
  """
  paired = kind in ("pairs", "unpaired")
  try:
    records = read_records(path, split=split)
    groups = group_ratings(records) if paired else ([record] for record in records)
    rows, faults = parse_groups(groups, _PARSERS[kind], skip_unusable=skip_unusable)
  except OSError as error:
    raise UsageError(f"--data={path} cannot be read: {error}") from error
  except (ImportError, ValueError) as error:
    raise UsageError(str(error)) from error
  tell_faults(faults)
  if not rows:
    raise UsageError(f"--data={path} has no rows.")
  return _with_mismatched(path, rows) if kind == "unpaired" else rows


def tell_faults(faults: Sequence[str]) -> None:
  """Prints how many rows were left out, and the first of them.

  Args:
    faults: what is wrong with each.
  """
  if faults:
    shown = "\n  ".join((*faults[:_SHOWN], *["..."] * (len(faults) > _SHOWN)))
    print(f"rows left out: {len(faults)}\n  {shown}", flush=True)


def read_usable(
  path: str | os.PathLike, parse: Callable[[FileRecord], _Item], *, flag: str
) -> tuple[list[_Item], list[str]]:
  """Makes something of every row of a file that can be used; what is wrong with others is told.

  Args:
    path: the file, as `read_rows` takes it.
    parse: of a row; raises ValueError where it cannot be used.
    flag: what names the file on the command line.

  Returns:
    The items, at least one, and what is wrong with the rows that are left out.

  Raises:
    UsageError: if there is no such file, or nothing in it can be used.
  """
  faults: list[str] = []

  def parse_one(group: Sequence[FileRecord]) -> list[_Item]:
    with naming(group[0].place):
      return [parse(group[0])]

  try:
    records = read_records(path, faults=faults)
    groups = ([record] for record in records)
    items, others = parse_groups(groups, parse_one, skip_unusable=True)
  except OSError as error:
    raise UsageError(f"{flag}={path} cannot be read: {error}") from error
  except (ImportError, ValueError) as error:
    raise UsageError(str(error)) from error
  faults += others
  if not items:
    raise UsageError(faults[0] if faults else f"{flag}={path} has no rows.")
  return items, faults


def parse_prompt(record: FileRecord) -> Row:
  """The row of a prompt without responses.

  Args:
    record: the row of the file.

  Returns:
    The `Row`.

  Raises:
    ValueError: naming the column at fault.
  """
  line, place, columns = record
  return Row(line, place, text_column(columns, "prompt"), (), columns=columns)


def _supervised(group: Sequence[FileRecord]) -> list[Row]:
  [(line, place, columns)] = group
  with naming(place):
    if has(columns, "messages"):
      return [Row(line, place, [], (response_column(columns, "messages"),))]
    if has(columns, "text") and not has(columns, "prompt"):
      text = response_column(columns, "text")
      return [Row(line, place, "" if isinstance(text, str) else [], (text,))]
    return [Row(line, place, *_single(columns))]


def _single(columns: dict[str, Any]) -> tuple[Text, tuple[Text]]:
  name = "completion" if has(columns, "completion") else "response"
  prompt, response = text_column(columns, "prompt"), response_column(columns, name)
  if isinstance(prompt, str) and isinstance(response, list):
    turns = after_prompt(prompt, response)
    start = len(turns) - len(response)
    prompt, response = turns[:start], turns[start:]
  check_same_type(prompt=prompt, **{name: response})
  return prompt, (response,)


def _pairs(group: Sequence[FileRecord]) -> list[Row]:
  pairs = parse_pair(group)
  return [Row(pair.line, pair.place, pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]


def _unpaired(group: Sequence[FileRecord]) -> list[Row]:
  line, place, columns = group[0]
  if has_pair(columns):
    return [
      row._replace(responses=(response,), label=label)
      for row in _pairs(group)
      for response, label in zip(row.responses, (True, False))
    ]
  with naming(place):
    label = require(columns, "label")
    if label not in (0, 1):
      raise ValueError(f"column 'label' must be true or false, 1 or 0, got {label!r}.")
    return [Row(line, place, *_single(columns), bool(label))]


def _prompts(group: Sequence[FileRecord]) -> list[Row]:
  with naming(group[0].place):
    return [parse_prompt(group[0])]


_PARSERS = {
  "supervised": _supervised,
  "pairs": _pairs,
  "unpaired": _unpaired,
  "prompts": _prompts,
}


def _with_mismatched(path, rows: list[Row]) -> list[Row]:
  paired = []
  for i, row in enumerate(rows):
    others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
    other = next((other for other in others if other.prompt != row.prompt), None)
    if other is None or isinstance(other.prompt, str) != isinstance(row.prompt, str):
      raise UsageError(f"--data={path}: responses without pairs need two prompts of one type.")
    paired.append(row._replace(responses=(*row.responses, *other.responses)))
  return paired
