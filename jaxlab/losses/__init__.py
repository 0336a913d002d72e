"""Predictions and targets in, an objective per example out."""

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
from jaxlab.losses.classification import label_smoothed_cross_entropy
from jaxlab.losses.contracts import as_accumulator, check_range
from jaxlab.losses.early_exit import (
  conditional_exit_probabilities,
  exit_distribution,
  exit_warmup_loss,
  exit_weighted_loss,
  gate_loss,
  gate_pos_weights,
  optimal_exit,
)
from jaxlab.losses.mixup import (
  all_pairs_mixup_loss,
  decoupled_mixup_binary_loss,
  decoupled_mixup_loss,
  mixup_cross_entropy,
  multi_mixup_cross_entropy,
  pseudo_label_mix_weight,
  rescale_mix_ratio,
)
from jaxlab.losses.segmentation import foreground_cross_entropy, pixel_entropy, proportion_kl
from jaxlab.losses.semi_supervised import fixmatch_loss

__all__ = [
  "all_pairs_mixup_loss",
  "as_accumulator",
  "bar_index",
  "bar_nll",
  "brier_loss",
  "check_range",
  "class_prototypes",
  "conditional_exit_probabilities",
  "confidence_difference",
  "confidence_difference_mask",
  "correctness_aware_loss",
  "decoupled_mixup_binary_loss",
  "decoupled_mixup_loss",
  "exit_distribution",
  "exit_warmup_loss",
  "exit_weighted_loss",
  "fixmatch_loss",
  "foreground_cross_entropy",
  "gate_loss",
  "gate_pos_weights",
  "half_normal_scales",
  "HalfNormalScales",
  "information_maximization_loss",
  "label_smoothed_cross_entropy",
  "marginal_entropy",
  "mixup_cross_entropy",
  "multi_mixup_cross_entropy",
  "multiview_contrastive_loss",
  "nearest_prototypes",
  "open_set_entropy_loss",
  "optimal_exit",
  "pixel_entropy",
  "proportion_kl",
  "pseudo_label_mix_weight",
  "rescale_mix_ratio",
  "softmax_entropy",
  "symmetric_cross_entropy",
]
