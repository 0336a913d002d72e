"""Spoken digits as pairs of rising tones, at a different rate in each utterance."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_filled,
  check_range,
)
from jaxlab._programs import compiled_once

TONE_BANDS = 16
# Tokens: 0 padding, 1 start, 2 end, then the ten digits.
_START, _END, _FIRST_DIGIT, _NUM_DIGITS = 1, 2, 3, 10
SPEECH_VOCAB_SIZE = _FIRST_DIGIT + _NUM_DIGITS
# Frames of a digit at the usual rate, and their limits.
_FRAMES, _MIN_FRAMES, _MAX_FRAMES = 8, 4, 20
_LENGTH_SPREAD, _DIGIT_SPREAD = 0.6, 0.15
_NOISE, _WIDTH, _RISE = 0.3, 0.6, 1.0
_TONES = np.array(
  [(low, high) for high in (8.5, 11.0, 13.5) for low in (0.5, 2.5, 4.5, 6.5)][:_NUM_DIGITS],
  np.float32,
)
# Between the bands over which the digits' tones rise.
_FOREIGN_TONES = np.array(
  [(low, high) for high in (7.5, 9.75, 12.25) for low in (1.5, 3.5, 5.5)], np.float32
)
_CORRUPTIONS = ("noise", "foreign")


class Utterances(NamedTuple):
  """Utterances and what is said in them.

  Attributes:
    frames: energies of 16 bands, float32 `[n, 20 max_digits, 16]`; 0 after the end.
    frame_lengths: int32 `[n]`.
    tokens: 1, the digits (0 is token 3), 2, then padding by 0; int32 `[n, max_digits + 2]`.
    token_lengths: tokens with their start and end, int32 `[n]`.
  """

  frames: chex.Array
  frame_lengths: chex.Array
  tokens: chex.Array
  token_lengths: chex.Array


class CorruptedSpeech(NamedTuple):
  """Utterances of which parts are replaced.

  Attributes:
    frames: energies of bands, `[b, T, d]`.
    is_corrupted: which frames are replaced, bool `[b, T]`.
  """

  frames: chex.Array
  is_corrupted: chex.Array


@compiled_once
def sample_utterances(
  key: chex.PRNGKey,
  *,
  num_samples: int,
  min_digits: int = 1,
  max_digits: int = 24,
  rate_spread: chex.Numeric = 0.45,
) -> Utterances:
  """Draws utterances.

  A digit is two tones that rise by a band while it lasts, swell and fade, in noise. The number of
  digits is log-normal around the geometric mean of its limits. So is the length of a digit around 8
  frames, within 4 to 20, mostly from utterance to utterance: equal lengths hold different numbers
  of tokens.

  Args:
    key: random key.
    num_samples: number n of utterances.
    min_digits: fewest digits of an utterance, at least 1.
    max_digits: most digits of an utterance, at least `min_digits`.
    rate_spread: standard deviation of the logarithm of an utterance's rate, at least 0.

  Returns:
    `Utterances`; `SPEECH_VOCAB_SIZE` tokens are in use.

  Raises:
    ValueError: if a count is too small or `rate_spread` is negative.

  Reference: a setting for Żelasko et al., Training and Inference Efficiency of Encoder-Decoder
  Speech Models, 2025, https://arxiv.org/abs/2503.05931.
  """
  check_at_least(1, num_samples=num_samples, min_digits=min_digits)
  check_at_least(min_digits, max_digits=max_digits)
  check_range("rate_spread", rate_spread, "[0, inf)")
  keys = jax.random.split(key, 5)
  cells = (num_samples, max_digits)
  middle = 0.5 * (np.log(min_digits) + np.log(max_digits))
  log_count = middle + _LENGTH_SPREAD * jax.random.normal(keys[0], (num_samples,))
  count = jnp.clip(jnp.round(jnp.exp(log_count)), min_digits, max_digits).astype(jnp.int32)
  digits = jax.random.randint(keys[1], cells, 0, _NUM_DIGITS, jnp.int32)
  log_length = rate_spread * jax.random.normal(keys[2], (num_samples, 1))
  log_length = log_length + _DIGIT_SPREAD * jax.random.normal(keys[3], cells)
  length = jnp.round(_FRAMES * jnp.exp(log_length))
  length = jnp.clip(length, _MIN_FRAMES, _MAX_FRAMES).astype(jnp.int32)
  place = jnp.arange(max_digits)[None]
  length = jnp.where(place < count[:, None], length, 0)
  ends = jnp.cumsum(length, axis=1, dtype=jnp.int32)

  noise = _NOISE * jax.random.normal(keys[4], (num_samples, max_digits * _MAX_FRAMES, TONE_BANDS))
  frames = jnp.where(
    (jnp.arange(noise.shape[1])[None] < ends[:, -1:])[..., None],
    _tones(_TONES, digits, length, ends, noise.shape[1]) + noise,
    0.0,
  )
  words = jnp.where(place < count[:, None], _FIRST_DIGIT + digits, 0)
  words = jnp.pad(words, ((0, 0), (1, 1)))
  columns = jnp.arange(max_digits + 2)[None]
  tokens = jnp.where(columns == 0, _START, jnp.where(columns == count[:, None] + 1, _END, words))
  return Utterances(frames, ends[:, -1], tokens.astype(jnp.int32), count + 2)


def _tones(table, digits, length, ends, num_frames: int) -> jax.Array:
  """Energies of the bands without noise, `[n, num_frames, bands]`, of digits' tones in a table."""
  times = jnp.arange(num_frames)
  # The digit that sounds in each frame.
  current = jnp.sum(ends[:, None] <= times[None, :, None], axis=-1, dtype=jnp.int32)
  current = jnp.minimum(current, digits.shape[1] - 1)
  digit, size, end = (jnp.take_along_axis(x, current, axis=1) for x in (digits, length, ends))
  phase = (times[None] - (end - size) + 0.5) / jnp.maximum(size, 1)
  centers = jnp.asarray(table)[digit] + _RISE * phase[..., None]
  distance = jnp.arange(TONE_BANDS)[None, None, None] - centers[..., None]
  energy = jnp.sum(jnp.exp(-0.5 * jnp.square(distance / _WIDTH)), axis=2)
  return jnp.sin(jnp.pi * jnp.clip(phase, 0.0, 1.0))[..., None] * energy


def corrupt_segments(
  key: chex.PRNGKey,
  frames: chex.Array,
  lengths: chex.Array,
  *,
  share: chex.Numeric = 0.5,
  kinds: Sequence[str] = _CORRUPTIONS,
) -> CorruptedSpeech:
  """Replaces two stretches of each utterance by noise or by tones that no digit has.

  Every replaced frame keeps its energy (the norm over the bands), so that loudness tells nothing.
  The stretches are of equal length up to one frame, at random places, each of a random kind.

  Args:
    key: random key.
    frames: utterances, float `[b, T, d]`; d = 16 for foreign tones.
    lengths: frames of each, int `[b]`, in [0, T].
    share: share of the frames that are replaced, in [0, 1); `round(share * length)` of them, all of
      a short utterance if the share is close to 1.
    kinds: of "noise", which is Gaussian, and "foreign", pairs of rising tones in noise as
      `sample_utterances` makes them, over bands between those of the digits.

  Returns:
    `CorruptedSpeech` in float32 or wider.

  Raises:
    ValueError: if `share` lies outside [0, 1), kinds are unknown or none, or a known length lies
      outside [0, T].

  Reference: a setting for Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech
  Modeling, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_range("share", share, "[0, 1)")
  check_filled(kinds=kinds)
  for kind in kinds:
    check_choice("kinds", kind, _CORRUPTIONS)
  bands = TONE_BANDS if "foreign" in kinds else "d"
  check_arrays(frames=(frames, f"float [b, T, {bands}]"), lengths=(lengths, "int [b]"))
  check_range("lengths", lengths, f"[0, {jnp.shape(frames)[1]}]")
  frames, lengths = as_accumulator(frames), jnp.asarray(lengths).astype(jnp.int32)
  return _corrupted(key, frames, lengths, as_accumulator(share), tuple(kinds))


@compiled_once
def _corrupted(key, frames, lengths, share, kinds) -> CorruptedSpeech:
  place_key, kind_key, *keys = jax.random.split(key, 2 + len(kinds))
  pair = (frames.shape[0], 2)
  lengths = lengths[:, None]
  count = jnp.round(share * lengths).astype(jnp.int32)
  sizes = jnp.concatenate([(count + 1) // 2, count // 2], axis=1)
  # Frames that stay, before the first stretch and before the second.
  kept = jnp.sort(jax.random.randint(place_key, pair, 0, lengths - count + 1, jnp.int32), axis=1)
  starts = kept + jnp.pad(sizes[:, :1], ((0, 0), (1, 0)))
  times = jnp.arange(frames.shape[1])[None, :, None]
  inside = (times >= starts[:, None]) & (times < (starts + sizes)[:, None])
  drawn = jax.random.randint(kind_key, pair, 0, len(kinds), jnp.int32)[:, None]
  # The root has no gradient at silence, and what is replaced needs none.
  energy = jnp.linalg.norm(jax.lax.stop_gradient(frames), axis=-1, keepdims=True)
  corrupted = frames
  for i, (kind, kind_key) in enumerate(zip(kinds, keys)):
    new = _noise(kind_key, frames) if kind == "noise" else _foreign(kind_key, frames)
    new = new * (energy / jnp.linalg.norm(new, axis=-1, keepdims=True))
    here = jnp.any(inside & (drawn == i), axis=-1, keepdims=True)
    corrupted = jnp.where(here, new, corrupted)
  return CorruptedSpeech(corrupted, jnp.any(inside, axis=-1))


def _noise(key: chex.PRNGKey, frames: jax.Array) -> jax.Array:
  return jax.random.normal(key, frames.shape, frames.dtype)


def _foreign(key: chex.PRNGKey, frames: jax.Array) -> jax.Array:
  """Foreign digits of the usual rate, one after the other, in noise."""
  digit_key, noise_key = jax.random.split(key)
  batch_size, num_frames = frames.shape[:2]
  shape = (batch_size, -(-num_frames // _FRAMES))
  digits = jax.random.randint(digit_key, shape, 0, len(_FOREIGN_TONES), jnp.int32)
  length = jnp.full(shape, _FRAMES)
  tones = _tones(_FOREIGN_TONES, digits, length, jnp.cumsum(length, axis=1), num_frames)
  return tones + _NOISE * _noise(noise_key, frames)
