"""Spans of speech frames to hide, for pretraining by masked prediction.

Starts of spans are drawn at random or where a recognizer is sure, and then expanded.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry


def expand_spans(starts: chex.Array, lengths: chex.Array, *, span_length: int = 10) -> jax.Array:
  """Masks the frames from each start on; spans that overlap merge.

  Args:
    starts: where spans begin, bool or 0 and 1, `[b, T]`; those after the end do nothing.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    span_length: frames of a span, at least 1; a span ends with its utterance at the latest.

  Returns:
    1 for masked frames and 0 for others, int32 `[b, T]`.

  Raises:
    ValueError: if `span_length` < 1 or a known length lies outside [0, T].

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 3.1,
  https://arxiv.org/abs/2006.11477; Baskar et al., Ask2Mask, IEEE JSTSP 2022,
  https://arxiv.org/abs/2202.12719.
  """
  check_at_least(1, span_length=span_length)
  check_arrays(starts=(starts, "[b, T]"), lengths=(lengths, "int [b]"))
  starts = jnp.asarray(starts).astype(bool)
  inside = _inside(lengths, starts.shape[1])
  times = jnp.broadcast_to(jnp.arange(starts.shape[1], dtype=jnp.int32)[None], starts.shape)
  last_start = jax.lax.cummax(jnp.where(starts & inside, times, -span_length), axis=1)
  return (inside & (times - last_start < span_length)).astype(jnp.int32)


def _inside(lengths: chex.Array, size: int) -> jax.Array:
  """Which of `size` frames are before the end, bool `[b, size]`."""
  check_range("lengths", lengths, f"[0, {size}]")
  lengths = jnp.asarray(lengths)
  lengths = lengths.astype(jnp.promote_types(lengths.dtype, jnp.int32))
  return jnp.arange(size)[None] < lengths[:, None]


def top_confidence_frames(
  confidence: chex.Array, lengths: chex.Array, *, num_frames: chex.Numeric
) -> jax.Array:
  """The frames of each utterance of which a recognizer is most sure.

  Equal confidences give the first frames, one long span in effect; `sample_confident_starts`
  spreads them.

  Args:
    confidence: confidence in each frame, such as `metrics.frame_confidence` gives it, `[b, T]`;
      NaN is lower than every number.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    num_frames: frames to choose, at least 1, for all utterances or for each, int `[b]`.

  Returns:
    1 for chosen frames and 0 for others, int32 `[b, T]`; the earliest on ties, and all frames of an
    utterance that has fewer than `num_frames`.

  Raises:
    ValueError: if a known `num_frames` < 1 or a known length lies outside [0, T].

  Reference: Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech Modeling,
  IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  count = _checked_count(confidence, lengths, num_frames)
  scores = as_accumulator(confidence)
  return _largest(scores, _inside(lengths, scores.shape[1]), count).astype(jnp.int32)


def _checked_count(confidence, lengths, num_frames) -> jax.Array:
  """Checks the arguments of a choice of frames; their number, `[b, 1]` or `[1, 1]`."""
  check_arrays(
    confidence=(confidence, "[b, T]"),
    lengths=(lengths, "int [b]"),
    num_frames=(num_frames, "int [b]" if jnp.ndim(num_frames) else "int []"),
  )
  check_range("num_frames", num_frames, "[1, inf)")
  count = jnp.asarray(num_frames)
  return count.astype(jnp.promote_types(count.dtype, jnp.int32)).reshape(-1, 1)


def _largest(scores: jax.Array, allowed: jax.Array, count: jax.Array) -> jax.Array:
  """Which are the `count` largest of the allowed scores of each row, bool `[b, T]`."""
  order = jnp.lexsort((-jax.lax.stop_gradient(scores), ~allowed), axis=-1)
  return allowed & (jnp.argsort(order, axis=-1) < count)


def random_starts(
  key: chex.PRNGKey, lengths: chex.Array, *, max_length: int, probability: chex.Numeric = 0.065
) -> jax.Array:
  """Draws where spans begin, independently in every frame.

  Args:
    key: random key.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    max_length: frames T of the longest utterance.
    probability: of a start, in (0, 1].

  Returns:
    1 for starts and 0 for others, int32 `[b, T]`.

  Raises:
    ValueError: if `probability` lies outside (0, 1], `max_length` < 1, or a known length lies
      outside [0, T].

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 4.2,
  https://arxiv.org/abs/2006.11477.
  """
  check_at_least(1, max_length=max_length)
  check_range("probability", probability, "(0, 1]")
  check_arrays(lengths=(lengths, "int [b]"))
  inside = _inside(lengths, max_length)
  drawn = jax.random.bernoulli(key, as_accumulator(probability), inside.shape)
  return (inside & drawn).astype(jnp.int32)


def sample_confident_starts(
  key: chex.PRNGKey,
  confidence: chex.Array,
  lengths: chex.Array,
  *,
  num_frames: chex.Numeric,
  pool: int = 2,
  sharpness: chex.Numeric = 10.0,
) -> jax.Array:
  """Draws starts of spans among the most confident frames, other ones in every epoch.

  The `pool * num_frames` most confident frames of an utterance are candidates. Of these,
  `num_frames` are drawn one after the other without replacement, with probabilities in proportion
  to `exp(sharpness * confidence)`.

  Args:
    key: random key.
    confidence: confidence in each frame, `[b, T]`; NaN is lower than every number.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    num_frames: starts to draw, at least 1, for all utterances or for each, int `[b]`.
    pool: candidates per start, at least 1, which gives `top_confidence_frames`.
    sharpness: how much more often a more confident candidate is drawn, at least 0; 0 draws
      uniformly.

  Returns:
    1 for starts and 0 for others, int32 `[b, T]`; all frames of an utterance that has fewer than
    `num_frames`.

  Raises:
    ValueError: if a known `num_frames` < 1, `pool` < 1, `sharpness` < 0, or a known length lies
      outside [0, T].

  Reference: Baskar et al., Ask2Mask, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719; Kool et
  al., Stochastic Beams and Where to Find Them, ICML 2019 (the draw by Gumbel noise),
  https://arxiv.org/abs/1903.06059.
  """
  check_at_least(1, pool=pool)
  check_range("sharpness", sharpness, "[0, inf)")
  count = _checked_count(confidence, lengths, num_frames)
  scores = as_accumulator(confidence)
  candidates = _largest(scores, _inside(lengths, scores.shape[1]), pool * count)
  noisy = sharpness * scores + jax.random.gumbel(key, scores.shape, scores.dtype)
  return _largest(noisy, candidates, count).astype(jnp.int32)


def confident_span_mask(
  key: chex.PRNGKey,
  confidence: chex.Array,
  lengths: chex.Array,
  *,
  num_masked: chex.Numeric,
  span_length: int = 10,
  pool: int = 2,
  sharpness: chex.Numeric = 10.0,
) -> jax.Array:
  """Masks spans from confident frames on, until a given number of frames is masked.

  Confident frames stand side by side, and their spans merge: they mask fewer frames than as many
  random starts. Here each utterance has as many starts of `sample_confident_starts` as it needs,
  and the last is drawn with the probability that makes the mean number of masked frames exact.

  Args:
    key: random key.
    confidence: confidence in each frame, `[b, T]`; NaN is lower than every number.
    lengths: frames of each utterance, int `[b]`, in [0, T].
    num_masked: frames to mask on average, at least 0, for all utterances or for each, `[b]`; all of
      an utterance that has fewer.
    span_length: frames of a span, at least 1.
    pool: as in `sample_confident_starts`.
    sharpness: likewise.

  Returns:
    1 for masked frames and 0 for others, int32 `[b, T]`.

  Raises:
    ValueError: if a number is out of range, or shapes do not agree.

  Reference: Baskar et al., Ask2Mask, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_at_least(1, span_length=span_length, pool=pool)
  check_range("sharpness", sharpness, "[0, inf)")
  check_range("num_masked", num_masked, "[0, inf)")
  check_arrays(
    confidence=(confidence, "[b, T]"),
    lengths=(lengths, "int [b]"),
    num_masked=(num_masked, "[b]" if jnp.ndim(num_masked) else "[]"),
  )
  scores = as_accumulator(confidence)
  check_range("lengths", lengths, f"[0, {scores.shape[1]}]")
  lengths = jnp.asarray(lengths).astype(jnp.int32)
  wanted = jnp.minimum(as_accumulator(num_masked), lengths)
  return _span_mask(key, scores, lengths, wanted, span_length, pool, sharpness)


@compiled_once
def _span_mask(key, scores, lengths, wanted, span_length, pool, sharpness) -> jax.Array:
  start_key, last_key = jax.random.split(key)
  scores = jax.lax.stop_gradient(scores)

  def masked(count):
    options = {"num_frames": count, "pool": pool, "sharpness": sharpness}
    starts = sample_confident_starts(start_key, scores, lengths, **options)
    return expand_spans(starts, lengths, span_length=span_length)

  def halve(carry):
    """Fewer starts mask less than what is wanted, or are none; more of them mask enough."""
    fewer, more = carry
    middle = (fewer + more) // 2
    enough = jnp.sum(masked(middle), axis=1) >= wanted
    return jnp.where(enough, fewer, middle), jnp.where(enough, middle, more)

  # All frames are starts at T.
  carry = jnp.zeros_like(lengths), jnp.full_like(lengths, scores.shape[1])
  carry = varying_carry(halve, carry)
  steps = scores.shape[1].bit_length()
  carry = jax.lax.fori_loop(0, steps, lambda _, carry: halve(carry), carry)
  below, above = (masked(count) for count in carry)
  less, enough = (jnp.sum(mask, axis=1) for mask in (below, above))
  part = (wanted - less) / jnp.maximum(enough - less, 1)
  is_last = jax.random.uniform(last_key, part.shape, part.dtype) < part
  return jnp.where(is_last[:, None], above, below)


def sample_distractors(
  key: chex.PRNGKey, mask: chex.Array, *, num_distractors: int = 100
) -> jax.Array:
  """Draws wrong answers of a contrastive task: other masked frames of the same utterance.

  Args:
    key: random key.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.
    num_distractors: number K of distractors for each frame.

  Returns:
    Indices of frames, int32 `[b, T, K]`, uniform over the other masked frames of the row, with
    replacement. Where there is no other, and at frames that are not masked, it is the frame itself,
    which `losses.masked_contrastive_loss` leaves out.

  Raises:
    ValueError: if `num_distractors` < 1.

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 3.2,
  https://arxiv.org/abs/2006.11477.
  """
  check_at_least(1, num_distractors=num_distractors)
  check_arrays(mask=(mask, "[b, T]"))
  mask = jnp.asarray(mask).astype(bool)
  shape = (*mask.shape, num_distractors)
  others = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32)[..., None] - 1
  # Numbers of masked frames, without the frame's own.
  drawn = jax.random.randint(key, shape, 0, jnp.maximum(others, 1), jnp.int32)
  own = jnp.cumsum(mask, axis=1, dtype=jnp.int32)[..., None] - 1
  drawn = drawn + (drawn >= own)
  masked_first = jnp.argsort(~mask, axis=1, stable=True).astype(jnp.int32)
  flat = drawn.reshape(mask.shape[0], -1)
  index = jnp.take_along_axis(masked_first, flat, axis=1, mode="clip").reshape(shape)
  itself = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  return jnp.where(mask[..., None] & (others > 0), index, itself)


def apply_span_mask(frames: chex.Array, mask: chex.Array, mask_vector: chex.Array) -> jax.Array:
  """Puts a vector, which is usually learned, in the place of masked frames.

  Args:
    frames: `[b, T, d]`; masked ones may be NaN.
    mask: which frames are masked, bool or 0 and 1, `[b, T]`.
    mask_vector: `[d]`.

  Returns:
    Frames, `[b, T, d]`, in the type of `frames`.

  Reference: Baevski et al., wav2vec 2.0, NeurIPS 2020, section 3.1,
  https://arxiv.org/abs/2006.11477.
  """
  check_arrays(
    frames=(frames, "float [b, T, d]"), mask=(mask, "[b, T]"), mask_vector=(mask_vector, "[d]")
  )
  frames = jnp.asarray(frames)
  vector = jnp.asarray(mask_vector).astype(frames.dtype)[None, None]
  return jnp.where(jnp.asarray(mask).astype(bool)[..., None], vector, frames)
