"""Verifiers of responses: a Python function of the user's, or a regular expression."""

import importlib
import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.commands.rows import Row
from jaxlab.experiment import UsageError

# `(response, columns of the row) -> reward`; None and NaN where it cannot be scored.
Verifier = Callable[[str, Mapping[str, Any]], float | bool | None]


def function_verifier(name: str) -> Verifier:
  """Finds a function by its dotted name, also in a module of the current directory.

  Args:
    name: `module.function`.

  Returns:
    The function.

  Raises:
    UsageError: if there is no such module or function, or it cannot be imported.
  """
  module, _, function = name.rpartition(".")
  if not module:
    raise UsageError(f"--verifier={name} must be module.function.")
  sys.path.insert(0, os.getcwd())
  try:
    found = getattr(importlib.import_module(module), function, None)
  except Exception as error:  # Whatever the user's module raises.
    raise UsageError(f"--verifier={name}: {type(error).__name__}: {error}") from error
  finally:
    sys.path.remove(os.getcwd())
  if not callable(found):
    raise UsageError(f"--verifier={name}: {module} has no function {function!r}.")
  return found


def pattern_verifier(pattern: str) -> Verifier:
  """A verifier that searches responses for a regular expression.

  Args:
    pattern: the expression. Without a group the reward is whether it is found; with one, whether
      what the first group holds at the last match equals the column "answer" of the row, spaces
      around both left out.

  Returns:
    The verifier.

  Raises:
    UsageError: if it is no regular expression.
  """
  find = answer_finder(pattern)
  has_group = re.compile(pattern).groups > 0

  def verify(response, columns):
    found = find(response)
    if found is None or not has_group:
      return found is not None
    if "answer" not in columns:
      raise ValueError("column 'answer' is missing, which the group of --pattern is compared with.")
    return is_answer(found, columns)

  return verify


def answer_finder(pattern: str) -> Callable[[str], str | None]:
  """A function that finds the answer in a response.

  Args:
    pattern: regular expression; the answer is what its first group, or all of it if there is none,
      holds at the last match, without spaces around.

  Returns:
    `response -> answer`, None where there is none.

  Raises:
    UsageError: if it is no regular expression.
  """
  try:
    compiled = re.compile(pattern, re.DOTALL)
  except re.error as error:
    raise UsageError(f"--pattern={pattern} is no regular expression: {error}.") from error
  group = min(compiled.groups, 1)

  def find(response: str) -> str | None:
    matches = [match.group(group) for match in compiled.finditer(response)]
    return matches[-1].strip() if matches and matches[-1] is not None else None

  return find


def is_answer(found: str, columns: Mapping[str, Any]) -> bool:
  """Whether an answer is that of the column "answer", spaces around both left out.

  Args:
    found: the answer.
    columns: of the row.

  Returns:
    Whether they are equal as text.
  """
  return found.strip() == str(columns["answer"]).strip()


def score(verifier: Verifier, responses: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
  """Rewards of responses.

  Args:
    verifier: the verifier.
    responses: their texts.
    rows: the row of each response.

  Returns:
    float32 `[n]`; NaN where the verifier gives None.

  Raises:
    UsageError: if the verifier fails or gives something that is no number; names file and line.
  """
  rewards = np.zeros(len(responses), np.float32)
  for i, (response, row) in enumerate(zip(responses, rows, strict=True)):
    try:
      reward = verifier(response, row.columns)
      if reward is not None and not isinstance(reward, numbers.Real | np.bool_):
        raise TypeError(f"a reward must be a number or None, got {type(reward).__name__}")
    except Exception as error:  # Whatever the user's function raises.
      raise UsageError(
        f"{row.place}: the verifier fails on {response[:80]!r}: {type(error).__name__}: {error}"
      ) from error
    rewards[i] = math.nan if reward is None else float(reward)
  return rewards
