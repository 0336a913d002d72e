"""LCDB 1.0: learning curves of 20 classifiers on 248 OpenML data sets."""

import tensorflow_datasets as tfds

from jaxlab.data.builders.catalogue import LCDB_METRICS
from jaxlab.data.builders.columns import Columns, ColumnsBuilder, encode_classes
from jaxlab.data.recorded_curves import load_lcdb


class Builder(ColumnsBuilder, skip_registration=True):
  """One example per curve, short ones included.

  `values` f32[L] (mean test score at each anchor, NaN after the end), `anchors` i32[L] (training
  set sizes, 0 after the end), `length`, `dataset_id` (OpenML), `learner`.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=metric) for metric in LCDB_METRICS]

  def read(self) -> Columns:
    """Reads the scores of one metric (150 MB of text: a few seconds)."""
    curves = load_lcdb(metric=self.builder_config.name, min_anchors=1)
    learners, learner_names = encode_classes(curves.learners)
    return Columns(
      {
        "values": curves.values,
        "anchors": curves.anchors,
        "length": curves.lengths,
        "dataset_id": curves.dataset_ids,
        "learner": learners,
      },
      {"learner": learner_names},
    )
