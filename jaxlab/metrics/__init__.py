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
from jaxlab.metrics.causal_explanations import (
  Matches,
  average_causal_effect,
  causal_effect_error,
  individual_causal_effect,
  order_faithfulness,
  top_k_matches,
)
from jaxlab.metrics.compliance import (
  ComplianceGap,
  PairedGap,
  ReasoningRates,
  compliance_gap,
  correct_judge_rate,
  paired_compliance_gap,
  reasoning_rates,
  sign_flip_test,
  training_leakage,
)
from jaxlab.metrics.confident_learning import (
  NoiseMatrices,
  calibrate_confident_joint,
  confident_joint,
  confident_thresholds,
  estimate_joint,
  noise_matrices,
  round_preserving_row_sums,
)
from jaxlab.metrics.consistency import logistic_h_transform, zero_one_bound
from jaxlab.metrics.deception import (
  KnowledgeRegions,
  WeakToStrongDeception,
  knowledge_regions,
  weak_to_strong_deception,
)
from jaxlab.metrics.displacement import (
  LikelihoodDisplacement,
  centered_hidden_similarity,
  last_hidden_similarity,
  likelihood_displacement,
  lowest_scores_mask,
  normalized_edit_distance,
  token_alignment,
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
from jaxlab.metrics.false_premises import (
  DeceptionReport,
  Judgement,
  deception_report,
  judge_answers,
)
from jaxlab.metrics.gaps import gap_closed
from jaxlab.metrics.hallucination import (
  calibration_gap,
  hallucination_lower_bound,
  hallucination_rate,
  knowledge_category,
  miscalibration,
  missing_mass,
  monofact_rate,
  sampled_calibration_gap,
  set_overlap,
)
from jaxlab.metrics.importance import effective_sample_size
from jaxlab.metrics.in_context import (
  accessible_state_size,
  accuracy_by_position,
  in_context_regime,
  learning_improvement,
  plateau_length,
)
from jaxlab.metrics.inductive_bias import (
  InductiveBias,
  NoncentralChi2,
  empirical_surprisal,
  fit_noncentral_chi2,
  hypothesis_errors,
  noncentral_chi2_moments,
  noncentral_chi2_surprisal,
  required_inductive_bias,
  sankaran_tail,
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
from jaxlab.metrics.label_corrections import (
  ConfirmedErrors,
  confirm_errors,
  crossing_prevalence,
  prevalence_accuracy,
)
from jaxlab.metrics.label_issues import find_label_issues, label_quality, num_label_issues
from jaxlab.metrics.locality import (
  ConditionalErrors,
  chain_conditional,
  chain_reasoning_gap,
  conditional_errors,
)
from jaxlab.metrics.multilabel import multilabel_top1
from jaxlab.metrics.open_set import closed_set_error, open_set_classification_rate
from jaxlab.metrics.outliers import class_inlier_weights, local_outlier_factor
from jaxlab.metrics.overfit_detection import (
  McNemarResult,
  OverfitResult,
  OverfitTrend,
  benchmark_overfit_test,
  holm_adjust,
  mcnemar_test,
  overfit_trend,
)
from jaxlab.metrics.pairs import (
  HallucinationCurve,
  hallucination_curve,
  interval_coverage,
  pair_squared_error,
  second_order_calibration_error,
)
from jaxlab.metrics.plots import plot_cost_accuracy, plot_reliability, plot_stream_error
from jaxlab.metrics.policies import policy_divergence, unsupported_mass
from jaxlab.metrics.preference import (
  RankingTransitions,
  idealized_log_ratio,
  idealized_ranking_accuracy,
  pairwise_accuracy,
  ranking_accuracy,
  ranking_loss_threshold,
  ranking_transitions,
)
from jaxlab.metrics.ranking import auroc, average_ranks, spearman_correlation
from jaxlab.metrics.regression import (
  mean_absolute_percentage_error,
  pearson_correlation,
  root_mean_squared_error,
  worst_group_rmse,
)
from jaxlab.metrics.rejection import RejectionCurve, rejection_curve, rejection_ratio
from jaxlab.metrics.representations import intra_class_spread
from jaxlab.metrics.resampling import (
  ResamplingValue,
  VerifierStatistics,
  false_discovery_by_attempt,
  optimal_num_samples,
  resampling_accuracy_ceiling,
  resampling_reward_curve,
  resampling_value_curve,
  verifier_statistics,
)
from jaxlab.metrics.sample_complexity import ScalingExponent, samples_to_reach, scaling_exponent
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
from jaxlab.metrics.selection import anova_f, feature_correlation
from jaxlab.metrics.speech import (
  Collapsed,
  codebook_perplexity,
  ctc_greedy_collapse,
  frame_confidence,
  token_error_rate,
  utterance_confidence,
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
from jaxlab.metrics.thresholds import between_class_variance, otsu_threshold
from jaxlab.metrics.votes import (
  perplexity_error,
  self_consistency_error,
  vote_accuracy,
  vote_calibration_error,
)
from jaxlab.metrics.win_rate import (
  Frontier,
  OptimalTransform,
  best_of_n_kl,
  best_of_n_win_rate,
  density_kl,
  joint_success,
  optimal_transform,
  pool_win_rate,
  tilted_density,
  value_at_kl,
  win_rate_frontier,
  worst_of_n_win_rate,
)

__all__ = [
  "accessible_state_size", "accuracy_by_position", "anova_f", "area_under_cost_curve", "auroc",
  "average_calibration_error", "average_causal_effect", "average_ranks", "benchmark_overfit_test",
  "best_of_k_accuracy", "best_of_n_kl", "best_of_n_win_rate", "beta_coverage",
  "between_class_variance", "calibrate_confident_joint", "calibration_gap", "causal_effect_error",
  "centered_hidden_similarity", "chain_conditional", "chain_reasoning_gap", "class_inlier_weights",
  "closed_set_error", "codebook_perplexity", "Collapsed", "compliance_gap", "ComplianceGap",
  "conditional_errors", "ConditionalErrors", "confidence_calibration_error", "confident_joint",
  "confident_thresholds", "confirm_errors", "ConfirmedErrors", "correct_judge_rate",
  "cost_accuracy", "CostAccuracy", "coverage_curve", "critical_step", "crossing_prevalence",
  "ctc_greedy_collapse", "deception_report", "DeceptionReport", "density_kl",
  "distance_sensitivity", "effective_sample_size", "empirical_surprisal", "estimate_joint",
  "exit_levels", "exited_values", "expected_calibration_error", "exponentiated_power_law",
  "ExponentiatedPowerLaw", "false_discovery_by_attempt", "feature_alignment", "feature_correlation",
  "find_label_issues", "fit_exponentiated_power_law", "fit_log_diffusion", "fit_noncentral_chi2",
  "fit_power_diffusion", "frame_confidence", "Frontier", "gap_closed", "greedy_calibration",
  "GreedyCalibration", "hallucination_curve", "hallucination_lower_bound", "hallucination_rate",
  "HallucinationCurve", "holm_adjust", "hypothesis_errors", "idealized_log_ratio",
  "idealized_ranking_accuracy", "in_context_regime", "individual_causal_effect", "InductiveBias",
  "inference_flops", "interpolator_temperature_scaled_nll", "intersection_and_union",
  "IntersectionAndUnion", "interval_coverage", "intra_class_spread", "joint_success",
  "judge_answers", "Judgement", "knowledge_category", "knowledge_regions", "KnowledgeRegions",
  "kolmogorov_smirnov_error", "label_quality", "last_hidden_similarity", "learning_improvement",
  "likelihood_displacement", "LikelihoodDisplacement", "local_outlier_factor", "LogDiffusion",
  "logistic_h_transform", "lowest_scores_mask", "Matches", "maximum_calibration_error",
  "mcnemar_test", "McNemarResult", "mean_absolute_percentage_error", "mean_class_accuracy",
  "mean_iou_by_class", "MeanIoU", "miscalibration", "missing_mass", "monofact_rate",
  "multilabel_top1", "negative_log_likelihood", "noise_matrices", "NoiseMatrices",
  "noncentral_chi2_moments", "noncentral_chi2_surprisal", "NoncentralChi2",
  "normalized_edit_distance", "num_label_issues", "open_set_classification_rate",
  "optimal_coverage_policy", "optimal_num_samples", "optimal_transform", "OptimalTransform",
  "order_faithfulness", "otsu_threshold", "overfit_trend", "OverfitResult", "OverfitTrend",
  "pair_squared_error", "paired_compliance_gap", "PairedGap", "pairwise_accuracy",
  "parameter_distance", "pass_at_k", "pearson_correlation", "perplexity_error", "plateau_length",
  "plot_cost_accuracy", "plot_reliability", "plot_stream_error", "policy_divergence",
  "pool_win_rate", "PowerDiffusion", "prefix_values", "prevalence_accuracy", "ranking_accuracy",
  "ranking_loss_threshold", "ranking_transitions", "RankingTransitions", "reasoning_rates",
  "ReasoningRates", "rejection_curve", "rejection_ratio", "RejectionCurve", "Reliability",
  "reliability_diagram", "required_inductive_bias", "resampling_accuracy_ceiling",
  "resampling_reward_curve", "resampling_value_curve", "ResamplingValue", "root_mean_squared_error",
  "round_preserving_row_sums", "sampled_calibration_gap", "samples_to_reach", "sankaran_tail",
  "scaling_exponent", "ScalingExponent", "second_order_calibration_error", "select_step_pairs",
  "selection_accuracy_curve", "self_consistency_error", "set_overlap", "sign_flip_test",
  "spearman_correlation", "static_calibration_error", "step_advantages", "StepPairs",
  "threshold_exits", "tilted_density", "token_alignment", "token_error_rate", "top_k_matches",
  "training_leakage", "unsupported_mass", "utterance_confidence", "value_at_kl",
  "verifier_statistics", "VerifierStatistics", "vote_accuracy", "vote_calibration_error",
  "weak_to_strong_deception", "WeakToStrongDeception", "win_rate_frontier", "worst_group_rmse",
  "worst_of_n_win_rate", "zero_one_bound",
]  # fmt: skip


def __dir__():
  return __all__
