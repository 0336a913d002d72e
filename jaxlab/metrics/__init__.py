"""Predictions and targets in, evaluation metrics out."""

from jaxlab.metrics.calibration import (
  Reliability,
  average_calibration_error,
  confidence_calibration_error,
  expected_calibration_error,
  interpolator_temperature_scaled_nll,
  kolmogorov_smirnov_error,
  maximum_calibration_error,
  negative_log_likelihood,
  reliability_diagram,
  static_calibration_error,
)
from jaxlab.metrics.dynamics import (
  LogDiffusion,
  PowerDiffusion,
  feature_alignment,
  fit_log_diffusion,
  fit_power_diffusion,
  parameter_distance,
)
from jaxlab.metrics.early_exit import (
  CostAccuracy,
  area_under_cost_curve,
  cost_accuracy,
  exit_levels,
  exited_values,
  threshold_exits,
)
from jaxlab.metrics.inference_scaling import (
  GreedyCalibration,
  best_of_k_accuracy,
  coverage_curve,
  greedy_calibration,
  inference_flops,
  optimal_coverage_policy,
  pass_at_k,
  selection_accuracy_curve,
)
from jaxlab.metrics.open_set import closed_set_error, open_set_classification_rate
from jaxlab.metrics.plots import plot_cost_accuracy, plot_reliability, plot_stream_error
from jaxlab.metrics.policies import policy_divergence, unsupported_mass
from jaxlab.metrics.preference import pairwise_accuracy
from jaxlab.metrics.ranking import auroc
from jaxlab.metrics.regression import (
  mean_absolute_percentage_error,
  pearson_correlation,
  root_mean_squared_error,
  worst_group_rmse,
)
from jaxlab.metrics.scaling_laws import (
  ExponentiatedPowerLaw,
  beta_coverage,
  exponentiated_power_law,
  fit_exponentiated_power_law,
)
from jaxlab.metrics.segmentation import (
  IntersectionAndUnion,
  MeanIoU,
  intersection_and_union,
  mean_iou_by_class,
)
from jaxlab.metrics.step_credit import (
  StepPairs,
  critical_step,
  distance_sensitivity,
  prefix_values,
  select_step_pairs,
  step_advantages,
)
from jaxlab.metrics.subgroups import mean_class_accuracy

__all__ = [
  "area_under_cost_curve",
  "auroc",
  "average_calibration_error",
  "best_of_k_accuracy",
  "beta_coverage",
  "closed_set_error",
  "confidence_calibration_error",
  "cost_accuracy",
  "CostAccuracy",
  "coverage_curve",
  "critical_step",
  "distance_sensitivity",
  "exit_levels",
  "exited_values",
  "expected_calibration_error",
  "exponentiated_power_law",
  "ExponentiatedPowerLaw",
  "feature_alignment",
  "fit_exponentiated_power_law",
  "fit_log_diffusion",
  "fit_power_diffusion",
  "greedy_calibration",
  "GreedyCalibration",
  "inference_flops",
  "interpolator_temperature_scaled_nll",
  "intersection_and_union",
  "IntersectionAndUnion",
  "kolmogorov_smirnov_error",
  "LogDiffusion",
  "maximum_calibration_error",
  "mean_absolute_percentage_error",
  "mean_class_accuracy",
  "mean_iou_by_class",
  "MeanIoU",
  "negative_log_likelihood",
  "open_set_classification_rate",
  "optimal_coverage_policy",
  "pairwise_accuracy",
  "parameter_distance",
  "pass_at_k",
  "pearson_correlation",
  "plot_cost_accuracy",
  "plot_reliability",
  "plot_stream_error",
  "policy_divergence",
  "PowerDiffusion",
  "prefix_values",
  "Reliability",
  "reliability_diagram",
  "root_mean_squared_error",
  "select_step_pairs",
  "selection_accuracy_curve",
  "static_calibration_error",
  "step_advantages",
  "StepPairs",
  "threshold_exits",
  "unsupported_mass",
  "worst_group_rmse",
]


def __dir__():
  return __all__
