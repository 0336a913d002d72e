"""Sources and synthetic tasks: one door for data."""

from jaxlab.data.batches import BatchIterator, batch_iterator, stack_batches
from jaxlab.data.learning_curves import (
  AcceptedCurves,
  LearningCurveBatch,
  LearningCurves,
  denormalize_curve,
  load_lcdb,
  normalize_curve,
  sample_accepted_curves,
  sample_curve_params,
  sample_learning_curves,
)
from jaxlab.data.mnist1d import Signals, generate_mnist1d, load_mnist1d
from jaxlab.data.sources import Source, as_arrays, load_source, prepare, source_names

__all__ = [
  "AcceptedCurves",
  "as_arrays",
  "batch_iterator",
  "BatchIterator",
  "denormalize_curve",
  "generate_mnist1d",
  "LearningCurveBatch",
  "LearningCurves",
  "load_lcdb",
  "load_mnist1d",
  "load_source",
  "normalize_curve",
  "prepare",
  "sample_accepted_curves",
  "sample_curve_params",
  "sample_learning_curves",
  "Signals",
  "Source",
  "source_names",
  "stack_batches",
]
