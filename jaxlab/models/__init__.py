"""flax.linen modules, pretrained checkpoints and scikit-learn estimators."""

import importlib
from typing import TYPE_CHECKING

from jaxlab.models.auxiliary_head import AuxiliaryHead
from jaxlab.models.classifiers import MLP, ConvEncoder, ConvNet, ConvOutput, ModelOutput
from jaxlab.models.convolution import Conv
from jaxlab.models.decoder import (
  DECODER_SHARDING_RULES,
  DecoderLM,
  DecoderOutput,
  flops_per_token,
  init_cache,
  num_parameters,
)
from jaxlab.models.decoder_architecture import DecoderConfig, decoder_config
from jaxlab.models.decoder_blocks import KVCache
from jaxlab.models.early_exit import (
  EarlyExitNet,
  EarlyExitOutput,
  UncertaintyGate,
  gate_features,
  stage_costs,
)
from jaxlab.models.fusion_ratio import FusionRatioNet
from jaxlab.models.gp_vae import (
  MissingnessModel,
  SeriesClassifier,
  SeriesDecoder,
  SeriesEncoder,
  cauchy_kernel,
  gp_prior_log_prob,
  time_encoding,
)
from jaxlab.models.in_context import (
  InContextLSTM,
  InContextOuterProductLSTM,
  InContextTransformer,
  interleave_pairs,
  mean_and_variance,
)
from jaxlab.models.label_attention import LabelCrossAttention, masked_attention, pool_states
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
from jaxlab.models.pretrained import Pretrained, load_pretrained, logits_from_hf, save_pretrained
from jaxlab.models.pretrained_adapters import LoadedAdapter, load_adapter, save_adapter
from jaxlab.models.pretrained_config import config_from_hf, config_to_hf
from jaxlab.models.pretrained_tensors import params_from_hf, params_to_hf
from jaxlab.models.pretrained_vocabulary import add_tokens
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
from jaxlab.models.rotary import RotaryConfig, RotaryFrequencies, apply_rotary, rotary_frequencies
from jaxlab.models.scattering import (
  base_kernels,
  scatter_all_features,
  scatter_features,
  scattering_kernels,
)
from jaxlab.models.speech import EncodedSpeech, SpeechCache, SpeechEncoderDecoder
from jaxlab.models.vision_checkpoint import load_vision_checkpoint, save_vision_checkpoint
from jaxlab.models.vision_language import SceneQuestionAnswerer
from jaxlab.models.vit import ViT

if TYPE_CHECKING:
  from jaxlab.models.pfn_estimators import PFNClassifier, PFNRegressor
  from jaxlab.models.series_estimators import LightWaveSClassifier
  from jaxlab.models.series_imputer import SeriesImputer

__all__ = [
  "add_tokens",
  "all_pairs_patch_logits",
  "apply_rotary",
  "AuxiliaryHead",
  "base_kernels",
  "cauchy_kernel",
  "config_from_hf",
  "config_to_hf",
  "context_query_mask",
  "Conv",
  "ConvEncoder",
  "ConvNet",
  "ConvOutput",
  "decoder_config",
  "DECODER_SHARDING_RULES",
  "DecoderConfig",
  "DecoderLM",
  "DecoderOutput",
  "EarlyExitNet",
  "EarlyExitOutput",
  "EncodedSpeech",
  "flops_per_token",
  "FusionRatioNet",
  "gate_features",
  "ghost_batch_norm",
  "GhostBatchNorm",
  "gp_prior_log_prob",
  "GroupNorm",
  "InContextLSTM",
  "InContextOuterProductLSTM",
  "InContextTransformer",
  "init_cache",
  "init_patch_cnn",
  "interleave_pairs",
  "KVCache",
  "LabelCrossAttention",
  "LightWaveSClassifier",
  "load_adapter",
  "load_pfn",
  "load_pretrained",
  "load_vision_checkpoint",
  "LoadedAdapter",
  "logits_from_hf",
  "masked_attention",
  "mean_and_variance",
  "MissingnessModel",
  "mixed_batch_norm",
  "MLP",
  "ModelOutput",
  "NormOutput",
  "num_parameters",
  "params_from_hf",
  "params_to_hf",
  "patch_cnn_logits",
  "PFN",
  "PFNClassifier",
  "PFNRegressor",
  "PFNTask",
  "pool_states",
  "Pretrained",
  "ResNet",
  "resnet18",
  "resnet50",
  "resnext29",
  "resnext50",
  "rotary_frequencies",
  "RotaryConfig",
  "RotaryFrequencies",
  "save_adapter",
  "save_pfn",
  "save_pretrained",
  "save_vision_checkpoint",
  "scatter_all_features",
  "scatter_features",
  "scattering_kernels",
  "SceneQuestionAnswerer",
  "SeriesClassifier",
  "SeriesDecoder",
  "SeriesEncoder",
  "SeriesImputer",
  "SpeechCache",
  "SpeechEncoderDecoder",
  "stage_costs",
  "time_encoding",
  "TrainedPFN",
  "UncertaintyGate",
  "ViT",
  "wide_resnet28_10",
  "wide_resnet50_2",
  "WideResNet",
]


_ESTIMATORS = {"LightWaveSClassifier": "series_estimators", "SeriesImputer": "series_imputer"}


def __getattr__(name: str):
  """Imports the estimators on first use: scikit-learn takes longer than the rest of the room."""
  if name in __all__:
    importlib.import_module("jaxlab._extras").import_extra("sklearn", extra="sklearn")
    module = _ESTIMATORS.get(name, "pfn_estimators")
    return getattr(importlib.import_module(f"jaxlab.models.{module}"), name)
  raise AttributeError(f"module 'jaxlab.models' has no attribute {name!r}")


def __dir__():
  return __all__
