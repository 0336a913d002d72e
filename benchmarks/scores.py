"""Methods that solve the same problems, compared by the log density of held-out data."""

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
  """Makes timed functions that go from problem to problem and record their log density.

  Returns:
    name -> mean log density, `[problems]`, to be read after timing; name -> function.
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
  """Checks our log density against the peer's over the problems; keyword arguments of `result`.

  The mean difference minus its standard error must not fall below minus the margin, so the check
  fails if there are too few problems.
  """
  difference = scores[row.ours] - scores[row.peer]
  error = difference.std(ddof=1) / math.sqrt(len(difference))
  text = f"log density above the peer's, or within {MARGIN} nats of it"
  return {
    "checks": {text: difference.mean() - error >= -MARGIN},
    "notes": {
      "log density, ours": scores[row.ours].mean(),
      "peer's": scores[row.peer].mean(),
      "difference": difference.mean(),
      "its standard error": error,
    },
  }
