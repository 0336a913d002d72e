"""flax.linen modules, and what sits on a trained one."""

import importlib

from jaxlab.models.convolution import Conv
from jaxlab.models.pfn import PFN, context_query_mask
from jaxlab.models.pfn_checkpoint import PFNTask, TrainedPFN, load_pfn, save_pfn

# They bring scikit-learn, which takes longer to import than the rest of the room.
_LAZY = {
  "PFNClassifier": "jaxlab.models.pfn_estimators",
  "PFNRegressor": "jaxlab.models.pfn_estimators",
}

__all__ = [
  "context_query_mask",
  "Conv",
  "load_pfn",
  "PFN",
  "PFNClassifier",
  "PFNRegressor",
  "PFNTask",
  "save_pfn",
  "TrainedPFN",
]


def __getattr__(name: str):
  """Imports an estimator on first use."""
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module 'jaxlab.models' has no attribute {name!r}")
