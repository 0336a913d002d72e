"""Calls of the augmentations."""

import numpy as np

from jaxlab.augment import (
  IMAGE_CORRUPTIONS,
  SIGNAL_CORRUPTIONS,
  ChannelStatistics,
  ParaphraseGrammar,
  random_flip,
)
from tests.contracts.calls import KEY, B, b, c, call, f, p, t, u

_SEVERITY = np.array(3, np.int32)
_DRAWN = {"traced_floats": "part"}
_GRAMMAR = ParaphraseGrammar([[-1], [2], [1], [-1]], [[1, -1], [-1, 2, 3]], [3])


def _square_error(inputs, labels):
  return (inputs.sum(-1) - labels) ** 2


TABLE = {
  "adaptive_strong_views": call(KEY, u(B, 8, 8, 1), b(B), strong_fn=random_flip).but(keeps=True),
  "align_distribution": call(p(B, 4), p(4), p(4)),
  "all_pairs_mix": call(f(5, 2), ratio=0.3).but(keeps=True),
  "apply_span_mask": call(f(B, 5, 2), b(B, 5), f(2)).but(keeps=True),
  "blur_signals": call(f(B, 8, 2), u(B)).but(keeps=True),
  "box_masks": call(c(B, 2), u(B), height=4, width=4).but(
    quiet="ratio", skip={"gradients": "steps"}
  ),
  "box_mix": call(u(B, 4, 4, 1), u(B, 4, 4, 1), b(B, 4, 4)).but(keeps=True),
  "calibrate_mask_offset": call(f(5, 4, 2), observed_share=0.3).but(skip={"gradients": "steps"}),
  "channel_statistics": call(f(5, 2, 4)),
  "channel_statistics:lengths": call(f(5, 2, 4), lengths=c(5)),
  "center_surround_saliency": call(u(B, 8, 8, 1)),
  "classifier_label_map": call(f(B, 4, 4, 2), f(2, 4), f(4)),
  "corruption_stream": call(
    KEY, f(5, 8, 2), c(5), kinds=("gaussian_noise",), severities=(1,), batch_size=2
  ).but(keeps=True),
  "cutmix": call(KEY, u(4, 8, 8, 1), c(4)).but(keeps=True, skip=_DRAWN),
  "cutmix:rows": call(KEY, u(4, 8, 8, 1), c(4), per_example=True).but(keeps=True, skip=_DRAWN),
  "decay_impute": call(f(B, 5, 2), f(B, 5, 2), b(B, 5, 2), u(B, 5), rate=u(2), bias=u(2)),
  "dense_label_map": call(f(B, 4, 4, 2), c(B, 4, 4, 2), num_classes=4),
  "draw_mix": call(KEY, batch_size=4),
  "embedding_noise": call(KEY, f(B, 5, 2), c(B)).but(keeps=True, quiet="embeddings"),
  "confident_span_mask": call(KEY, u(B, 5), c(B), num_masked=2.5),
  "expand_spans": call(b(B, 5), c(B)),
  "cutout": call(KEY, f(B, 8, 4)).but(keeps=True),
  "decibels_below_peak": call(f(B, 5)),
  "fgsm": call(_square_error, u(B, 4), u(B), epsilon=0.1).but(
    keeps=True, skip={"gradients": "steps"}
  ),
  "forward_fill": call(f(B, 5, 2), b(B, 5, 2)).but(keeps=True),
  "guess_labels": call(p(2, B, 4)),
  "interpolate_pairs": call(f(5, 2), c(5), 0.3).but(keeps=True),
  "jitter_images": call(KEY, u(B, 8, 8, 1)).but(keeps=True),
  "jitter_signals": call(KEY, f(B, 8, 2)).but(keeps=True),
  "log_mel_spectrogram": call(f(B, 64), sample_rate=8000, fft_size=16, hop=8, num_mels=4).but(
    static="fmin"
  ),
  "log_mel_spectrogram:power": call(
    f(B, 64), sample_rate=8000, fft_size=16, hop=8, num_mels=4, scale="htk", power=2, padding="end"
  ).but(static="fmin"),
  "mask_not_at_random": call(KEY, f(B, 5, 2), offset=f(2)).but(skip={"gradients": "integers"}),
  "mask_rate_schedule": call(t(B), total_steps=8.0),
  "mask_reasoning_tokens": call(KEY, c(B, 5), b(B, 5), rate=0.5, mask_token_id=4).but(
    static="random_fraction"
  ),
  "mask_reasoning_tokens:random": call(
    KEY, c(B, 5), b(B, 5), rate=0.5, mask_token_id=4, random_fraction=0.5, vocab_size=4
  ),
  "mix_regression_pairs": call(KEY, f(5, 2), f(5, 1), c(4), c(4)).but(keeps=True, skip=_DRAWN),
  "mixing_layer": call(KEY, num_layers=4),
  "mixup": call(KEY, f(4, 2), c(4)).but(keeps=True, skip=_DRAWN),
  "mixup:rows": call(KEY, f(4, 2), c(4), per_example=True).but(keeps=True, skip=_DRAWN),
  "mixup_pairs": call(KEY, f(4, 2), f(4, 2), p(4, 4), p(4, 4)).but(keeps=True, skip=_DRAWN),
  "multi_mixup": call(KEY, f(4, 2), c(4)).but(keeps=True),
  "observation_dropout": call(KEY, b(B, 5, 2), rate=0.4, num_draws=(2,)),
  "occlude": call(KEY, f(B, 16)).but(keeps=True),
  "paraphrase": call(KEY, c(B, 5), _GRAMMAR, strength=0.5),
  "pool_label_map": call(f(B, 4, 4, 2), u(B, 4)),
  "pool_label_map_single": call(f(B, 4, 4, 2), u(B, 4)).but(skip={"gradients": "steps"}),
  "paste_half": call(KEY, u(B, 8, 8, 1), u(B, 8, 8, 1)).but(keeps=True),
  "paste_half:signals": call(KEY, f(B, 8, 1), f(B, 8, 1)).but(keeps=True),
  "rand_augment": call(KEY, u(B, 8, 8, 1)).but(keeps=True),
  "random_crop": call(KEY, u(B, 8, 8, 1)).but(keeps=True),
  "random_erase": call(KEY, u(B, 8, 8, 1), size=2).but(keeps=True),
  "random_flip": call(KEY, u(B, 8, 8, 1)).but(keeps=True),
  "random_resized_crop": call(KEY, u(B, 8, 8, 1), size=4, scale=(0.5, 0.8), ratio=(0.9, 1.1)).but(
    keeps=True
  ),
  "random_starts": call(KEY, c(B), max_length=5),
  "random_gain": call(KEY, u(B, 8, 8, 1), low=0.5, high=1.5).but(keeps=True),
  "random_rotate_shear": call(KEY, u(B, 8, 8, 1), max_degrees=20.0, max_shear=0.2).but(keeps=True),
  "random_shift": call(KEY, u(B, 8, 8, 1), max_shift=2).but(keeps=True),
  "replace_tokens": call(c(B, 5), b(B, 5), c(B, 5)),
  "roi_align_mean": call(f(B, 4, 4, 2), u(B, 4)),
  "saliency_box_mix": call(KEY, u(4, 8, 8, 1), c(4)).but(keeps=True, skip=_DRAWN),
  "sample_confident_starts": call(KEY, u(B, 5), c(B), num_frames=2),
  "sample_distractors": call(KEY, b(B, 5), num_distractors=4),
  "segment_masks": call(c(B), u(B), length=5).but(quiet="ratio", skip={"gradients": "steps"}),
  "segment_mix": call(KEY, f(4, 8, 2), c(4)).but(keeps=True, skip=_DRAWN),
  "standardize_channels": call(f(5, 2, 4)),
  "standardize_channels:given": call(
    f(B, 2, 4), statistics=ChannelStatistics(f(2), u(2)), lengths=c(B)
  ),
  "sparsify_label_map": call(f(B, 4, 4, 4), num_labels=2),
  "sharpen": call(p(B, 4)),
  "speed_perturb": call(KEY, f(B, 16)).but(keeps=True),
  **{
    f"corrupt_images:{kind}": call(KEY, u(B, 8, 8, 1), kind=kind, severity=_SEVERITY).but(
      keeps=True
    )
    for kind in IMAGE_CORRUPTIONS
  },
  **{
    f"corrupt_signals:{kind}": call(KEY, f(B, 16, 2), kind=kind, severity=_SEVERITY).but(keeps=True)
    for kind in SIGNAL_CORRUPTIONS
  },
  "top_confidence_frames": call(u(B, 5), c(B), num_frames=2),
  "top_confidence_frames:rows": call(u(B, 5), c(B), num_frames=c(B)),
}
