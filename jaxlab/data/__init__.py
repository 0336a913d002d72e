"""Sources and synthetic tasks: one door for data."""

from jaxlab.data.batches import BatchIterator, batch_iterator, stack_batches
from jaxlab.data.corrupted import CorruptedImages, load_corrupted_folders, load_corrupted_images
from jaxlab.data.feature_noise import PatchData, sample_patches
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
from jaxlab.data.overlapping_classes import (
  OverlappingGaussians,
  PairedNoise,
  paired_label_noise,
  sample_overlapping_gaussians,
)
from jaxlab.data.prompt_variants import (
  Prompts,
  RuleTasks,
  draw_demonstrations,
  label_words,
  render_prompts,
  sample_rule_tasks,
  word_vectors,
)
from jaxlab.data.regression_tables import RegressionTable, load_regression_table
from jaxlab.data.shape_scenes import Scenes, sample_shape_scenes
from jaxlab.data.sources import Source, as_arrays, load_source, prepare, source_names
from jaxlab.data.splits import FewShotSplit, few_shot_split
from jaxlab.data.spurious_regression import RotatedDigits, rotated_digits

__all__ = [
  "AcceptedCurves",
  "as_arrays",
  "batch_iterator",
  "BatchIterator",
  "CorruptedImages",
  "denormalize_curve",
  "draw_demonstrations",
  "few_shot_split",
  "FewShotSplit",
  "generate_mnist1d",
  "label_words",
  "LearningCurveBatch",
  "LearningCurves",
  "load_corrupted_folders",
  "load_corrupted_images",
  "load_lcdb",
  "load_mnist1d",
  "load_regression_table",
  "load_source",
  "normalize_curve",
  "OverlappingGaussians",
  "paired_label_noise",
  "PairedNoise",
  "PatchData",
  "prepare",
  "Prompts",
  "RegressionTable",
  "render_prompts",
  "rotated_digits",
  "RotatedDigits",
  "RuleTasks",
  "sample_accepted_curves",
  "sample_curve_params",
  "sample_learning_curves",
  "sample_overlapping_gaussians",
  "sample_patches",
  "sample_rule_tasks",
  "sample_shape_scenes",
  "Scenes",
  "Signals",
  "Source",
  "source_names",
  "stack_batches",
  "word_vectors",
]
