"""Files of preferences and of rated responses, in the layouts in which the field publishes them.

pairs          prompt, chosen, rejected: text or messages; also score_chosen, score_rejected
               (TRL, UltraFeedback binarized). Without a prompt it is what both begin with, in
               text up to whole words.
transcripts    chosen, rejected: text of turns "Human:" and "Assistant:", of which the last is the
               response (Anthropic's HH)
strengths      prompt, response_1, response_2, preference_strength: below 0 if the first is better
               (HelpSteer2's preferences)
ratings        prompt, response and ratings, such as helpfulness; neighbors with one prompt make a
               pair by helpfulness (HelpSteer2)
completions    instruction, completions with response and ratings: the best and the worst by their
               mean make a pair (UltraFeedback)
"""

import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab._json import naming
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

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_STRENGTHS = ("response_1", "response_2", "preference_strength")
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class PreferencePair(NamedTuple):
  """A response that was preferred to another.

  Attributes:
    line: number of its line.
    place: file and line, for messages.
    prompt: text or messages.
    chosen: the preferred response, of the type of the prompt.
    rejected: the other one.
    strength: by how much, in the file's units: the strength, or the difference of ratings or
      scores; 1 if the file does not say.
  """

  line: int
  place: str
  prompt: Text
  chosen: Text
  rejected: Text
  strength: float = 1.0


class RatedResponse(NamedTuple):
  """A response and ratings of it.

  Attributes:
    line: number of its line.
    prompt: text or messages.
    response: of the type of the prompt.
    ratings: one per attribute, NaN where there is none; float32 `[a]`.
  """

  line: int
  prompt: Text
  response: Text
  ratings: np.ndarray


def load_preferences(
  path: str | os.PathLike, *, split: str | None = None, skip_unusable: bool = False
) -> list[PreferencePair]:
  """Reads pairs of responses from JSON lines, a JSON array or Parquet, in any public layout.

  Layouts, told by their columns: TRL and UltraFeedback binarized (chosen, rejected), Anthropic's HH
  (both as transcripts), HelpSteer2 (ratings of single responses, or response_1, response_2 and
  preference_strength), UltraFeedback (completions).

  Args:
    path: the file.
    split: only rows whose column `split` is this; None for all.
    skip_unusable: whether to leave out pairs that say nothing (ties, a side that is missing or
      empty), with one warning, in place of raising.

  Returns:
    The pairs, in the file's order.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is damaged or has no pairs, or for a pair without a preference, or without a
      prompt or a response; names file and line.
    ImportError: if it is Parquet and pyarrow is not installed; names the extra that brings it.
  """
  groups = group_ratings(read_records(path, split=split))
  pairs, faults = parse_groups(groups, parse_pair, skip_unusable=skip_unusable)
  if faults:
    warnings.warn(f"pairs left out: {len(faults)}, the first: {faults[0]}", stacklevel=2)
  if not pairs:
    raise ValueError(f"{path} has no pairs.")
  return pairs


def load_ratings(
  path: str | os.PathLike, *, attributes: Sequence[str] = _ATTRIBUTES, split: str | None = None
) -> list[RatedResponse]:
  """Reads rated responses: rows of HelpSteer2, or completions of UltraFeedback.

  Args:
    path: the file.
    attributes: names of the ratings to read.
    split: only rows whose column `split` is this; None for all.

  Returns:
    The responses, in the file's order.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is damaged, a row has no response or an empty one, a rating is no number, or
      no response has a rating of these attributes; names file and line.
    ImportError: if it is Parquet and pyarrow is not installed; names the extra that brings it.
  """
  responses = []
  for record in read_records(path, split=split):
    with naming(record.place):
      prompt, rated = _rated(record.columns, attributes)
    for response, ratings in rated:
      values = np.array([ratings.get(name, math.nan) for name in attributes], np.float32)
      responses.append(RatedResponse(record.line, prompt, response, values))
  if all(np.isnan(response.ratings).all() for response in responses):
    raise ValueError(f"{path} has no ratings of {', '.join(attributes)}.")
  return responses


def group_ratings(records: Iterable[FileRecord]) -> Iterator[list[FileRecord]]:
  """Rows that make a pair together: neighbors that rate responses to one prompt; else one each."""

  def key(numbered):
    number, record = numbered
    return record.columns["prompt"] if _is_rating(record.columns) else number

  for _, group in itertools.groupby(enumerate(records), key):
    yield [record for _, record in group]


def has_pair(columns: Mapping[str, Any]) -> bool:
  """Whether a row is of one of the layouts of pairs, or would be but for a missing side."""
  sides = "chosen", "rejected", "completions", *_STRENGTHS
  return any(has(columns, name) for name in sides) or _is_rating(columns)


def _is_rating(columns: Mapping[str, Any]) -> bool:
  return has(columns, "prompt", "response", _ATTRIBUTES[0]) and not has(columns, "label")


def parse_pair(group: Sequence[FileRecord]) -> list[PreferencePair]:
  """The pair that a group of `group_ratings` says.

  Raises:
    ValueError: if it says none; names file and line.
  """
  first = group[0]
  if _is_rating(first.columns):
    prompt, chosen, rejected, strength = _neighbors(group)
  else:
    with naming(first.place):
      prompt, chosen, rejected, strength = _pair(first.columns)
  return [PreferencePair(first.line, first.place, prompt, chosen, rejected, strength)]


def _pair(columns: Mapping[str, Any]) -> tuple[Text, Text, Text, float]:
  if has(columns, "completions"):
    return _completions(columns)
  if any(has(columns, name) for name in _STRENGTHS):
    return _strengths(columns)
  chosen, rejected = (response_column(columns, name) for name in ("chosen", "rejected"))
  strength = _gain(columns)
  check_same_type(chosen=chosen, rejected=rejected)
  prompt = text_column(columns, "prompt") if has(columns, "prompt") else None
  if prompt is None and isinstance(chosen, str) and chosen.startswith(_HUMAN):
    return *_transcripts(chosen, rejected), strength
  if isinstance(prompt, str) and isinstance(chosen, list):
    prompt, chosen, rejected = None, *(after_prompt(prompt, x) for x in (chosen, rejected))
  if prompt is None:
    shared = _num_shared(chosen, rejected)
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not (prompt and chosen and rejected) or chosen == rejected:
      raise ValueError("columns 'chosen' and 'rejected' must begin alike and end differently.")
  check_same_type(prompt=prompt, chosen=chosen, rejected=rejected)
  return prompt, chosen, rejected, strength


def _gain(columns: Mapping[str, Any]) -> float:
  """How much higher the score of the chosen response is."""
  names = "score_chosen", "score_rejected"
  if not has(columns, *names):
    return 1.0
  chosen, rejected = (_number(name, columns[name]) for name in names)
  if chosen == rejected:
    raise ValueError(f"score_chosen and score_rejected are both {chosen:g}: neither is preferred.")
  if chosen < rejected:
    raise ValueError(f"score_chosen {chosen:g} is below score_rejected {rejected:g}.")
  return chosen - rejected


def _num_shared(some: Text, others: Text) -> int:
  """How many turns or characters, these up to whole words, two responses begin with."""
  pairs = list(zip(some, others))
  shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
  word = isinstance(some, str) and re.search(r"\s+\S*$", some[:shared])
  return word.start() if word else shared


def _transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
  prompts, responses = [], []
  for name, text in (("chosen", chosen), ("rejected", rejected)):
    before, turn, response = text.rpartition(_ASSISTANT)
    if not turn or _HUMAN in response:
      raise ValueError(f"column {name!r} must end with a turn of the Assistant.")
    if not response.strip():
      raise ValueError(f"column {name!r} ends with an empty turn of the Assistant.")
    prompts.append(before + turn)
    responses.append(response)
  if prompts[0] != prompts[1]:
    raise ValueError("columns 'chosen' and 'rejected' must be alike up to the last turn.")
  return prompts[0], *responses


def _strengths(columns: Mapping[str, Any]) -> tuple[Text, Text, Text, float]:
  prompt = text_column(columns, "prompt")
  first, second = (response_column(columns, name) for name in ("response_1", "response_2"))
  check_same_type(prompt=prompt, response_1=first, response_2=second)
  strength = _number("preference_strength", require(columns, "preference_strength"))
  if strength == 0:
    raise ValueError("preference_strength is 0: neither response is preferred.")
  chosen, rejected = (first, second) if strength < 0 else (second, first)
  return prompt, chosen, rejected, abs(strength)


def _neighbors(group: Sequence[FileRecord]) -> tuple[Text, Text, Text, float]:
  rated = []
  for record in group:
    with naming(record.place):
      prompt, [(response, ratings)] = _rated(record.columns, _ATTRIBUTES[:1])
      rated.append((response, ratings[_ATTRIBUTES[0]]))
  with naming(group[0].place):
    if len(rated) < 2:
      raise ValueError("no neighbor rates another response to its prompt.")
    return prompt, *_best_and_worst(rated, f"lines {group[0].line} to {group[-1].line}")


def _completions(columns: Mapping[str, Any]) -> tuple[Text, Text, Text, float]:
  prompt, rated = _rated(columns, None)
  scores = [(response, sum(r.values()) / len(r)) for response, r in rated if r]
  if len(scores) < 2:
    raise ValueError(f"column 'completions' must hold two rated responses, got {len(scores)}.")
  return prompt, *_best_and_worst(scores, "completions")


def _best_and_worst(rated: list[tuple[Text, float]], what: str) -> tuple[Text, Text, float]:
  chosen, rejected = (choose(rated, key=lambda pair: pair[1]) for choose in (max, min))
  if chosen[1] == rejected[1]:
    raise ValueError(f"the responses of {what} are all rated {chosen[1]:g}: none is preferred.")
  return chosen[0], rejected[0], chosen[1] - rejected[1]


def _rated(
  columns: Mapping[str, Any], attributes: Sequence[str] | None
) -> tuple[Text, list[tuple[Text, dict[str, float]]]]:
  """The prompt, and its responses with those ratings of the attributes that there are."""
  if not has(columns, "completions"):
    prompt, response = text_column(columns, "prompt"), response_column(columns, "response")
    check_same_type(prompt=prompt, response=response)
    ratings = {n: _number(n, columns[n]) for n in attributes if has(columns, n)}
    return prompt, [(response, ratings)]
  prompt, completions = text_column(columns, "instruction"), columns["completions"]
  if not isinstance(completions, list):
    raise ValueError("column 'completions' must be a list.")
  rated = []
  for i, completion in enumerate(completions):
    with naming(f"column 'completions', item {i}"):
      if not isinstance(completion, dict):
        raise ValueError("must be an object.")
      response = require(completion, "response")
      if not isinstance(response, str) or not response.strip():
        raise ValueError("has an empty response.")
      ratings = _annotated(completion)
      rated.append((response, {n: v for n, v in ratings.items() if n in (attributes or ratings)}))
  return prompt, rated


def _annotated(completion: Mapping[str, Any]) -> dict[str, float]:
  """Ratings by aspect, or the one score if there are none; "N/A" is none."""
  given = completion.get("annotations")
  given = given if isinstance(given, dict) else {}
  aspects = {name: x.get("Rating") for name, x in given.items() if isinstance(x, dict)}
  scores = {name: completion.get(name) for name in ("fine-grained_score", "overall_score")}
  for found in (aspects, *({name: score} for name, score in scores.items())):
    known = {name: v for name, v in found.items() if v not in (None, "N/A")}
    if known:
      return {name: _number(name, v) for name, v in known.items()}
  return {}


def _number(name: str, value: Any) -> float:
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise ValueError(f"{name} must be a number, got {value!r}.")
  return number
