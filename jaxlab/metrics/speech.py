"""Metrics of speech recognizers: confidence, use of codebooks, and errors of transcripts."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range
from jaxlab.losses.sequence import sequence_log_prob
from jaxlab.losses.speech import usage_perplexity
from jaxlab.metrics.displacement import edit_distance


class Collapsed(NamedTuple):
  """Transcripts read from the frames of utterances.

  Attributes:
    tokens: int32 `[b, T]`; blanks after the end.
    lengths: tokens of each transcript, int32 `[b]`.
  """

  tokens: chex.Array
  lengths: chex.Array


def frame_confidence(logits: chex.Array) -> jax.Array:
  """Probability of the most probable class of each frame.

  Args:
    logits: scores of the classes, the blank of a CTC model included, `[..., T, V]`.

  Returns:
    Confidence in [1 / V, 1], `[..., T]`, in float32 or wider.

  Reference: Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech Modeling,
  IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_arrays(logits=(logits, "[..., T, V]"))
  return jnp.max(jax.nn.softmax(as_accumulator(logits), axis=-1), axis=-1)


def utterance_confidence(confidence: chex.Array, mask: chex.Array) -> jax.Array:
  """Mean confidence of the frames of each utterance.

  Args:
    confidence: confidence in each frame, `[b, T]`.
    mask: which frames there are, bool or 0 and 1, `[b, T]`; others may be NaN.

  Returns:
    Means, `[b]`, in float32 or wider; 0 for an utterance without frames.

  Reference: Baskar et al., Ask2Mask, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_arrays(confidence=(confidence, "[b, T]"), mask=(mask, "[b, T]"))
  return sequence_log_prob(confidence, mask, normalize_length=True)


def codebook_perplexity(probs: chex.Array, mask: chex.Array) -> jax.Array:
  """How many entries of its codebooks a quantizer uses in effect.

  Args:
    probs: probabilities of the V entries of each of G groups, `[b, T, G, V]`.
    mask: which frames count, bool or 0 and 1, `[b, T]`.

  Returns:
    The perplexity of the mean probabilities of a group, summed over groups, a scalar in float32 or
    wider: from G (always the same entries, or an empty mask) to G V (all entries equally).

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, equation 4,
  https://arxiv.org/abs/2006.11477.
  """
  return usage_perplexity(probs, mask)


def ctc_greedy_collapse(logits: chex.Array, lengths: chex.Array, *, blank: int = 0) -> Collapsed:
  """Reads a transcript off a CTC model: best class of each frame, repeats merged, blanks dropped.

  Args:
    logits: scores of the classes, `[b, T, V]`.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    blank: the class that says nothing, in [0, V).

  Returns:
    A `Collapsed`; the lowest class on ties.

  Raises:
    ValueError: if `blank` lies outside [0, V) or a known length outside [0, T].

  Reference: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2,
  https://doi.org/10.1145/1143844.1143891.
  """
  check_arrays(logits=(logits, "[b, T, V]"), lengths=(lengths, "int [b]"))
  num_frames, num_classes = jnp.shape(logits)[1:]
  check_range("blank", blank, f"[0, {num_classes})")
  check_range("lengths", lengths, f"[0, {num_frames}]")
  best = jnp.argmax(jnp.asarray(logits), axis=-1).astype(jnp.int32)
  before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=-1)[:, :num_frames]
  inside = jnp.arange(num_frames)[None] < jnp.asarray(lengths).astype(jnp.int32)[:, None]
  kept = inside & (best != before) & (best != blank)
  order = jnp.argsort(~kept, axis=1, stable=True)
  count = jnp.sum(kept, axis=1, dtype=jnp.int32)
  tokens = jnp.take_along_axis(best, order, axis=1)
  return Collapsed(jnp.where(jnp.arange(num_frames)[None] < count[:, None], tokens, blank), count)


def token_error_rate(
  tokens: chex.Array, lengths: chex.Array, references: chex.Array, reference_lengths: chex.Array
) -> jax.Array:
  """Errors of transcripts per token of the reference; the word error rate if tokens are words.

  Args:
    tokens: transcripts, int `[b, T]`; what stands behind their lengths is ignored.
    lengths: their lengths, int `[b]`, in [0, T].
    references: what was said, int `[b, R]`.
    reference_lengths: their lengths, int `[b]`, in [0, R].

  Returns:
    Smallest number of insertions, deletions and substitutions, over the length of the reference (at
    least 1), float32 `[b]`; above 1 where a transcript is too long, NaN where a traced length is
    out of range. The rate of a corpus is the sum of errors over that of lengths.

  Raises:
    ValueError: if a known length is out of range.

  Reference: Wagner and Fischer, The String-to-String Correction Problem, Journal of the ACM 1974,
  section 3, https://doi.org/10.1145/321796.321811.
  """
  check_arrays(
    tokens=(tokens, "int [b, T]"),
    lengths=(lengths, "int [b]"),
    references=(references, "int [b, R]"),
    reference_lengths=(reference_lengths, "int [b]"),
  )
  check_range("lengths", lengths, f"[0, {jnp.shape(tokens)[1]}]")
  check_range("reference_lengths", reference_lengths, f"[0, {jnp.shape(references)[1]}]")
  distance = edit_distance(tokens, lengths, references, reference_lengths)
  return distance / jnp.maximum(jnp.asarray(reference_lengths).astype(jnp.int32), 1)
