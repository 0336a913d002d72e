"""Learning curves that others recorded: LCDB."""

import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab._checks import check_at_least, check_choice


class LearningCurves(NamedTuple):
  """Real curves, NaN-padded `f32[n, L]`, with lengths, anchors `i32[n, L]` (0-padded) and names."""

  values: np.ndarray
  lengths: np.ndarray
  anchors: np.ndarray
  dataset_ids: np.ndarray
  learners: np.ndarray


def load_lcdb(*, metric: str = "accuracy", min_anchors: int = 10) -> LearningCurves:
  """Loads the learning curves of 20 classifiers on 248 data sets from the `lcdb` package.

  A curve is one learner on one data set: the test score at every training-set size (anchor),
  averaged over all seeds. The table inside the installed package is read without importing it,
  because it needs packages it does not declare. Takes a few seconds.

  Args:
    metric: "accuracy" or "logloss".
    min_anchors: curves with fewer anchors are left out.

  Returns:
    `LearningCurves(values f32[n, L] (NaN-padded), lengths i32[n], anchors i32[n, L] (0-padded),
    dataset_ids i32[n] (OpenML), learners str[n])`, sorted by data set and learner.

  Raises:
    ValueError: if the metric is unknown or `min_anchors` < 1.
    ImportError: if lcdb or pandas is not installed.

  Reference: Mohr et al., LCDB 1.0, ECML 2022, https://doi.org/10.1007/978-3-031-26419-1_1.
  """
  check_choice("metric", metric, ("accuracy", "logloss"))
  check_at_least(1, min_anchors=min_anchors)
  package = importlib.util.find_spec("lcdb")
  if package is None or importlib.util.find_spec("pandas") is None:
    raise ImportError("load_lcdb needs lcdb and pandas: pip install 'jaxlab[series]'.")
  import pandas as pd

  keys = ["openmlid", "learner", "size_train"]
  scores = pd.read_csv(
    pathlib.Path(package.submodule_search_locations[0]) / f"database-{metric}.csv",
    usecols=[*keys, "score_test"],
    dtype={"learner": "category"},
  )
  means = scores.groupby(keys, observed=True, sort=True)["score_test"].mean().reset_index()
  curve_of_row = means.groupby(keys[:2], observed=True, sort=True).ngroup().to_numpy()
  starts, lengths = np.unique(curve_of_row, return_index=True, return_counts=True)[1:]
  anchor_of_row = np.arange(len(means)) - starts[curve_of_row]
  values = np.full((len(starts), lengths.max()), np.nan, np.float32)
  anchors = np.zeros(values.shape, np.int32)
  values[curve_of_row, anchor_of_row] = means["score_test"]
  anchors[curve_of_row, anchor_of_row] = means["size_train"]
  kept = lengths >= min_anchors
  return LearningCurves(
    values=values[kept],
    lengths=lengths[kept].astype(np.int32),
    anchors=anchors[kept],
    dataset_ids=means["openmlid"].to_numpy(np.int32)[starts][kept],
    learners=means["learner"].to_numpy(str)[starts][kept],
  )
