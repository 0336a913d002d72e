"""flax.linen modules, and what sits on a trained one."""

import importlib

from jaxlab.models.classifiers import MLP, ConvNet, ModelOutput
from jaxlab.models.convolution import Conv
from jaxlab.models.early_exit import (
  EarlyExitNet,
  EarlyExitOutput,
  UncertaintyGate,
  gate_features,
  stage_costs,
)
from jaxlab.models.norm import (
  GhostBatchNorm,
  GroupNorm,
  NormOutput,
  ghost_batch_norm,
  mixed_batch_norm,
)
from jaxlab.models.patch_cnn import all_pairs_patch_logits, init_patch_cnn, patch_cnn_logits
from jaxlab.models.pfn import PFN, context_query_mask
from jaxlab.models.pfn_checkpoint import PFNTask, TrainedPFN, load_pfn, save_pfn
from jaxlab.models.resnet import (
  ResNet,
  WideResNet,
  resnet18,
  resnet50,
  resnext29,
  resnext50,
  wide_resnet28_10,
  wide_resnet50_2,
)
from jaxlab.models.vision_checkpoint import load_vision_checkpoint, save_vision_checkpoint
from jaxlab.models.vit import ViT

# They bring scikit-learn, which takes longer to import than the rest of the room.
_LAZY = {
  "PFNClassifier": "jaxlab.models.pfn_estimators",
  "PFNRegressor": "jaxlab.models.pfn_estimators",
}

__all__ = [
  "all_pairs_patch_logits",
  "context_query_mask",
  "Conv",
  "ConvNet",
  "EarlyExitNet",
  "EarlyExitOutput",
  "gate_features",
  "ghost_batch_norm",
  "GhostBatchNorm",
  "GroupNorm",
  "init_patch_cnn",
  "load_pfn",
  "load_vision_checkpoint",
  "mixed_batch_norm",
  "MLP",
  "ModelOutput",
  "NormOutput",
  "patch_cnn_logits",
  "PFN",
  "PFNClassifier",
  "PFNRegressor",
  "PFNTask",
  "ResNet",
  "resnet18",
  "resnet50",
  "resnext29",
  "resnext50",
  "save_pfn",
  "save_vision_checkpoint",
  "stage_costs",
  "TrainedPFN",
  "UncertaintyGate",
  "ViT",
  "wide_resnet28_10",
  "wide_resnet50_2",
  "WideResNet",
]


def __getattr__(name: str):
  """Imports an estimator on first use."""
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module 'jaxlab.models' has no attribute {name!r}")
