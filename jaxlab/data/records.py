"""Files of rows (JSON lines, a JSON array, Parquet), and texts and messages in their columns."""

import codecs
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxlab._extras import import_extra
from jaxlab._json import as_json, naming

Text = str | list[dict[str, Any]]
_Item = TypeVar("_Item")


class FileRecord(NamedTuple):
  """A line, item or row of a file.

  Attributes:
    line: its number.
    place: where it stands, for messages: file and line.
    columns: its content.
  """

  line: int
  place: str
  columns: dict[str, Any]


def read_records(
  path: str | os.PathLike, *, split: str | None = None, faults: list[str] | None = None
) -> list[FileRecord]:
  """Reads a file of JSON lines (empty ones are passed over), of one JSON array, or of Parquet.

  The file's first bytes tell which it is. JSON may be compressed by gzip.

  Args:
    path: the file.
    split: only rows whose column `split` is this; None for all.
    faults: a list to which is added what is wrong with lines of JSON, and rows, that are left out;
      None raises the first such error.

  Returns:
    The rows in order.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is damaged, holds what is not an object of columns, or no row of the split;
      names file and line.
    ImportError: if it is Parquet and pyarrow is not installed; names the extra that brings it.
  """
  records = []
  for number, place, columns in _values(path, faults):
    if not isinstance(columns, dict):
      told = f"{place}: must be an object of columns, got {type(columns).__name__}."
      if faults is None:
        raise ValueError(told)
      faults.append(told)
      continue
    records.append(FileRecord(number, place, columns))
  if split is None or not records:
    return records
  chosen = [record for record in records if record.columns.get("split") == split]
  if not chosen:
    there = sorted({str(record.columns.get("split")) for record in records})
    raise ValueError(f"{path}: no row has split {split!r}; there is {', '.join(there[:5])}.")
  return chosen


def _values(path, faults: list[str] | None) -> Iterator[tuple[int, str, Any]]:
  """Number, name and content of each line, item or row."""
  content = pathlib.Path(path).read_bytes()
  if content.startswith(b"PAR1"):
    yield from _numbered(path, _parquet_rows(path, content))
    return
  if content.startswith(b"\x1f\x8b"):
    try:
      content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(f"{path} is a damaged gzip file: {error}") from error
  content = content.removeprefix(codecs.BOM_UTF8)
  if content.lstrip().startswith(b"["):
    yield from _numbered(path, as_json(path, content))
    return
  for number, line in enumerate(content.split(b"\n"), 1):
    if line.strip():
      place = f"{path}, line {number}"
      try:
        value = as_json(place, line)
      except ValueError as error:
        if faults is None:
          raise
        faults.append(str(error))
      else:
        yield number, place, value


def _numbered(path, items: Iterable[Any]) -> Iterator[tuple[int, str, Any]]:
  return ((number, f"{path}, row {number}", item) for number, item in enumerate(items, 1))


def _parquet_rows(path, content: bytes) -> list[dict[str, Any]]:
  parquet = import_extra("pyarrow.parquet", extra="parquet")
  with naming(path):
    try:
      return parquet.read_table(io.BytesIO(content)).to_pylist()
    except OSError as error:  # How pyarrow calls damaged pages.
      raise ValueError(f"is a damaged Parquet file: {error}") from error


def parse_groups(
  groups: Iterable[Sequence[FileRecord]],
  parse: Callable[[Sequence[FileRecord]], Iterable[_Item]],
  *,
  skip_unusable: bool,
) -> tuple[list[_Item], list[str]]:
  """Makes something of groups of rows, one after the other.

  Args:
    groups: rows that say something together.
    parse: `rows -> items`; raises ValueError, naming the line, where they are unusable.
    skip_unusable: whether to leave such groups out in place of raising the first error.

  Returns:
    The items, and what is wrong with the groups that are left out.

  Raises:
    ValueError: the first error of `parse`.
  """
  items, faults = [], []
  for group in groups:
    try:
      items += parse(group)
    except ValueError as error:
      if not skip_unusable:
        raise
      faults.append(str(error))
  return items, faults


def has(columns: Mapping[str, Any], *names: str) -> bool:
  """Whether all of these columns are there and not null."""
  return all(columns.get(name) is not None for name in names)


def require(columns: Mapping[str, Any], name: str) -> Any:
  """The value of a column.

  Raises:
    ValueError: if it is missing or null; names those that are there.
  """
  if not has(columns, name):
    there = ", ".join(other for other in columns if has(columns, other))
    raise ValueError(f"column {name!r} is missing; there are {there or 'none'}.")
  return columns[name]


def text_column(columns: Mapping[str, Any], name: str) -> Text:
  """Text or messages, which may be an object of lists of their keys.

  Raises:
    ValueError: if the column is missing, empty, or neither; names it.
  """
  value = require(columns, name)
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


def response_column(columns: Mapping[str, Any], name: str) -> Text:
  """Text or messages in which the assistant says something.

  Raises:
    ValueError: as `text_column`, and if no turn is the assistant's or one of these is empty.
  """
  value = text_column(columns, name)
  if isinstance(value, list):
    said = [turn["content"] for turn in value if turn["role"] == "assistant"]
    if not said:
      raise ValueError(f"column {name!r} has no turn of the assistant: nothing to learn from.")
    if "" in said:
      raise ValueError(f"column {name!r} has an empty turn of the assistant.")
  return value


def check_same_type(**texts: Text) -> None:
  """Raises unless all are text or all are messages.

  Args:
    **texts: by the names of their columns.

  Raises:
    ValueError: naming the columns.
  """
  if len({type(text) for text in texts.values()}) > 1:
    names = " and ".join(map(repr, texts))
    raise ValueError(f"columns {names} must all be text or all be messages.")


def after_prompt(prompt: str, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The turns, behind the user's prompt if they begin with the assistant."""
  if turns[0]["role"] != "assistant":
    return turns
  return [{"role": "user", "content": prompt}, *turns]
