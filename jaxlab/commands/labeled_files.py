"""Files of labels: arrays of probabilities and classes, and tables whose rows a model predicts."""

import collections
import csv
import io
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab import data
from jaxlab._checks import check_probabilities
from jaxlab._extras import import_extra
from jaxlab.commands import program
from jaxlab.experiment import UsageError

Model = Literal["logistic", "boosted"]
_FLOATS = ("float16", "float32", "float64")
_MOST_TEXTS = 255  # Different ones in a column, for HistGradientBoostingClassifier.


class Labeled(NamedTuple):
  """Rows with labels, and what a model says of them.

  Attributes:
    probs: out-of-sample probabilities, float `[n, k]`.
    labels: given classes, int32 `[n]`.
    names: what the k classes are called.
    lines: of the rows in a file of text; None for arrays.
    left_out: columns of a table that were not used -> why.
  """

  probs: np.ndarray
  labels: np.ndarray
  names: Sequence[int | str]
  lines: Sequence[int] | None = None
  left_out: dict[str, str] = {}


class Table(NamedTuple):
  """The rows of a file with a column of labels.

  Attributes:
    inputs: numbers, NaN where there is none, and codes of texts; float64 `[n, d]`.
    is_text: which columns hold codes, bool `[d]`.
    labels: given classes, int32 `[n]`.
    names: texts of the classes, in order.
    lines: of the rows in the file.
    left_out: columns that cannot be used -> why.
  """

  inputs: np.ndarray
  is_text: np.ndarray
  labels: np.ndarray
  names: list[str]
  lines: list[int]
  left_out: dict[str, str]


def read_arrays(probabilities: str, labels: str) -> Labeled:
  """Reads probabilities and labels.

  Args:
    probabilities: a file .npz or .npy of floats `[n, k]`.
    labels: a file .npy or .npz of integers `[n]`.

  Returns:
    The rows; their classes are called by their numbers.

  Raises:
    UsageError: if a file cannot be read or holds something else; names flag, file and row.
  """
  probs = _load("probabilities", probabilities)
  where = f"--probabilities={probabilities}"
  if probs.ndim != 2 or probs.dtype.name not in _FLOATS:
    raise UsageError(
      f"{where} must hold floats [rows, classes], got {probs.dtype} of shape {list(probs.shape)}."
    )
  if not len(probs) or probs.shape[1] < 2:
    raise UsageError(
      f"{where} must have rows and at least 2 classes, got shape {list(probs.shape)}."
    )
  given = _load("labels", labels)
  if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
    raise UsageError(
      f"--labels={labels} must hold integers [rows], got {given.dtype} of shape "
      f"{list(given.shape)}."
    )
  if len(given) != len(probs):
    raise UsageError(f"--labels={labels} has {len(given)} rows, {where} has {len(probs)}.")
  outside = np.flatnonzero((given < 0) | (given >= probs.shape[1]))
  if outside.size:
    row = outside[0]
    raise UsageError(
      f"--labels={labels} must lie in [0, {probs.shape[1]}), the classes of {where}; row {row} has "
      f"{given[row]}."
    )
  with program.usage_errors(where):
    check_probabilities("probabilities", probs)
  return Labeled(probs, given.astype(np.int32), range(probs.shape[1]))


def _load(name: str, path: str) -> np.ndarray:
  """The array of a file: the only one, or the one of that name."""
  with program.usage_errors(f"--{name}={path}"):
    try:
      loaded = np.load(path, mmap_mode="r")  # A .npy is then read where it is needed.
      if not isinstance(loaded, np.ndarray):
        with loaded:
          names = loaded.files
          chosen = names[0] if len(names) == 1 else name
          if chosen not in names:
            raise ValueError(f"must have an array {name!r}, there is {', '.join(names) or 'none'}.")
          loaded = loaded[chosen]
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise ValueError(f"is a damaged file: {error}") from error
  return np.asarray(loaded, loaded.dtype.newbyteorder("="))


def read_table(path: str, label: str) -> Table:
  """Reads a file of comma-separated values whose first line names the columns.

  A column is of numbers if all its entries are; else it is of texts. Empty entries, and "nan",
  count as missing.

  Args:
    path: the file.
    label: name of the column of labels, which are texts.

  Returns:
    The `Table`, with at least two classes, each of at least two rows.

  Raises:
    UsageError: if the file cannot be read, or a line or column cannot be used; names it.
  """
  where = f"--table={path}"
  with program.usage_errors(where):
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
  header, rows, lines = _read_rows(where, text)
  if label not in header:
    raise UsageError(f"--label={label} is no column of {where}; there is {', '.join(header)}.")
  columns = dict(zip(header, zip(*rows)))
  names, labels = _classes(where, label, columns.pop(label), lines)
  inputs, is_text, left_out = [], [], {}
  for name, entries in columns.items():
    values, texts = _column(where, name, entries, lines)
    if texts > _MOST_TEXTS:
      left_out[name] = f"it has {texts} different texts, more than {_MOST_TEXTS}"
    elif np.all(np.isnan(values)):
      left_out[name] = "it is empty"
    else:
      inputs.append(values)
      is_text.append(texts > 0)
  if not inputs:
    raise UsageError(f"{where} has no column to predict labels by beside {label!r}.")
  return Table(np.stack(inputs, axis=1), np.array(is_text), labels, names, lines, left_out)


def _read_rows(where: str, text: str) -> tuple[list[str], list[list[str]], list[int]]:
  """The names of the columns, the rows, and their lines."""
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  rows, lines = [], []
  try:
    header = [name.strip() for name in next(reader, [])]
    for row in reader:
      if not row:
        continue
      if len(row) != len(header):
        raise UsageError(
          f"{where}, line {reader.line_num} has {len(row)} entries, the first line {len(header)}."
        )
      rows.append([entry.strip() for entry in row])
      lines.append(reader.line_num)
  except csv.Error as error:
    raise UsageError(f"{where}, line {reader.line_num} cannot be read: {error}.") from error
  twice = [name for name, count in collections.Counter(header).items() if count > 1]
  if twice:
    raise UsageError(f"{where} has two columns {twice[0]!r}.")
  if not rows:
    raise UsageError(f"{where} has no rows.")
  return header, rows, lines


def _classes(
  where: str, label: str, entries: Sequence[str], lines: Sequence[int]
) -> tuple[list[str], np.ndarray]:
  """The classes in order, of numbers by their value, and the class of every row."""
  if "" in entries:
    raise UsageError(f"{where}, line {lines[entries.index('')]} has no label in {label!r}.")
  counts = collections.Counter(entries)
  numbers = [_number(name) for name in counts]
  if len(counts) < 2:
    raise UsageError(f"{where} has only one class, {entries[0]!r}, in the column {label!r}.")
  single = next((name for name, count in counts.items() if count == 1), None)
  if single is not None:
    raise UsageError(
      f"{where}, line {lines[entries.index(single)]} is the only row with label {single!r}: each "
      "class needs two, one to learn from and one to predict."
    )
  names = sorted(counts, key=str if None in numbers else float)
  places = {name: i for i, name in enumerate(names)}
  return names, np.array([places[entry] for entry in entries], np.int32)


def _column(
  where: str, name: str, entries: Sequence[str], lines: Sequence[int]
) -> tuple[np.ndarray, int]:
  """Numbers, or codes of texts, and how many different texts there are; 0 for numbers."""
  numbers = {entry: _number(entry) if entry else math.nan for entry in set(entries)}
  if None not in numbers.values():
    values = np.array([numbers[entry] for entry in entries])
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
      raise UsageError(f"{where}, line {lines[infinite[0]]} is infinite in {name!r}.")
    return values, 0
  codes = {entry: float(i) for i, entry in enumerate(sorted(numbers))}
  return np.array([codes[entry] for entry in entries]), len(codes)


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def cross_validate(table: Table, *, model: Model, num_folds: int, seed: int) -> Labeled:
  """Predicts every row by a model that was fitted without it.

  Args:
    table: the rows.
    model: "logistic", on standardized numbers and indicators of texts; or "boosted", trees.
    num_folds: number of folds.
    seed: of the folds and the trees.

  Returns:
    The rows with their probabilities.

  Raises:
    ImportError: if scikit-learn is not installed; names the extra that brings it.
    ValueError: if there are fewer rows than folds.
  """
  fitted = _boosted(table, seed) if model == "boosted" else _logistic(table)
  predict = lambda fitted, inputs: fitted.predict_proba(inputs)  # noqa: E731
  options = {"num_folds": num_folds, "seed": seed}
  rows = table.inputs, table.labels
  probs = data.cross_validated_probabilities(fitted.fit, predict, *rows, **options)
  return Labeled(probs, table.labels, table.names, table.lines, table.left_out)


def _boosted(table: Table, seed: int) -> Any:
  ensemble = import_extra("sklearn.ensemble", extra="sklearn")
  options = {"categorical_features": table.is_text, "random_state": seed}
  return ensemble.HistGradientBoostingClassifier(**options)


def _logistic(table: Table) -> Any:
  compose, impute, linear_model, pipeline, preprocessing = (
    import_extra(f"sklearn.{name}", extra="sklearn")
    for name in ("compose", "impute", "linear_model", "pipeline", "preprocessing")
  )
  # A column may be empty in all rows but those of one fold.
  filled = impute.SimpleImputer(strategy="median", keep_empty_features=True)
  numbers = pipeline.make_pipeline(filled, preprocessing.StandardScaler())
  texts = preprocessing.OneHotEncoder(handle_unknown="ignore")
  columns = compose.make_column_transformer((numbers, ~table.is_text), (texts, table.is_text))
  return pipeline.make_pipeline(columns, linear_model.LogisticRegression(max_iter=1000))
