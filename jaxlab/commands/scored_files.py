"""Files of samples of prompts, of `jaxlab sample` or another sampler, as arrays of one width."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab.commands.answers import mean_log_probs, number
from jaxlab.data.records import FileRecord, has, require
from jaxlab.experiment import UsageError


class Line(NamedTuple):
  """The samples of one prompt.

  Attributes:
    place: file and line.
    texts: the samples, n of them.
    correct: whether each is right, bool `[n]`.
    answers: their answers, None where there is none; or None without the column.
    scores: mean log-probability of their tokens, float32 `[n]`; None without the columns.
    verdict: what a verifier gives, float32 `[n]`, NaN where it gives none; None without the column.
    chosen: whether the choice of the line is right; None without the column.
    flops: floating-point operations of all its samples; None without the column.
  """

  place: str
  texts: list[str]
  correct: np.ndarray
  answers: list[str | None] | None
  scores: np.ndarray | None
  verdict: np.ndarray | None
  chosen: bool | None
  flops: float | None


class Pool(NamedTuple):
  """Samples of all prompts, n of each; None where a line lacks the column.

  Attributes:
    correct: whether they are right, bool `[p, n]`.
    answers: equal numbers for equal answers of a prompt, -1 for none, i32 `[p, n]`.
    texts: the same for whole texts, i32 `[p, n]`.
    scores: mean log-probabilities, float32 `[p, n]`.
    verdict: what a verifier gives, float32 `[p, n]`.
    chosen: whether choices are right, bool `[p, 1]`.
    missing: columns that only some lines have, and how many of them.
  """

  correct: np.ndarray
  answers: np.ndarray | None
  texts: np.ndarray
  scores: np.ndarray | None
  verdict: np.ndarray | None
  chosen: np.ndarray | None
  missing: dict[str, int]


def parse_line(record: FileRecord) -> Line:
  """Reads a line of samples.

  Args:
    record: it has the columns samples and correct; answers, log_probs with num_tokens, verdict,
      chosen and cost are read if they are there.

  Returns:
    The `Line`.

  Raises:
    ValueError: naming the column at fault.
  """
  columns = record.columns
  samples = require(columns, "samples")
  if not isinstance(samples, list) or not samples:
    raise ValueError("column 'samples' must be a list of at least one sample.")
  correct = _column(columns, "correct", len(samples), _flag)
  answers = verdict = scores = chosen = flops = None
  if has(columns, "answers"):
    answers = _column(columns, "answers", len(samples), _answer)
  if has(columns, "verdict"):
    verdict = np.array(_column(columns, "verdict", len(samples), _number), np.float32)
  if has(columns, "log_probs", "num_tokens"):
    sums = _column(columns, "log_probs", len(samples), _number)
    scores = mean_log_probs(sums, _column(columns, "num_tokens", len(samples), _number))
  if "chosen" in columns:
    chosen = _choice(columns["chosen"], correct)
  if has(columns, "cost"):
    flops = _flops(columns["cost"])
  texts = [str(sample) for sample in samples]
  return Line(record.place, texts, np.array(correct), answers, scores, verdict, chosen, flops)


def _column(columns: Mapping[str, Any], name: str, size: int, parse) -> list[Any]:
  values = require(columns, name)
  if not isinstance(values, list) or len(values) != size:
    form = f"{len(values)} values" if isinstance(values, list) else f"{values!r:.60}"
    raise ValueError(
      f"column {name!r} must have a value for each of the {size} samples, got {form}."
    )
  return [parse(name, value) for value in values]


def _flag(name: str, value: Any) -> bool:
  if value not in (0, 1):
    raise ValueError(f"column {name!r} must hold true or false, 1 or 0, got {value!r:.60}.")
  return bool(value)


def _answer(name: str, value: Any) -> str | None:
  return None if value is None or value == "" else str(value)


def _number(name: str, value: Any) -> float:
  if value is not None and not isinstance(value, numbers.Real):
    raise ValueError(f"column {name!r} must hold numbers or null, got {value!r:.60}.")
  return math.nan if value is None else float(value)


def _choice(chosen: Any, correct: Sequence[bool]) -> bool:
  if chosen is None:  # No sample had an answer.
    return False
  index = chosen.get("index") if isinstance(chosen, dict) else None
  if not isinstance(index, int) or not 0 <= index < len(correct):
    raise ValueError(
      f"column 'chosen' must have an index below {len(correct)}, got {chosen!r:.60}."
    )
  return correct[index]


def _flops(cost: Any) -> float:
  flops = cost.get("flops") if isinstance(cost, dict) else None
  if not isinstance(flops, numbers.Real) or flops <= 0:
    raise ValueError(f"column 'cost' must have flops above 0, got {cost!r:.60}.")
  return float(flops)


class Point(NamedTuple):
  """A file on the axes of accuracy and cost.

  Attributes:
    prompts: how many.
    flops: mean floating-point operations per prompt: of all samples, or where a line has no choice
      of one.
    accuracy: share of right choices, or of right samples.
  """

  prompts: int
  flops: float
  accuracy: float


def as_point(flag: str, lines: Sequence[Line]) -> Point:
  """What the lines of a file cost and reach.

  Args:
    flag: that names the file, with its path.
    lines: at least one.

  Returns:
    The `Point`.

  Raises:
    UsageError: if a line lacks the column cost; names it.
  """
  for line in lines:
    if line.flops is None:
      raise UsageError(f"{flag}: {line.place} lacks the column 'cost', which --others compares.")
  if any(line.chosen is None for line in lines):
    pairs = [(line.flops / len(line.texts), line.correct.mean()) for line in lines]
  else:
    pairs = [(line.flops, line.chosen) for line in lines]
  return Point(len(lines), *map(float, np.mean(pairs, axis=0)))


def as_pool(lines: Sequence[Line], *, num_samples: int) -> Pool:
  """Puts the first samples of all lines into arrays.

  Args:
    lines: at least one, with at least as many samples.
    num_samples: samples of each, n.

  Returns:
    The `Pool`.
  """
  n, missing = num_samples, {}

  def column(name: str, values: Sequence[Any]):
    lacking = sum(value is None for value in values)
    if 0 < lacking < len(lines):
      missing[name] = lacking
    return None if lacking else np.stack([np.atleast_1d(value)[:n] for value in values])

  def numbered(values: Sequence[str | None] | None):
    return None if values is None else np.array(number(values[:n]), np.int32)

  return Pool(
    column("correct", [line.correct for line in lines]),
    column("answers", [numbered(line.answers) for line in lines]),
    column("samples", [numbered(line.texts) for line in lines]),
    column("log_probs", [line.scores for line in lines]),
    column("verdict", [line.verdict for line in lines]),
    # A choice is among all samples of a line.
    column("chosen", [line.chosen for line in lines]),
    missing,
  )


def choose_size(
  lines: Sequence[Line], num_samples: int | None
) -> tuple[list[Line], list[str], int]:
  """The lines that have enough samples.

  Args:
    lines: at least one.
    num_samples: how many are asked for; None for as many as every line has.

  Returns:
    The lines, what is said of those that have fewer, and how many samples of each line count.

  Raises:
    UsageError: if no line has as many.
  """
  size = num_samples or min(len(line.texts) for line in lines)
  kept = [line for line in lines if len(line.texts) >= size]
  faults = [
    f"{line.place}: has {len(line.texts)} samples, of the {size} of --num_samples."
    for line in lines
    if len(line.texts) < size
  ]
  if not kept:
    most = max(len(line.texts) for line in lines)
    raise UsageError(f"--num_samples={size} exceeds the {most} samples that a line has at most.")
  return kept, faults, size
