"""Predictions and targets in, evaluation metrics out."""

from jaxlab.metrics.calibration import (Reliability, average_calibration_error, confidence_calibration_error, expected_calibration_error, interpolator_temperature_scaled_nll, kolmogorov_smirnov_error, maximum_calibration_error, negative_log_likelihood, reliability_diagram, static_calibration_error,)
from jaxlab.metrics.compliance import (ComplianceGap, PairedGap, ReasoningRates, compliance_gap, correct_judge_rate, paired_compliance_gap, reasoning_rates, sign_flip_test, training_leakage,)
from jaxlab.metrics.deception import (KnowledgeRegions, WeakToStrongDeception, knowledge_regions, weak_to_strong_deception,)
from jaxlab.metrics.displacement import (LikelihoodDisplacement, centered_hidden_similarity, last_hidden_similarity, likelihood_displacement, lowest_scores_mask, normalized_edit_distance, token_alignment,)
from jaxlab.metrics.dynamics import (LogDiffusion, PowerDiffusion, feature_alignment, fit_log_diffusion, fit_power_diffusion, parameter_distance,)
from jaxlab.metrics.early_exit import (CostAccuracy, area_under_cost_curve, cost_accuracy, exit_levels, exited_values, threshold_exits,)
from jaxlab.metrics.gaps import gap_closed
from jaxlab.metrics.inference_scaling import (GreedyCalibration, best_of_k_accuracy, coverage_curve, greedy_calibration, inference_flops, optimal_coverage_policy, pass_at_k, selection_accuracy_curve,)
from jaxlab.metrics.open_set import (closed_set_error, open_set_classification_rate,)
from jaxlab.metrics.plots import (plot_cost_accuracy, plot_reliability, plot_stream_error,)
from jaxlab.metrics.policies import (policy_divergence, unsupported_mass,)
from jaxlab.metrics.preference import (RankingTransitions, idealized_log_ratio, idealized_ranking_accuracy, pairwise_accuracy, ranking_accuracy, ranking_loss_threshold, ranking_transitions,)
from jaxlab.metrics.ranking import auroc
from jaxlab.metrics.regression import (mean_absolute_percentage_error, pearson_correlation, root_mean_squared_error, worst_group_rmse,)
from jaxlab.metrics.scaling_laws import (ExponentiatedPowerLaw, beta_coverage, exponentiated_power_law, fit_exponentiated_power_law,)
from jaxlab.metrics.segmentation import (IntersectionAndUnion, MeanIoU, intersection_and_union, mean_iou_by_class,)
from jaxlab.metrics.step_credit import (StepPairs, critical_step, distance_sensitivity, prefix_values, select_step_pairs, step_advantages,)
from jaxlab.metrics.subgroups import mean_class_accuracy
from jaxlab.metrics.win_rate import (Frontier, OptimalTransform, best_of_n_kl, best_of_n_win_rate, density_kl, joint_success, optimal_transform, pool_win_rate, tilted_density, value_at_kl, win_rate_frontier, worst_of_n_win_rate,)

__all__ = [
  "area_under_cost_curve",
  "auroc",
  "average_calibration_error",
  "best_of_k_accuracy",
  "best_of_n_kl",
  "best_of_n_win_rate",
  "beta_coverage",
  "centered_hidden_similarity",
  "closed_set_error",
  "compliance_gap",
  "ComplianceGap",
  "confidence_calibration_error",
  "correct_judge_rate",
  "cost_accuracy",
  "CostAccuracy",
  "coverage_curve",
  "critical_step",
  "density_kl",
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
  "Frontier",
  "gap_closed",
  "greedy_calibration",
  "GreedyCalibration",
  "idealized_log_ratio",
  "idealized_ranking_accuracy",
  "inference_flops",
  "interpolator_temperature_scaled_nll",
  "intersection_and_union",
  "IntersectionAndUnion",
  "joint_success",
  "knowledge_regions",
  "KnowledgeRegions",
  "kolmogorov_smirnov_error",
  "last_hidden_similarity",
  "likelihood_displacement",
  "LikelihoodDisplacement",
  "LogDiffusion",
  "lowest_scores_mask",
  "maximum_calibration_error",
  "mean_absolute_percentage_error",
  "mean_class_accuracy",
  "mean_iou_by_class",
  "MeanIoU",
  "negative_log_likelihood",
  "normalized_edit_distance",
  "open_set_classification_rate",
  "optimal_coverage_policy",
  "optimal_transform",
  "OptimalTransform",
  "paired_compliance_gap",
  "PairedGap",
  "pairwise_accuracy",
  "parameter_distance",
  "pass_at_k",
  "pearson_correlation",
  "plot_cost_accuracy",
  "plot_reliability",
  "plot_stream_error",
  "policy_divergence",
  "pool_win_rate",
  "PowerDiffusion",
  "prefix_values",
  "ranking_accuracy",
  "ranking_loss_threshold",
  "ranking_transitions",
  "RankingTransitions",
  "reasoning_rates",
  "ReasoningRates",
  "Reliability",
  "reliability_diagram",
  "root_mean_squared_error",
  "select_step_pairs",
  "selection_accuracy_curve",
  "sign_flip_test",
  "static_calibration_error",
  "step_advantages",
  "StepPairs",
  "threshold_exits",
  "tilted_density",
  "token_alignment",
  "training_leakage",
  "unsupported_mass",
  "value_at_kl",
  "weak_to_strong_deception",
  "WeakToStrongDeception",
  "win_rate_frontier",
  "worst_group_rmse",
  "worst_of_n_win_rate",
]


def __dir__():
  return __all__
