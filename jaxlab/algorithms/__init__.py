"""Methods with a state: `init`/`update` pairs built from the other rooms."""

from jaxlab.algorithms.early_exit import alternate_phases
from jaxlab.algorithms.early_stopping import (EarlyStoppingRun, predictive_stop, run_with_early_stopping,)
from jaxlab.algorithms.large_batch import (Regime, adapt_regime, gradient_noise_weights, scaled_learning_rate,)
from jaxlab.algorithms.mean_teachers import (ContinualMeanTeacherState, MeanTeacherState, continual_mean_teacher, mean_teacher_warm_up, robust_mean_teacher,)
from jaxlab.algorithms.normalization_adaptation import (entropy_minimization, filtered_entropy_minimization, norm_adaptation, norm_affine_only,)
from jaxlab.algorithms.online_adaptation import (AdaptBatch, AdaptInfo, AdaptLoss, AdapterState, FilteredState, GuardedStep, OnlineAdapter, accept_step, adapt_stream, guarded_step, init_optimizer, loss_adapter,)
from jaxlab.algorithms.online_post_training import (PostTraining, PostTrainingInfo, PostTrainingState, Rollout, post_training, sample_rollout,)
from jaxlab.algorithms.policy_objectives import (PolicyBatch, PolicyLoss, PolicyObjective, SampleWeights, best_of_n_objective, grpo_objective, online_dpo_objective, rejection_sampling_objective, rloo_objective,)
from jaxlab.algorithms.prior_fitted import (PriorFitting, PriorFittingInfo, PriorFittingState, QueryLosses, loss_by_context, prior_bar_borders, prior_fitting, prior_fitting_optimizer, query_losses, query_mean_loss, transformer_peak_learning_rate, warmup_cosine,)
from jaxlab.algorithms.sequential_optimization import (SequentialResult, optimize_on_grid,)
from jaxlab.algorithms.source_free import (FineTuned, centroid_pseudo_labels, fine_tune, information_maximization_adaptation, linear_probe_fine_tune,)
from jaxlab.algorithms.transductive import (ProportionRegularized, cosine_logits, masked_prototype, proportion_regularized_inference,)

__all__ = [
  "accept_step",
  "adapt_regime",
  "adapt_stream",
  "AdaptBatch",
  "AdapterState",
  "AdaptInfo",
  "AdaptLoss",
  "alternate_phases",
  "best_of_n_objective",
  "centroid_pseudo_labels",
  "continual_mean_teacher",
  "ContinualMeanTeacherState",
  "cosine_logits",
  "EarlyStoppingRun",
  "entropy_minimization",
  "filtered_entropy_minimization",
  "FilteredState",
  "fine_tune",
  "FineTuned",
  "gradient_noise_weights",
  "grpo_objective",
  "guarded_step",
  "GuardedStep",
  "information_maximization_adaptation",
  "init_optimizer",
  "linear_probe_fine_tune",
  "loss_adapter",
  "loss_by_context",
  "masked_prototype",
  "mean_teacher_warm_up",
  "MeanTeacherState",
  "norm_adaptation",
  "norm_affine_only",
  "online_dpo_objective",
  "OnlineAdapter",
  "optimize_on_grid",
  "PolicyBatch",
  "PolicyLoss",
  "PolicyObjective",
  "post_training",
  "PostTraining",
  "PostTrainingInfo",
  "PostTrainingState",
  "predictive_stop",
  "prior_bar_borders",
  "prior_fitting",
  "prior_fitting_optimizer",
  "PriorFitting",
  "PriorFittingInfo",
  "PriorFittingState",
  "proportion_regularized_inference",
  "ProportionRegularized",
  "query_losses",
  "query_mean_loss",
  "QueryLosses",
  "Regime",
  "rejection_sampling_objective",
  "rloo_objective",
  "robust_mean_teacher",
  "Rollout",
  "run_with_early_stopping",
  "sample_rollout",
  "SampleWeights",
  "scaled_learning_rate",
  "SequentialResult",
  "transformer_peak_learning_rate",
  "warmup_cosine",
]


def __dir__():
  return __all__
