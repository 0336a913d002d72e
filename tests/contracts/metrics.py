"""Calls of the metrics."""

from jaxlab.data import PromptBatch
from jaxlab.metrics import ComplianceGap, ExponentiatedPowerLaw
from tests.contracts.calls import KEY, B, b, c, call, f, n, p, t, u

_GAP = ComplianceGap(*[u()] * 6)
_PROMPTS = PromptBatch(c(B, 4), c(B, 2), b(B), c(B), b(B))

TABLE = {
  "area_under_cost_curve": call(f(5), u(5)),
  "auroc": call(f(5), b(5)).but(skip={"gradients": "steps"}),
  "average_calibration_error": call(p(5, 4), c(5)),
  "best_of_k_accuracy": call(f(B, 4), b(B, 4), ks=(1, 2)).but(skip={"gradients": "steps"}),
  "best_of_n_kl": call(t(B)),
  "best_of_n_win_rate": call(u(5), num_samples=2),
  "beta_coverage": call(t(B), alpha=0.5, beta=2.0),
  "centered_hidden_similarity": call(f(B, 5, 2), f(B, 4, 2), b(B, 5), b(B, 4)),
  "closed_set_error": call(c(5), c(5), known=b(5)),
  "compliance_gap": call(b(5), b(5), mask=b(5)),
  "confidence_calibration_error": call(u(5), b(5)),
  "correct_judge_rate": call(u(B), sensitivity=0.9, specificity=0.8),
  "cost_accuracy": call(c(5), u(5, 4), t(4)),
  "coverage_curve": call(b(5, 4), ks=(1, 2)),
  "critical_step": call(f(B, 4), mask=b(B, 4)),
  "deception_report": call(b(5), c(5), b(5)),
  "distance_sensitivity": call(n(5), n(5, 4), c(5, 4), num_bins=2, max_distance=4),
  "density_kl": call(u(5)),
  "exit_levels": call(p(B, 4)),
  "exited_values": call(f(B, 4, 2), c(B)).but(keeps=True),
  "expected_calibration_error": call(p(5, 4), c(5)),
  "exponentiated_power_law": call(t(B), ExponentiatedPowerLaw(n(), n())),
  "feature_alignment": call(f(4, 2, 5), f(B, 5)),
  "fit_exponentiated_power_law": call(t(5), u(5)),
  "fit_log_diffusion": call(t(5), u(5)),
  "fit_power_diffusion": call(t(5), u(5)),
  "gap_closed": call(u(B), u(B), u(B)),
  "greedy_calibration": call(n(5), b(5)),
  "idealized_log_ratio": call(n(B), n(B), u(B), beta=0.5),
  "idealized_ranking_accuracy": call(n(5), n(5), u(5), beta=0.5),
  "inference_flops": call(
    num_params=t(B), prompt_tokens=5.0, generated_tokens=5.0, num_samples=2.0
  ),
  "interpolator_temperature_scaled_nll": call(u(B), 4.0),
  "intersection_and_union": call(c(B, 4, 4), c(B, 4, 4), num_classes=4),
  "joint_success": call(f(B, 2), f(B, 2)),
  "judge_answers": call(c(B, 4), _PROMPTS),
  "knowledge_regions": call(u(B), u(B)).but(skip={"gradients": "integers"}),
  "kolmogorov_smirnov_error": call(u(5), b(5)),
  "last_hidden_similarity": call(f(B, 5, 2), f(B, 4, 2), b(B, 5), b(B, 4)),
  "likelihood_displacement": call(n(5), n(5)),
  "lowest_scores_mask": call(f(5), fraction=0.5),
  "maximum_calibration_error": call(p(5, 4), c(5)),
  "mean_absolute_percentage_error": call(f(5), f(5)),
  "mean_class_accuracy": call(c(5), c(5), num_classes=4),
  "mean_iou_by_class": call(c(5), c(5), c(5), num_classes=4),
  "negative_log_likelihood": call(f(B, 4), c(B)),
  "normalized_edit_distance": call(c(B, 5), c(B), c(B, 4), c(B)),
  "open_set_classification_rate": call(f(5), f(4), c(5), c(5)).but(skip={"gradients": "steps"}),
  "optimal_coverage_policy": call(p(B, 4), num_samples=8.0),
  "optimal_transform": call(num_samples=2, beta=0.5, grid_size=4, num_iterations=2),
  "optimal_transform:worst": call(
    num_samples=2, beta=0.5, procedure="worst_of_n", grid_size=4, num_iterations=2
  ),
  "paired_compliance_gap": call(u(B, 4), u(B, 2)),
  "pairwise_accuracy": call(f(5), f(5), weights=u(5)).but(skip={"gradients": "steps"}),
  "parameter_distance": call({"w": f(2, 4)}, {"w": f(2, 4)}),
  "pass_at_k": call(c(B), num_samples=4, k=2),
  "pearson_correlation": call(f(5, 2), f(5, 2)),
  "policy_divergence": call(n(5, 4), n(5, 4), p(5)),
  "prefix_values": call(c(B, 5), num_rollouts=4),
  "pool_win_rate": call(f(B, 4), f(B, 5), num_samples=2).but(skip={"gradients": "steps"}),
  "pool_win_rate:worst": call(f(B, 4), f(B, 5), num_samples=2, procedure="worst_of_n").but(
    skip={"gradients": "steps"}
  ),
  "ranking_accuracy": call(n(5), n(5), chosen_lengths=c(5), rejected_lengths=c(5), mask=b(5)),
  "ranking_loss_threshold": call(n(B), n(B), beta=0.5),
  "ranking_transitions": call(b(5), b(5)),
  "reasoning_rates": call(b(5), b(5), b(5)),
  "reliability_diagram": call(p(5, 4), c(5)),
  "root_mean_squared_error": call(f(5), f(5)),
  "select_step_pairs": call(u(B, 5), u(B, 4, 2), mask=b(B, 4)),
  "selection_accuracy_curve": call(KEY, c(5, 4), b(5, 4), ks=(1, 2), num_subsets=2),
  "selection_accuracy_curve:weighted": call(
    KEY, c(5, 4), b(5, 4), ks=(1, 2), scores=u(5, 4), method="weighted_majority", num_subsets=2
  ),
  "selection_accuracy_curve:best": call(
    KEY, c(5, 4), b(5, 4), ks=(1, 2), scores=u(5, 4), method="best_of_n"
  ),
  "sign_flip_test": call(KEY, f(5), num_permutations=4).but(skip={"gradients": "steps"}),
  "static_calibration_error": call(p(5, 4), c(5)),
  "step_advantages": call(u(B, 5)),
  "threshold_exits": call(u(B, 4), thresholds=u(4)),
  "tilted_density": call(f(5), beta=0.5),
  "token_alignment": call(f(4, 2), c(B), c(B)),
  "training_leakage": call(_GAP, _GAP),
  "unsupported_mass": call(n(5, 4), b(5, 4), p(5)),
  "value_at_kl": call(u(5), f(5), at=u(4)),
  "win_rate_frontier": call(f(5), u(4), num_samples=2),
  "win_rate_frontier:worst": call(f(5), u(4), num_samples=2, procedure="worst_of_n"),
  "weak_to_strong_deception": call(u(5), u(5), u(5), u(5)).but(skip={"gradients": "steps"}),
  "worst_group_rmse": call(f(5), f(5), c(5), num_groups=4),
  "worst_of_n_win_rate": call(u(5), num_samples=2),
}
