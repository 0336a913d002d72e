"""JSONL files, or JSON arrays, of prompts and responses.

Columns are those that the field, and TRL, use:

  supervised   prompt, response (or completion); or messages; or text, of which all is learnt
  pairs        prompt, chosen, rejected
  unpaired     prompt, response (or completion), label; or pairs
  prompts      prompt, and whatever a verifier of responses reads

Each of them but the label is text, or messages with role and content, which the chat template
writes out: a list of objects, or an object of lists as `datasets` keeps them. Pairs may leave out
the prompt: it is what both begin with, in text up to whole words. A prompt of text before messages
is the user's first turn, unless they begin with a turn of the user or the system.
"""

import codecs
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from jaxlab._checks import as_json
from jaxlab.experiment import UsageError

Kind = Literal["supervised", "pairs", "unpaired", "prompts"]
Text = str | list[dict[str, Any]]


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


def read_rows(path: str | os.PathLike, kind: Kind) -> list[Row]:
  """Reads a file of JSON lines, where empty ones are passed over, or of one JSON array.

  Args:
    path: the file.
    kind: which columns it must have. The rows of "unpaired" have two responses: the second is that
      of the next row with another prompt.

  Returns:
    The rows.

  Raises:
    UsageError: if there is no such file or no row, or a line is not JSON, lacks a column or holds
      what cannot be learnt from; names file, line and column.
  """
  rows = []
  try:
    for number, place, columns in _values(path):
      rows += _parse(number, place, columns, kind)
  except OSError as error:
    raise UsageError(f"--data={path} cannot be read: {error}") from error
  except ValueError as error:
    raise UsageError(str(error)) from error
  if not rows:
    raise UsageError(f"--data={path} has no rows.")
  return _with_mismatched(path, rows) if kind == "unpaired" else rows


def _values(path) -> Iterator[tuple[int, str, Any]]:
  """Number, name and content of each line or item."""
  content = pathlib.Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
  if content.lstrip().startswith(b"["):
    for number, item in enumerate(as_json(path, content), 1):
      yield number, f"{path}, row {number}", item
    return
  for number, line in enumerate(content.split(b"\n"), 1):
    if line.strip():
      place = f"{path}, line {number}"
      yield number, place, as_json(place, line)


def _parse(number: int, place: str, columns: Any, kind: Kind) -> list[Row]:
  try:
    if not isinstance(columns, dict):
      raise ValueError(f"must be an object of columns, got {type(columns).__name__}.")
    return [Row(number, place, *fields) for fields in _PARSERS[kind](columns)]
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from error


def _supervised(columns: dict[str, Any]) -> list[tuple]:
  if "messages" in columns:
    return [([], (_response(columns, "messages"),))]
  if "text" in columns and "prompt" not in columns:
    text = _response(columns, "text")
    return [("" if isinstance(text, str) else [], (text,))]
  return [_single(columns)]


def _single(columns: dict[str, Any]) -> tuple:
  name = "completion" if "completion" in columns else "response"
  prompt, response = _column(columns, "prompt"), _response(columns, name)
  if isinstance(prompt, str) and isinstance(response, list):
    turns = _after(prompt, response)
    start = len(turns) - len(response)
    prompt, response = turns[:start], turns[start:]
  _check_same_type(prompt=prompt, **{name: response})
  return prompt, (response,)


def _pairs(columns: dict[str, Any]) -> list[tuple]:
  chosen, rejected = _response(columns, "chosen"), _response(columns, "rejected")
  _check_same_type(chosen=chosen, rejected=rejected)
  prompt = _column(columns, "prompt") if "prompt" in columns else None
  if isinstance(prompt, str) and isinstance(chosen, list):
    prompt, chosen, rejected = None, _after(prompt, chosen), _after(prompt, rejected)
  if prompt is None:
    shared = _num_shared(chosen, rejected)
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not (prompt and chosen and rejected) or chosen == rejected:
      raise ValueError("columns 'chosen' and 'rejected' must begin alike and end differently.")
  _check_same_type(prompt=prompt, chosen=chosen, rejected=rejected)
  return [(prompt, (chosen, rejected))]


def _after(prompt: str, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The turns, behind a prompt that they do not begin with."""
  if turns[0]["role"] != "assistant":
    return turns
  return [{"role": "user", "content": prompt}, *turns]


def _unpaired(columns: dict[str, Any]) -> list[tuple]:
  if "chosen" in columns:
    [(prompt, (chosen, rejected))] = _pairs(columns)
    return [(prompt, (chosen,), True), (prompt, (rejected,), False)]
  label = _require(columns, "label")
  if label not in (0, 1):
    raise ValueError(f"column 'label' must be true or false, 1 or 0, got {label!r}.")
  return [(*_single(columns), bool(label))]


def _prompts(columns: dict[str, Any]) -> list[tuple]:
  return [(_column(columns, "prompt"), (), True, columns)]


_PARSERS = {
  "supervised": _supervised,
  "pairs": _pairs,
  "unpaired": _unpaired,
  "prompts": _prompts,
}


def _require(columns: dict[str, Any], name: str) -> Any:
  if name not in columns:
    raise ValueError(f"column {name!r} is missing; there are {', '.join(columns) or 'none'}.")
  return columns[name]


def _column(columns: dict[str, Any], name: str) -> Text:
  value = _require(columns, name)
  if isinstance(value, dict):
    value = _turns(value, name)
  if not isinstance(value, str | list):
    raise ValueError(f"column {name!r} must be text or messages, got {type(value).__name__}.")
  if not value:
    raise ValueError(f"column {name!r} is empty.")
  for i, turn in enumerate(value if isinstance(value, list) else []):
    told = isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("role", "content"))
    if not told:
      raise ValueError(f"column {name!r}, message {i} must have role and content, both text.")
  return value


def _turns(lists: dict[str, Any], name: str) -> list[dict[str, Any]]:
  """Messages that are an object of lists."""
  lengths = {key: len(value) for key, value in lists.items() if isinstance(value, list)}
  if lengths.keys() != lists.keys() or len(set(lengths.values())) != 1:
    raise ValueError(
      f"column {name!r} must be text, messages or lists of one length of their keys."
    )
  return [dict(zip(lists, turn)) for turn in zip(*lists.values())]


def _response(columns: dict[str, Any], name: str) -> Text:
  value = _column(columns, name)
  if isinstance(value, list):
    said = [turn["content"] for turn in value if turn["role"] == "assistant"]
    if not said:
      raise ValueError(f"column {name!r} has no turn of the assistant: nothing to learn from.")
    if "" in said:
      raise ValueError(f"column {name!r} has an empty turn of the assistant.")
  return value


def _check_same_type(**texts: Text) -> None:
  if len({type(text) for text in texts.values()}) > 1:
    names = " and ".join(map(repr, texts))
    raise ValueError(f"columns {names} must all be text or all be messages.")


def _num_shared(some: Text, others: Text) -> int:
  """How many turns or characters, these up to whole words, two responses begin with."""
  pairs = list(zip(some, others))
  shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
  word = isinstance(some, str) and re.search(r"\s+\S*$", some[:shared])
  return word.start() if word else shared


def _with_mismatched(path, rows: list[Row]) -> list[Row]:
  paired = []
  for i, row in enumerate(rows):
    others = (rows[(i + step) % len(rows)] for step in range(1, len(rows)))
    other = next((other for other in others if other.prompt != row.prompt), None)
    if other is None or isinstance(other.prompt, str) != isinstance(row.prompt, str):
      raise UsageError(f"--data={path}: responses without pairs need two prompts of one type.")
    paired.append(row._replace(responses=(*row.responses, *other.responses)))
  return paired
