"""Methods with a state: `init`/`update` pairs built from the other rooms."""

from jaxlab.algorithms.early_stopping import (
  EarlyStoppingRun,
  predictive_stop,
  run_with_early_stopping,
)
from jaxlab.algorithms.prior_fitted import (
  PriorFitting,
  PriorFittingInfo,
  PriorFittingState,
  loss_by_context,
  prior_fitting,
  query_mean_loss,
  transformer_peak_learning_rate,
  warmup_cosine,
)
from jaxlab.algorithms.sequential_optimization import SequentialResult, optimize_on_grid

__all__ = [
  "EarlyStoppingRun",
  "loss_by_context",
  "optimize_on_grid",
  "predictive_stop",
  "prior_fitting",
  "PriorFitting",
  "PriorFittingInfo",
  "PriorFittingState",
  "query_mean_loss",
  "run_with_early_stopping",
  "SequentialResult",
  "transformer_peak_learning_rate",
  "warmup_cosine",
]
