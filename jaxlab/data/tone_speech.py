"""Spoken digits as pairs of rising tones, at a different rate in each utterance."""

import functools
import itertools
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
# Of random tables: of the places where tones start, every second one is foreign.
_PLACES, _SHIFT = 0.2 + 1.05 * np.arange(14, dtype=np.float32), 0.2


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


class AlignedUtterances(NamedTuple):
  """Utterances, and which token sounds in which frame.

  Attributes:
    utterances: `Utterances`, with T frames in place of 20 for each digit.
    frame_tokens: the token that sounds in each frame, int32 `[n, T]`; 0 after the end.
    phases: part of its token that is over in the middle of a frame, in (0, 1), float32 `[n, T]`;
      0 after the end. Tones are as loud as `sin(pi phase)`: faint at both ends of a token.
  """

  utterances: Utterances
  frame_tokens: chex.Array
  phases: chex.Array


class ToneTables(NamedTuple):
  """Tones of ten digits and of ten foreign ones, `tones` of `sample_aligned_utterances`.

  Attributes:
    own: where the low and the high tone of each digit start, in bands, float32 `[10, 2]`.
    foreign: likewise; no band that they cross is crossed by those of a digit.
  """

  own: chex.Array
  foreign: chex.Array


class CorruptedSpeech(NamedTuple):
  """Utterances of which parts are replaced.

  Attributes:
    frames: energies of bands, `[b, T, d]`.
    is_corrupted: which frames are replaced, bool `[b, T]`.
  """

  frames: chex.Array
  is_corrupted: chex.Array


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
  limits = {"min_digits": min_digits, "max_digits": max_digits, "rate_spread": rate_spread}
  return sample_aligned_utterances(key, num_samples=num_samples, **limits).utterances


@compiled_once
def sample_aligned_utterances(
  key: chex.PRNGKey,
  *,
  num_samples: int,
  min_digits: int = 1,
  max_digits: int = 24,
  rate_spread: chex.Numeric = 0.45,
  num_frames: int | None = None,
  tones: chex.Array | None = None,
) -> AlignedUtterances:
  """Draws utterances as `sample_utterances` does, of any tones, and says what sounds when.

  Args:
    key: random key.
    num_samples: number n of utterances.
    min_digits: fewest digits of an utterance, at least 1.
    max_digits: most digits of an utterance, at least `min_digits`.
    rate_spread: standard deviation of the logarithm of an utterance's rate, at least 0.
    num_frames: frames T of the longest utterance, at least 4 for each of `min_digits`: no digit has
      more than `T // min_digits`, and those that would end after T are left out. None for 20 for
      each of `max_digits`, which leaves out none.
    tones: where the two tones of each of k digits start, in bands, float `[k, 2]`; None for those
      of `sample_utterances`. Tokens 3 to k + 2 are then in use.

  Returns:
    `AlignedUtterances`.

  Raises:
    ValueError: if a count is too small, `rate_spread` is negative, or tones are no pairs.

  Reference: a setting for Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech
  Modeling, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  check_at_least(1, num_samples=num_samples, min_digits=min_digits)
  check_at_least(min_digits, max_digits=max_digits)
  check_at_least(_MIN_FRAMES * min_digits, num_frames=num_frames)
  check_range("rate_spread", rate_spread, "[0, inf)")
  tones = _TONES if tones is None else tones
  check_arrays(tones=(tones, "float [k, 2]"))
  width = max_digits * _MAX_FRAMES if num_frames is None else num_frames
  most = min(_MAX_FRAMES, width // min_digits)
  keys = jax.random.split(key, 5)
  cells = (num_samples, max_digits)
  middle = 0.5 * (np.log(min_digits) + np.log(max_digits))
  log_count = middle + _LENGTH_SPREAD * jax.random.normal(keys[0], (num_samples,))
  count = jnp.clip(jnp.round(jnp.exp(log_count)), min_digits, max_digits).astype(jnp.int32)
  digits = jax.random.randint(keys[1], cells, 0, len(tones), jnp.int32)
  log_length = rate_spread * jax.random.normal(keys[2], (num_samples, 1))
  log_length = log_length + _DIGIT_SPREAD * jax.random.normal(keys[3], cells)
  length = jnp.round(_FRAMES * jnp.exp(log_length))
  length = jnp.clip(length, _MIN_FRAMES, most).astype(jnp.int32)
  place = jnp.arange(max_digits)[None]
  fits = jnp.cumsum(length, axis=1, dtype=jnp.int32) <= width
  count = jnp.minimum(count, jnp.sum(fits, axis=1, dtype=jnp.int32))
  length = jnp.where(place < count[:, None], length, 0)
  ends = jnp.cumsum(length, axis=1, dtype=jnp.int32)

  noise = _NOISE * jax.random.normal(keys[4], (num_samples, width, TONE_BANDS))
  current, phases = _playing(length, ends, width)
  inside = jnp.arange(width)[None] < ends[:, -1:]
  sounds = _tones(tones, jnp.take_along_axis(digits, current, axis=1), phases)
  frames = jnp.where(inside[..., None], sounds + noise, 0.0)
  digits = jnp.where(place < count[:, None], _FIRST_DIGIT + digits, 0)
  words = jnp.pad(digits, ((0, 0), (1, 1)))
  columns = jnp.arange(max_digits + 2)[None]
  tokens = jnp.where(columns == 0, _START, jnp.where(columns == count[:, None] + 1, _END, words))
  utterances = Utterances(frames, ends[:, -1], tokens.astype(jnp.int32), count + 2)
  frame_tokens = jnp.where(inside, jnp.take_along_axis(digits, current, axis=1), 0)
  return AlignedUtterances(utterances, frame_tokens, jnp.where(inside, phases, 0.0))


@compiled_once
def sample_tone_tables(key: chex.PRNGKey) -> ToneTables:
  """Draws which tones are digits: data whose digits sound otherwise in every draw.

  Args:
    key: random key.

  Returns:
    `ToneTables`.

  Reference: a setting for Baskar et al., Ask2Mask: Guided Data Selection for Masked Speech
  Modeling, IEEE JSTSP 2022, https://arxiv.org/abs/2202.12719.
  """
  coin_key, shift_key, *keys = jax.random.split(key, 4)
  low, high = np.split(_PLACES, 2)
  pairs = [np.array([*itertools.product(low[i::2], high[1 - i :: 2])]) for i in range(2)]
  tables = jnp.stack([
    jax.random.permutation(key, jnp.asarray(table))[:_NUM_DIGITS]
    for key, table in zip(keys, pairs)
  ])  # fmt: skip
  tables += jax.random.uniform(shift_key, (), minval=-_SHIFT, maxval=_SHIFT)
  own = jax.random.randint(coin_key, (), 0, 2)
  return ToneTables(tables[own], tables[1 - own])


def _playing(length, ends, num_frames: int) -> tuple[jax.Array, jax.Array]:
  """The place of the digit that sounds in each frame, and its phase there, `[n, num_frames]`."""
  times = jnp.arange(num_frames)
  current = jnp.sum(ends[:, None] <= times[None, :, None], axis=-1, dtype=jnp.int32)
  current = jnp.minimum(current, length.shape[1] - 1)
  size, end = (jnp.take_along_axis(x, current, axis=1) for x in (length, ends))
  return current, (times[None] - (end - size) + 0.5) / jnp.maximum(size, 1)


def _tones(table, digits, phases) -> jax.Array:
  """Energies of the bands without noise, `[n, T, bands]`, of digits' tones in a table."""
  centers = jnp.asarray(table)[digits] + _RISE * phases[..., None]
  distance = jnp.arange(TONE_BANDS)[None, None, None] - centers[..., None]
  energy = jnp.sum(jnp.exp(-0.5 * jnp.square(distance / _WIDTH)), axis=2)
  return jnp.sin(jnp.pi * jnp.clip(phases, 0.0, 1.0))[..., None] * energy


def corrupt_segments(
  key: chex.PRNGKey,
  frames: chex.Array,
  lengths: chex.Array,
  *,
  share: chex.Numeric = 0.5,
  kinds: Sequence[str] = _CORRUPTIONS,
  foreign_tones: chex.Array | None = None,
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
      `sample_utterances` makes them.
    foreign_tones: their `tones` of `sample_aligned_utterances`, float `[k, 2]`; None for pairs
      whose bands lie between those of the digits.

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
  foreign_tones = _FOREIGN_TONES if foreign_tones is None else foreign_tones
  check_arrays(foreign_tones=(foreign_tones, "float [k, 2]"))
  bands = TONE_BANDS if "foreign" in kinds else "d"
  check_arrays(frames=(frames, f"float [b, T, {bands}]"), lengths=(lengths, "int [b]"))
  check_range("lengths", lengths, f"[0, {jnp.shape(frames)[1]}]")
  frames, lengths = as_accumulator(frames), jnp.asarray(lengths).astype(jnp.int32)
  share, foreign_tones = as_accumulator(share, foreign_tones)
  return _corrupted(key, frames, lengths, share, tuple(kinds), foreign_tones)


@compiled_once
def _corrupted(key, frames, lengths, share, kinds, foreign_tones) -> CorruptedSpeech:
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
    draw = _noise if kind == "noise" else functools.partial(_foreign, foreign_tones)
    new = draw(kind_key, frames)
    new = new * (energy / jnp.linalg.norm(new, axis=-1, keepdims=True))
    here = jnp.any(inside & (drawn == i), axis=-1, keepdims=True)
    corrupted = jnp.where(here, new, corrupted)
  return CorruptedSpeech(corrupted, jnp.any(inside, axis=-1))


def _noise(key: chex.PRNGKey, frames: jax.Array) -> jax.Array:
  return jax.random.normal(key, frames.shape, frames.dtype)


def _foreign(tones: jax.Array, key: chex.PRNGKey, frames: jax.Array) -> jax.Array:
  """Foreign digits of the usual rate, one after the other, in noise."""
  digit_key, noise_key = jax.random.split(key)
  batch_size, num_frames = frames.shape[:2]
  shape = (batch_size, -(-num_frames // _FRAMES))
  digits = jax.random.randint(digit_key, shape, 0, len(tones), jnp.int32)
  length = jnp.full(shape, _FRAMES)
  current, phases = _playing(length, jnp.cumsum(length, axis=1), num_frames)
  sounds = _tones(tones, jnp.take_along_axis(digits, current, axis=1), phases)
  return sounds + _NOISE * _noise(noise_key, frames)
