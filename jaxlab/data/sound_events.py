"""Ten kinds of short sounds in noise, made on the fly."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_classes, check_at_least, check_pair, check_range
from jaxlab._programs import compiled_once

SOUND_EVENTS = (
  "rising chirp",
  "falling chirp",
  "two-tone siren",
  "harmonic stack",
  "slow pulses",
  "fast pulses",
  "low noise",
  "high noise",
  "flickering noise",
  "decaying clicks",
)
# Frequencies in hertz, before the pitch factor of a row.
_CHIRP, _SIREN, _STACK, _TONE = (300.0, 1200.0), (500.0, 800.0), 220.0, 600.0
_LOW_BAND, _HIGH_BAND = (100.0, 500.0), (900.0, 1700.0)
_SIREN_RATE, _SLOW, _FAST, _FLICKER, _CLICKS = 4.0, 5.0, 16.0, 8.0, 6.0
# The shortest share of the clip that an event fills, and the range of its level in decibels.
_MIN_SHARE, _LEVELS = 0.5, (-6.0, 0.0)
_MAX_DETUNE = 0.3


@compiled_once
def sample_sound_events(
  key: chex.PRNGKey,
  labels: chex.Array,
  *,
  sample_rate: int = 8000,
  seconds: float = 1.0,
  snr_db: tuple[float, float] = (0.0, 20.0),
) -> jax.Array:
  """Draws a sound of every given class.

  An event fills half of the clip or more, from a random onset, with a pitch within 30% of the
  usual one and a random level, in white noise.

  Args:
    key: random key.
    labels: classes, positions in `SOUND_EVENTS`, int `[n]`.
    sample_rate: samples per second; at least 4000, so that all classes can be told apart.
    seconds: length of a clip, > 0.
    snr_db: lowest and highest ratio of the event's power to the noise's, in decibels.

  Returns:
    Waveforms of t = round(sample_rate * seconds) samples, float32 `[n, t]`; NaN for a traced label
    that is no class.

  Raises:
    ValueError: if a known label is no class, `sample_rate` < 4000, `seconds` <= 0, a clip has no
      sample, or `snr_db` decreases.

  Reference: a setting for Cances et al., Comparison of semi-supervised deep learning algorithms for
  audio classification, 2022, https://arxiv.org/abs/2102.08183.
  """
  check_at_least(4000, sample_rate=sample_rate)
  check_range("seconds", seconds, "(0, inf)")
  check_pair("snr_db", snr_db, "(-inf, inf)")
  labels = as_classes("labels", labels, len(SOUND_EVENTS))
  length = round(sample_rate * seconds)
  check_at_least(1, **{"sample_rate * seconds": length})

  def one(row):
    return _clip(*row, length, sample_rate, snr_db)

  # One row at a time computes its own class; all rows at once would compute all classes of each.
  rows = jax.random.split(key, labels.shape[0]), labels
  if not labels.shape[0]:
    return jnp.zeros((0, length))
  return jax.lax.map(one, rows)


def _clip(key, label, length: int, sample_rate: int, snr_db) -> jax.Array:
  event_key, noise_key, row_key = jax.random.split(key, 3)
  pitch, share, onset, level, snr = jax.random.uniform(row_key, (5,))
  size = jnp.round(length * (_MIN_SHARE + (1 - _MIN_SHARE) * share))
  start = jnp.floor(onset * (length - size + 1))
  place = jnp.arange(length) - start
  time = place / sample_rate
  inside = (place >= 0) & (place < size)
  factor = 1.0 + _MAX_DETUNE * (2.0 * pitch - 1.0)
  known = jnp.clip(label, 0, len(SOUND_EVENTS) - 1)
  kinds = [lambda key, t, d, f, kind=kind: kind(key, t, d, f, sample_rate) for kind in _KINDS]
  event = jax.lax.switch(known, kinds, event_key, time, size / sample_rate, factor)
  event = jnp.where(inside, event, 0.0)
  power = jnp.sum(jnp.square(event)) / jnp.maximum(size, 1)
  event = event / jnp.sqrt(jnp.maximum(power, 1e-12))
  ratio = snr_db[0] + (snr_db[1] - snr_db[0]) * snr
  noise = 10.0 ** (-ratio / 20) * jax.random.normal(noise_key, (length,))
  gain = 10.0 ** ((_LEVELS[0] + (_LEVELS[1] - _LEVELS[0]) * level) / 20)
  return jnp.where(label < len(SOUND_EVENTS), gain * (event + noise), jnp.nan)


def _sweep(time, duration, low, high) -> jax.Array:
  slope = (high - low) / duration
  return jnp.sin(2 * jnp.pi * (low * time + slope * jnp.square(time) / 2))


def _rising(key, time, duration, factor, sample_rate):
  del key, sample_rate
  return _sweep(time, duration, _CHIRP[0] * factor, _CHIRP[1] * factor)


def _falling(key, time, duration, factor, sample_rate):
  del key, sample_rate
  return _sweep(time, duration, _CHIRP[1] * factor, _CHIRP[0] * factor)


def _siren(key, time, duration, factor, sample_rate):
  del key, duration, sample_rate
  second = jnp.floor(_SIREN_RATE * time) % 2
  low, high = (jnp.sin(2 * jnp.pi * f * factor * time) for f in _SIREN)
  return jnp.where(second == 1, high, low)


def _stack(key, time, duration, factor, sample_rate):
  del key, duration, sample_rate
  return sum(jnp.sin(2 * jnp.pi * i * _STACK * factor * time) / i for i in range(1, 6))


def _pulses(rate):
  def event(key, time, duration, factor, sample_rate):
    del key, duration, sample_rate
    on = (rate * time) % 1.0 < 0.4
    return jnp.where(on, jnp.sin(2 * jnp.pi * _TONE * factor * time), 0.0)

  return event


def _band_noise(band):
  def event(key, time, duration, factor, sample_rate):
    del duration
    spectrum = jnp.fft.rfft(jax.random.normal(key, time.shape))
    frequency = jnp.arange(spectrum.shape[0]) * sample_rate / time.shape[0]
    inside = (frequency >= band[0] * factor) & (frequency < band[1] * factor)
    return jnp.fft.irfft(jnp.where(inside, spectrum, 0.0), time.shape[0])

  return event


def _flicker(key, time, duration, factor, sample_rate):
  del duration, sample_rate
  swell = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * _FLICKER * factor * time)
  return jnp.square(swell) * jax.random.normal(key, time.shape)


def _clicks(key, time, duration, factor, sample_rate):
  del duration, sample_rate
  since = (_CLICKS * factor * time) % 1.0 / (_CLICKS * factor)
  return jnp.exp(-since / 0.01) * jax.random.normal(key, time.shape)


_KINDS = (
  _rising,
  _falling,
  _siren,
  _stack,
  _pulses(_SLOW),
  _pulses(_FAST),
  _band_noise(_LOW_BAND),
  _band_noise(_HIGH_BAND),
  _flicker,
  _clicks,
)
