"""Spoken digits as pairs of rising tones, at a different rate in each utterance."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_at_least, check_range
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
    _tones(digits, length, ends, noise.shape[1]) + noise,
    0.0,
  )
  words = jnp.where(place < count[:, None], _FIRST_DIGIT + digits, 0)
  words = jnp.pad(words, ((0, 0), (1, 1)))
  columns = jnp.arange(max_digits + 2)[None]
  tokens = jnp.where(columns == 0, _START, jnp.where(columns == count[:, None] + 1, _END, words))
  return Utterances(frames, ends[:, -1], tokens.astype(jnp.int32), count + 2)


def _tones(digits, length, ends, num_frames: int) -> jax.Array:
  """Energies of the bands without noise, `[n, num_frames, bands]`."""
  times = jnp.arange(num_frames)
  # The digit that sounds in each frame.
  current = jnp.sum(ends[:, None] <= times[None, :, None], axis=-1, dtype=jnp.int32)
  current = jnp.minimum(current, digits.shape[1] - 1)
  digit, size, end = (jnp.take_along_axis(x, current, axis=1) for x in (digits, length, ends))
  phase = (times[None] - (end - size) + 0.5) / jnp.maximum(size, 1)
  centers = jnp.asarray(_TONES)[digit] + _RISE * phase[..., None]
  distance = jnp.arange(TONE_BANDS)[None, None, None] - centers[..., None]
  energy = jnp.sum(jnp.exp(-0.5 * jnp.square(distance / _WIDTH)), axis=2)
  return jnp.sin(jnp.pi * jnp.clip(phase, 0.0, 1.0))[..., None] * energy
