"""Losses of masked frames of speech, for pretraining without transcripts.

A mask is 1 (or True) on the frames that are hidden from the network, which predicts them. Others
have loss and gradients 0, even if they are NaN.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_range,
  is_known,
  weighted,
)
from jaxlab.losses.adaptation import unit_vectors
from jaxlab.losses.sequence import sequence_log_prob, token_log_probs

_MIN_NORM = 1e-8
_LOG_OFFSET = 1e-7


def masked_contrastive_loss(
  context: chex.Array,
  targets: chex.Array,
  negative_indices: chex.Array,
  mask: chex.Array,
  *,
  temperature: chex.Numeric = 0.1,
) -> jax.Array:
  """Asks which target belongs to a masked frame: its own, or one of some distractors.

  Args:
    context: what the network makes of the masked utterance, `[b, T, d]`.
    targets: what it should be like, `[b, T, d]`. Gradients flow into them as well.
    negative_indices: frames of the same utterance whose targets are distractors, int `[b, T, K]`,
      in [0, T), as `augment.sample_distractors` draws them. One whose target equals the frame's
      own in every component is left out.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`. Only theirs, and the targets of their
      distractors, are read.
    temperature: divides the cosine similarities, > 0. A vector shorter than 1e-8 is divided by 1e-8
      in place of its length.

  Returns:
    Negative log-probability of the frame's own target in nats, `[b, T]`, in float32 or wider; 0 at
    frames that are not masked or have no distractor left, NaN where a traced distractor of a masked
    frame lies outside [0, T).

  Raises:
    ValueError: if `temperature` <= 0 or a known index lies outside [0, T).

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, equation 3,
  https://arxiv.org/abs/2006.11477; Baskar et al., Ask2Mask, IEEE JSTSP 2022,
  https://arxiv.org/abs/2202.12719.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_arrays(
    context=(context, "float [b, T, d]"),
    targets=(targets, "float [b, T, d]"),
    negative_indices=(negative_indices, "int [b, T, K]"),
    mask=(mask, "[b, T]"),
  )
  num_rows, num_frames, _ = jnp.shape(context)
  indices = as_classes("negative_indices", negative_indices, num_frames)
  context, targets = as_accumulator(context, targets)
  mask = jnp.asarray(mask).astype(bool)
  # What is not read is 0, as a NaN would spoil the gradient of the product with all targets.
  rows = jnp.arange(num_rows)[:, None, None]
  read = mask.astype(jnp.int32).at[rows, indices].max(mask[..., None].astype(jnp.int32)) > 0
  context = jnp.where(mask[..., None], context, 0.0)
  targets = jnp.where(read[..., None], targets, 0.0)
  # All pairs of an utterance, then the few that are asked for: a gather of the distractors' vectors
  # would be d times as large.
  cosines = jnp.einsum(
    "btd,bsd->bts", unit_vectors(context, _MIN_NORM), unit_vectors(targets, _MIN_NORM)
  )
  # XLA joins comparison and reduction only along the first axis.
  parts = jnp.moveaxis(targets, -1, 0)
  equal = jnp.all(parts[..., None] == parts[..., None, :], axis=0)
  left_out = jnp.take_along_axis(equal, indices, axis=-1, mode="clip") & (indices < num_frames)
  own = jax.lax.broadcasted_iota(indices.dtype, (num_rows, num_frames, 1), 1)
  positive, negative = (
    jnp.take_along_axis(cosines, index, axis=-1, mode="fill") for index in (own, indices)
  )
  negative = jnp.where(left_out, -jnp.inf, negative / temperature)
  logits = jnp.concatenate([positive / temperature, negative], axis=-1)
  logits = jnp.where(mask[..., None], logits, 0.0)
  return jnp.where(mask, -jax.nn.log_softmax(logits)[..., 0], 0.0)


def masked_prediction_loss(logits: chex.Array, targets: chex.Array, mask: chex.Array) -> jax.Array:
  """Cross-entropy to the discrete code of each masked frame.

  Args:
    logits: scores of the codes, `[b, T, V]`.
    targets: codes, int `[b, T]`, in [0, V); those of frames that are not masked may be anything.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.

  Returns:
    Loss per frame in nats, `[b, T]`, in float32 or wider; 0 at frames that are not masked, NaN
    where a traced target of a masked frame lies outside the codes.

  Raises:
    ValueError: if a known target of a known masked frame lies outside [0, V).

  Reference: Hsu et al., HuBERT, IEEE/ACM TASLP 2021, equation 1,
  https://arxiv.org/abs/2106.07447; Baskar et al., Ask2Mask, IEEE JSTSP 2022,
  https://arxiv.org/abs/2202.12719.
  """
  check_arrays(logits=(logits, "[b, T, V]"), targets=(targets, "int [b, T]"), mask=(mask, "[b, T]"))
  array = np if is_known((targets, mask)) else jnp
  counted = array.where(array.asarray(mask).astype(bool), array.asarray(targets), 0)
  targets = as_classes("targets", counted, jnp.shape(logits)[-1])
  mask = jnp.asarray(mask).astype(bool)
  log_probs = token_log_probs(jnp.where(mask[..., None], as_accumulator(logits), 0.0), targets)
  return jnp.where(mask, -log_probs, 0.0)


def codebook_diversity_loss(probs: chex.Array, mask: chex.Array) -> jax.Array:
  """How far the use of codebooks is from using all entries equally.

  Args:
    probs: probabilities of the V entries of each of G groups, `[b, T, G, V]`.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.

  Returns:
    `(G V - perplexity) / (G V)`, a scalar in [0, 1), in float32 or wider, where the perplexity is
    `metrics.codebook_perplexity`; `1 - 1 / V` for an empty mask.

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, equation 4, in the form of the published
  code, https://arxiv.org/abs/2006.11477.
  """
  num_entries = usage_perplexity(probs, mask)
  size = jnp.shape(probs)[-2] * jnp.shape(probs)[-1]
  return (size - num_entries) / size


def usage_perplexity(probs: chex.Array, mask: chex.Array) -> jax.Array:
  """Sum over groups of the perplexity of the mean probabilities of masked frames.

  Args:
    probs: `[b, T, G, V]`.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.

  Returns:
    `sum_g exp(-sum_v p log(p + 1e-7))` for the means p, a scalar in float32 or wider; G for an
    empty mask.
  """
  check_arrays(probs=(probs, "[b, T, G, V]"), mask=(mask, "[b, T]"))
  mask = jnp.asarray(mask).astype(bool)
  total = jnp.sum(jnp.where(mask[..., None, None], as_accumulator(probs), 0.0), axis=(0, 1))
  mean = total / jnp.maximum(jnp.sum(mask), 1)
  return jnp.sum(jnp.exp(-jnp.sum(mean * jnp.log(mean + _LOG_OFFSET), axis=-1)))


def utterance_weighted_loss(losses: chex.Array, mask: chex.Array, weights: chex.Array) -> jax.Array:
  """Mean loss of the masked frames of each utterance, times a weight.

  Args:
    losses: loss of each frame, `[b, T]`.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.
    weights: weight of each utterance, such as `metrics.utterance_confidence`, `[b]`. Gradients flow
      into them.

  Returns:
    Weighted losses, `[b]`, in float32 or wider; 0 for an utterance without masked frames. The loss
    of a batch is their mean, without a division by the sum of the weights.

  Reference: Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech Modeling,
  IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_arrays(losses=(losses, "[b, T]"), mask=(mask, "[b, T]"), weights=(weights, "[b]"))
  losses, weights = as_accumulator(losses, weights)
  return weighted(weights, sequence_log_prob(losses, mask, normalize_length=True))
