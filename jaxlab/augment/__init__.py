"""Inputs and labels in, perturbed inputs and labels out.

Arguments are arrays, numbers or lists of numbers. Of another shape than documented they raise
ValueError, of another type TypeError, by name.
"""

from jaxlab.augment.adversarial import fgsm
from jaxlab.augment.boxes import BoxMix, box_masks, box_mix, center_surround_saliency, segment_masks
from jaxlab.augment.corruptions import (
  SIGNAL_CORRUPTIONS,
  CorruptionStream,
  corrupt_signals,
  corruption_stream,
)
from jaxlab.augment.crops import (
  CropOutput,
  jitter_images,
  random_crop,
  random_flip,
  random_resized_crop,
)
from jaxlab.augment.image_corruptions import IMAGE_CORRUPTIONS, corrupt_images
from jaxlab.augment.images import (
  adaptive_strong_views,
  paste_half,
  rand_augment,
  random_erase,
  random_gain,
  random_rotate_shear,
  random_shift,
)
from jaxlab.augment.interpolation import (
  MultiMixed,
  RegressionMix,
  all_pairs_mix,
  interpolate_pairs,
  mix_regression_pairs,
  multi_mixup,
)
from jaxlab.augment.label_maps import (
  SparseLabelMap,
  classifier_label_map,
  dense_label_map,
  pool_label_map,
  pool_label_map_single,
  roi_align_mean,
  sparsify_label_map,
)
from jaxlab.augment.missing import (
  ObservationDropout,
  calibrate_mask_offset,
  decay_impute,
  forward_fill,
  mask_not_at_random,
  observation_dropout,
)
from jaxlab.augment.mixing import (
  MixDraw,
  Mixed,
  MixedPair,
  cutmix,
  draw_mix,
  mixing_layer,
  mixup,
  mixup_pairs,
  saliency_box_mix,
  segment_mix,
)
from jaxlab.augment.paraphrasing import ParaphraseGrammar, extract_choice, paraphrase
from jaxlab.augment.series import ChannelStatistics, channel_statistics, standardize_channels
from jaxlab.augment.signals import blur_signals, jitter_signals
from jaxlab.augment.soft_labels import align_distribution, guess_labels, sharpen
from jaxlab.augment.spans import (
  apply_span_mask,
  confident_span_mask,
  expand_spans,
  random_starts,
  sample_confident_starts,
  sample_distractors,
  top_confidence_frames,
)
from jaxlab.augment.spectrograms import (
  cutout,
  decibels_below_peak,
  log_mel_spectrogram,
  mel_filterbank,
  occlude,
  speed_perturb,
)
from jaxlab.augment.tokens import (
  MaskedTokens,
  embedding_noise,
  mask_rate_schedule,
  mask_reasoning_tokens,
  replace_tokens,
)

__all__ = [
  "adaptive_strong_views",
  "align_distribution",
  "all_pairs_mix",
  "apply_span_mask",
  "blur_signals",
  "box_masks",
  "box_mix",
  "BoxMix",
  "calibrate_mask_offset",
  "center_surround_saliency",
  "channel_statistics",
  "ChannelStatistics",
  "classifier_label_map",
  "confident_span_mask",
  "corrupt_images",
  "corrupt_signals",
  "corruption_stream",
  "CorruptionStream",
  "CropOutput",
  "cutmix",
  "cutout",
  "decay_impute",
  "decibels_below_peak",
  "dense_label_map",
  "draw_mix",
  "embedding_noise",
  "expand_spans",
  "extract_choice",
  "fgsm",
  "forward_fill",
  "guess_labels",
  "IMAGE_CORRUPTIONS",
  "interpolate_pairs",
  "jitter_images",
  "jitter_signals",
  "log_mel_spectrogram",
  "mask_not_at_random",
  "mask_rate_schedule",
  "mask_reasoning_tokens",
  "MaskedTokens",
  "mel_filterbank",
  "mix_regression_pairs",
  "MixDraw",
  "Mixed",
  "MixedPair",
  "mixing_layer",
  "mixup",
  "mixup_pairs",
  "multi_mixup",
  "MultiMixed",
  "observation_dropout",
  "ObservationDropout",
  "occlude",
  "paraphrase",
  "ParaphraseGrammar",
  "paste_half",
  "pool_label_map",
  "pool_label_map_single",
  "rand_augment",
  "random_crop",
  "random_erase",
  "random_flip",
  "random_gain",
  "random_resized_crop",
  "random_rotate_shear",
  "random_shift",
  "random_starts",
  "RegressionMix",
  "replace_tokens",
  "roi_align_mean",
  "saliency_box_mix",
  "sample_confident_starts",
  "sample_distractors",
  "segment_masks",
  "segment_mix",
  "sharpen",
  "SIGNAL_CORRUPTIONS",
  "SparseLabelMap",
  "sparsify_label_map",
  "speed_perturb",
  "standardize_channels",
  "top_confidence_frames",
]


def __dir__():
  return __all__
