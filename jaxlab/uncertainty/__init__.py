"""Predictive distributions and the quantities derived from them."""

from jaxlab.uncertainty.acquisition import expected_improvement_gaussian
from jaxlab.uncertainty.bar import (
  bar_cdf,
  bar_entropy,
  bar_mean,
  bar_mode,
  bar_quantile,
  bar_sample,
  bar_variance,
  expected_improvement,
  probability_of_improvement,
  upper_confidence_bound,
)
from jaxlab.uncertainty.borders import bar_borders
from jaxlab.uncertainty.conformal import (
  SetStatistics,
  conformal_quantile,
  exit_conformal_thresholds,
  prediction_sets,
  set_statistics,
)
from jaxlab.uncertainty.correctness import (
  AdaptiveTemperature,
  adaptive_temperature,
  fit_adaptive_temperature,
  init_adaptive_temperature,
  transform_cues,
)
from jaxlab.uncertainty.curve_families import ParameterPrior, basis_curve, curve_priors
from jaxlab.uncertainty.ensembles import (
  BatchCalibrationState,
  EnsemblePrediction,
  batch_calibration,
  batch_calibration_init,
  batch_calibration_update,
  max_probability,
  mean_probability,
  verbalizer_logits,
  vote_probability,
)
from jaxlab.uncertainty.gp import (
  GPHyperparameters,
  GPPosterior,
  fit_gp,
  gp_log_marginal_likelihood,
  gp_mixture_log_prob,
  gp_posterior,
)
from jaxlab.uncertainty.kernels import kernel_matrix
from jaxlab.uncertainty.learning_curves import (
  combined_curve,
  curve_exceedance,
  curve_predictive_log_prob,
  is_learning_curve,
  learning_curve_log_density,
  learning_curve_log_likelihood,
)
from jaxlab.uncertainty.probes import (
  LinearProbe,
  fit_linear_svm,
  linear_svm_scores,
  normalize_features,
  probe_accuracy_by_layer,
)
from jaxlab.uncertainty.temperature import apply_temperature, fit_temperature

__all__ = [
  "adaptive_temperature",
  "AdaptiveTemperature",
  "apply_temperature",
  "bar_borders",
  "bar_cdf",
  "bar_entropy",
  "bar_mean",
  "bar_mode",
  "bar_quantile",
  "bar_sample",
  "bar_variance",
  "basis_curve",
  "batch_calibration",
  "batch_calibration_init",
  "batch_calibration_update",
  "BatchCalibrationState",
  "combined_curve",
  "conformal_quantile",
  "curve_exceedance",
  "curve_predictive_log_prob",
  "curve_priors",
  "EnsemblePrediction",
  "exit_conformal_thresholds",
  "expected_improvement",
  "expected_improvement_gaussian",
  "fit_adaptive_temperature",
  "fit_gp",
  "fit_linear_svm",
  "fit_temperature",
  "gp_log_marginal_likelihood",
  "gp_mixture_log_prob",
  "gp_posterior",
  "GPHyperparameters",
  "GPPosterior",
  "init_adaptive_temperature",
  "is_learning_curve",
  "kernel_matrix",
  "learning_curve_log_density",
  "learning_curve_log_likelihood",
  "linear_svm_scores",
  "LinearProbe",
  "max_probability",
  "mean_probability",
  "normalize_features",
  "ParameterPrior",
  "prediction_sets",
  "probability_of_improvement",
  "probe_accuracy_by_layer",
  "set_statistics",
  "SetStatistics",
  "transform_cues",
  "upper_confidence_bound",
  "verbalizer_logits",
  "vote_probability",
]


def __dir__():
  return __all__
