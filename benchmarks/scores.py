"""Rivals that solve the same problems: how likely each finds what it did not see."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measure import Row

MARGIN = 0.05


def record(
  methods: dict[str, Callable[[Any], Any]], problems: list
) -> tuple[dict[str, np.ndarray], dict[str, Callable[[], None]]]:
  """Makes timed functions that go from problem to problem and note the log density they reach.

  Returns:
    name -> mean log density, `[problems]`, to be read afterwards; name -> function.
  """
  scores = {name: np.full(len(problems), np.nan) for name in methods}

  def function(name):
    turns = itertools.cycle(range(len(problems)))

    def call():
      i = next(turns)
      scores[name][i] = np.mean(methods[name](problems[i]))

    return call

  return scores, {name: function(name) for name in methods}


def compare_scores(row: Row, scores: Mapping[str, np.ndarray]) -> dict[str, dict]:
  """Checks that ours is as likely as the peer, problem by problem; keyword arguments of `result`.

  The mean difference less its standard error may not fall below the margin: where the problems are
  too few to tell, the check fails.
  """
  difference = scores[row.ours] - scores[row.peer]
  error = difference.std(ddof=1) / math.sqrt(len(difference))
  text = f"as likely as the peer, or better, up to {MARGIN} nats"
  return {
    "checks": {text: difference.mean() - error >= -MARGIN},
    "notes": {
      "log density, ours": scores[row.ours].mean(),
      "peer's": scores[row.peer].mean(),
      "difference": difference.mean(),
      "its standard error": error,
    },
  }
