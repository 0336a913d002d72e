"""Predictions and targets in, an objective per example out.

Arguments are arrays, numbers or lists of numbers. Of another shape than documented they raise
ValueError, of another type TypeError, by name. NaN in a row gives NaN in that row; a masked class,
of logit -inf, adds nothing where its weight is 0.
"""

from jaxlab.losses.adaptation import (
  class_prototypes,
  confidence_difference,
  confidence_difference_mask,
  information_maximization_loss,
  marginal_entropy,
  multiview_contrastive_loss,
  nearest_prototypes,
  open_set_entropy_loss,
  softmax_entropy,
  symmetric_cross_entropy,
)
from jaxlab.losses.bar import HalfNormalScales, bar_index, bar_nll, half_normal_scales
from jaxlab.losses.calibration import brier_loss, correctness_aware_loss
from jaxlab.losses.causal_matching import causal_matching_loss, causal_ranking_loss
from jaxlab.losses.classification import (
  label_smoothed_cross_entropy,
  sigmoid_cross_entropy,
  soft_cross_entropy,
)
from jaxlab.losses.contrastive import nt_xent_loss, pair_logistic_loss
from jaxlab.losses.coverage import (
  coverage_loss,
  coverage_weight,
  coverage_weighted_nll,
  estimated_coverage_nll,
  log_tree_coverage,
  stepwise_coverage_loss,
)
from jaxlab.losses.distillation import (
  class_mean_probs,
  distillation_loss,
  fused_distillation_loss,
  trilateral_features,
)
from jaxlab.losses.early_exit import (
  conditional_exit_probabilities,
  exit_distribution,
  exit_warmup_loss,
  exit_weighted_loss,
  gate_loss,
  gate_pos_weights,
  optimal_exit,
)
from jaxlab.losses.gaussian import gaussian_nll
from jaxlab.losses.latent import factor_model_nll, isotropic_mixture_nll
from jaxlab.losses.miwae import importance_log_weights, supervised_not_miwae_loss
from jaxlab.losses.mixup import (
  all_pairs_mixup_loss,
  decoupled_mixup_binary_loss,
  decoupled_mixup_loss,
  mixup_cross_entropy,
  multi_mixup_cross_entropy,
  rescale_mix_ratio,
)
from jaxlab.losses.neighbors import (
  knn_classification_loss,
  knn_probabilities,
  leave_one_out_knn_loss,
  supervised_contrastive_loss,
)
from jaxlab.losses.occupancy_matching import occupancy_matching_loss, soft_rewards, soft_values
from jaxlab.losses.odds_ratio import log_odds_ratio, orpo_loss
from jaxlab.losses.pairs import mixture_pair_log_probs, mixture_pair_nll, pair_log_probs, pair_nll
from jaxlab.losses.policy_gradient import (
  advantage_weighted_nll,
  advantage_weights,
  clipped_policy_loss,
  group_advantages,
  kl_penalized_rewards,
  kl_per_token,
  leave_one_out_advantages,
  reinforce_loss,
)
from jaxlab.losses.preference import (
  dpo_loss,
  hinge_loss,
  implicit_reward,
  ipo_loss,
  robust_dpo_loss,
  rpo_loss,
  simpo_loss,
)
from jaxlab.losses.ranking import bradley_terry_loss, plackett_luce_loss, rrhf_loss, slic_loss
from jaxlab.losses.regularized_policies import maximin_reward_objective, optimal_policy_log_probs
from jaxlab.losses.representations import representation_distance_loss
from jaxlab.losses.reward_modeling import (
  attribute_regression_loss,
  scaled_bradley_terry_loss,
  weighted_reward,
)
from jaxlab.losses.rewards import (
  calibrate_rewards,
  combine_rewards,
  exponential_reward,
  log_reward,
  log_sigmoid_centered,
  reference_quantile,
  tilted_weights,
)
from jaxlab.losses.segmentation import foreground_cross_entropy, pixel_entropy, proportion_kl
from jaxlab.losses.semi_supervised import (
  ShrunkSpace,
  class_threshold_loss,
  consistency_mse_loss,
  fixmatch_loss,
  js_divergence_loss,
  pseudo_label_mix_weight,
  shrink_class_space,
  shrunk_class_loss,
  soft_pseudo_label_loss,
  view_difference_loss,
  weighted_pseudo_label_loss,
)
from jaxlab.losses.sequence import (
  causal_token_log_probs,
  chunked_token_log_probs,
  log1mexp,
  segment_log_probs,
  sequence_log_prob,
  sequence_nll,
  token_log_probs,
)
from jaxlab.losses.speech import (
  codebook_diversity_loss,
  masked_contrastive_loss,
  masked_prediction_loss,
  utterance_weighted_loss,
)
from jaxlab.losses.unpaired_preference import kto_kl_estimate, kto_loss
from jaxlab.losses.weak_supervision import confidence_auxiliary_loss, conflict_loss

__all__ = [
  "advantage_weighted_nll",
  "advantage_weights",
  "all_pairs_mixup_loss",
  "attribute_regression_loss",
  "bar_index",
  "bar_nll",
  "bradley_terry_loss",
  "brier_loss",
  "calibrate_rewards",
  "causal_matching_loss",
  "causal_ranking_loss",
  "causal_token_log_probs",
  "chunked_token_log_probs",
  "class_mean_probs",
  "class_prototypes",
  "class_threshold_loss",
  "clipped_policy_loss",
  "codebook_diversity_loss",
  "combine_rewards",
  "conditional_exit_probabilities",
  "confidence_auxiliary_loss",
  "confidence_difference",
  "confidence_difference_mask",
  "conflict_loss",
  "consistency_mse_loss",
  "correctness_aware_loss",
  "coverage_loss",
  "coverage_weight",
  "coverage_weighted_nll",
  "decoupled_mixup_binary_loss",
  "decoupled_mixup_loss",
  "distillation_loss",
  "dpo_loss",
  "estimated_coverage_nll",
  "exit_distribution",
  "exit_warmup_loss",
  "exit_weighted_loss",
  "exponential_reward",
  "factor_model_nll",
  "fixmatch_loss",
  "foreground_cross_entropy",
  "fused_distillation_loss",
  "gate_loss",
  "gate_pos_weights",
  "gaussian_nll",
  "group_advantages",
  "half_normal_scales",
  "HalfNormalScales",
  "hinge_loss",
  "implicit_reward",
  "importance_log_weights",
  "information_maximization_loss",
  "ipo_loss",
  "isotropic_mixture_nll",
  "js_divergence_loss",
  "kl_penalized_rewards",
  "kl_per_token",
  "knn_classification_loss",
  "knn_probabilities",
  "kto_kl_estimate",
  "kto_loss",
  "label_smoothed_cross_entropy",
  "leave_one_out_advantages",
  "leave_one_out_knn_loss",
  "log1mexp",
  "log_odds_ratio",
  "log_reward",
  "log_sigmoid_centered",
  "log_tree_coverage",
  "marginal_entropy",
  "masked_contrastive_loss",
  "masked_prediction_loss",
  "maximin_reward_objective",
  "mixture_pair_log_probs",
  "mixture_pair_nll",
  "mixup_cross_entropy",
  "multi_mixup_cross_entropy",
  "multiview_contrastive_loss",
  "nearest_prototypes",
  "nt_xent_loss",
  "occupancy_matching_loss",
  "open_set_entropy_loss",
  "optimal_exit",
  "optimal_policy_log_probs",
  "orpo_loss",
  "pair_log_probs",
  "pair_logistic_loss",
  "pair_nll",
  "pixel_entropy",
  "plackett_luce_loss",
  "proportion_kl",
  "pseudo_label_mix_weight",
  "reference_quantile",
  "reinforce_loss",
  "representation_distance_loss",
  "rescale_mix_ratio",
  "robust_dpo_loss",
  "rpo_loss",
  "rrhf_loss",
  "scaled_bradley_terry_loss",
  "segment_log_probs",
  "sequence_log_prob",
  "sequence_nll",
  "shrink_class_space",
  "shrunk_class_loss",
  "ShrunkSpace",
  "sigmoid_cross_entropy",
  "simpo_loss",
  "slic_loss",
  "soft_cross_entropy",
  "soft_pseudo_label_loss",
  "soft_rewards",
  "soft_values",
  "softmax_entropy",
  "stepwise_coverage_loss",
  "supervised_contrastive_loss",
  "supervised_not_miwae_loss",
  "symmetric_cross_entropy",
  "tilted_weights",
  "token_log_probs",
  "trilateral_features",
  "utterance_weighted_loss",
  "view_difference_loss",
  "weighted_pseudo_label_loss",
  "weighted_reward",
]


def __dir__():
  return __all__
