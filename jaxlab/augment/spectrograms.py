"""Sound: log-mel spectrograms, and perturbations of waveforms and of spectrograms.

Every row of a batch draws its own perturbation, and whether it is perturbed at all.
"""

import math
from typing import Literal

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
  check_pair,
  check_range,
)

_DECIBELS = 10.0 / math.log(10.0)
# Of the squared magnitude, so that its root has a finite gradient at 0.
_MIN_SQUARE = 1e-9


def occlude(
  key: chex.PRNGKey,
  waveforms: chex.Array,
  *,
  scales: tuple[float, float] = (0.0, 0.25),
  fill_value: chex.Numeric = 0.0,
  probability: chex.Numeric = 0.5,
) -> jax.Array:
  """Silences a random piece of every waveform.

  Args:
    key: random key.
    waveforms: `[n, t]`.
    scales: smallest and largest share of the waveform that is silenced, in [0, 1].
    fill_value: value of the silence.
    probability: probability that a waveform is perturbed.

  Returns:
    The waveforms, in the shape and dtype of `waveforms`.

  Raises:
    ValueError: if `scales` decrease or a number lies outside [0, 1].

  Reference: Cances et al., Comparison of semi-supervised deep learning algorithms for audio
  classification, EURASIP Journal on Audio, Speech, and Music Processing 2022,
  https://arxiv.org/abs/2102.08183.
  """
  check_pair("scales", scales, "[0, 1]")
  check_range("probability", probability, "[0, 1]")
  check_arrays(waveforms=(waveforms, "[n, t]"))
  waveforms = jnp.asarray(waveforms)
  length = waveforms.shape[1]
  uniform = jax.random.uniform(key, (3, len(waveforms)))
  extents = jnp.round(_between(uniform[0], scales) * length).astype(jnp.int32)
  hidden = _pieces(uniform[1], extents, length) & (uniform[2] < probability)[:, None]
  return jnp.where(hidden, jnp.asarray(fill_value, waveforms.dtype), waveforms)


def speed_perturb(
  key: chex.PRNGKey,
  waveforms: chex.Array,
  *,
  rates: tuple[float, float] = (0.5, 1.5),
  probability: chex.Numeric = 0.5,
) -> jax.Array:
  """Plays every waveform at a random rate, in the same number of samples.

  A faster one is shorter and stands somewhere in silence; of a slower one a random piece is left.

  Args:
    key: random key.
    waveforms: floats, `[n, t]`; values between samples are interpolated linearly.
    rates: smallest and largest rate, > 0.
    probability: probability that a waveform is perturbed.

  Returns:
    The waveforms, in the shape and dtype of `waveforms`.

  Raises:
    ValueError: if `rates` decrease or are not positive, or `probability` lies outside [0, 1].

  Reference: Cances et al., 2022, https://arxiv.org/abs/2102.08183.
  """
  check_pair("rates", rates, "(0, inf)")
  check_range("probability", probability, "[0, 1]")
  check_arrays(waveforms=(waveforms, "float [n, t]"))
  waveforms = jnp.asarray(waveforms)
  wide, length = as_accumulator(waveforms), waveforms.shape[1]
  uniform = jax.random.uniform(key, (3, len(waveforms)))
  rate = _between(uniform[0], rates)[:, None]
  played = jnp.round(length / rate)
  # Samples before the sound starts; negative where the start is cut off.
  room = length - played
  offset = jnp.sign(room) * jnp.floor(uniform[1][:, None] * (jnp.abs(room) + 1))
  time = jnp.arange(length)[None] - offset
  position = jnp.clip(time * rate, 0, length - 1)
  left = jnp.floor(position).astype(jnp.int32)
  low, high = (
    jnp.take_along_axis(wide, index, axis=1) for index in (left, jnp.minimum(left + 1, length - 1))
  )
  share = position - left
  # Not low + share * (high - low): a sample itself must come out exactly.
  sound = jnp.where((time >= 0) & (time < played), (1 - share) * low + share * high, 0.0)
  perturbed = (uniform[2] < probability)[:, None]
  return jnp.where(perturbed, sound.astype(waveforms.dtype), waveforms)


def cutout(
  key: chex.PRNGKey,
  spectrograms: chex.Array,
  *,
  freq_scales: tuple[float, float] = (0.1, 0.5),
  time_scales: tuple[float, float] = (0.1, 0.5),
  fill_value: chex.Numeric = -80.0,
  probability: chex.Numeric = 0.5,
) -> jax.Array:
  """Silences a rectangle of every spectrogram.

  With e = ceil(low * size), an extent is a uniform integer from e to max(ceil(high * size), e + 1)
  - 1, and its start is uniform among those that fit. Scales near 1 leave some spectrograms blank.

  Args:
    key: random key.
    spectrograms: `[n, t, f]`.
    freq_scales: low and high share of the frequencies, in [0, 1].
    time_scales: low and high share of the frames.
    fill_value: value in the rectangle; the default is silence in decibels below the peak.
    probability: probability that a spectrogram is perturbed.

  Returns:
    The spectrograms, in the shape and dtype of `spectrograms`.

  Raises:
    ValueError: if scales decrease or a number lies outside [0, 1].

  Reference: DeVries and Taylor, Cutout, 2017, https://arxiv.org/abs/1708.04552; Cances et al.,
  2022, https://arxiv.org/abs/2102.08183.
  """
  check_pair("freq_scales", freq_scales, "[0, 1]")
  check_pair("time_scales", time_scales, "[0, 1]")
  check_range("probability", probability, "[0, 1]")
  check_arrays(spectrograms=(spectrograms, "[n, t, f]"))
  spectrograms = jnp.asarray(spectrograms)
  n, frames, bands = spectrograms.shape
  uniform = jax.random.uniform(key, (5, n))

  def spans(draws, scales, size):
    least = math.ceil(scales[0] * size)
    most = max(math.ceil(scales[1] * size), least + 1) - 1
    extents = least + jnp.floor(draws[0] * (most - least + 1)).astype(jnp.int32)
    return _pieces(draws[1], extents, size)

  hidden = spans(uniform[:2], time_scales, frames)[:, :, None]
  hidden = hidden & spans(uniform[2:4], freq_scales, bands)[:, None]
  hidden = hidden & (uniform[4] < probability)[:, None, None]
  return jnp.where(hidden, jnp.asarray(fill_value, spectrograms.dtype), spectrograms)


def _between(shares: jax.Array, ends: tuple[float, float]) -> jax.Array:
  return ends[0] + (ends[1] - ends[0]) * shares


def _pieces(uniform: jax.Array, extents: jax.Array, length: int) -> jax.Array:
  """Whether places lie in a piece of each row, which starts where a uniform draw says."""
  starts = jnp.floor(uniform * (length - extents + 1)).astype(jnp.int32)[:, None]
  places = jnp.arange(length)[None]
  return (places >= starts) & (places < starts + extents[:, None])


def decibels_below_peak(log_mel: chex.Array, *, floor_db: chex.Numeric = -80.0) -> jax.Array:
  """Turns natural logarithms of power into decibels below the loudest value of each example.

  Args:
    log_mel: `[n, ...]`, such as `log_mel_spectrogram` of power 2; -inf is silence.
    floor_db: what lies below is raised to this, at most 0.

  Returns:
    Decibels from `floor_db` to 0, `[n, ...]`, in float32 or wider.

  Raises:
    ValueError: if `floor_db` > 0 or an example is empty.
  """
  check_range("floor_db", floor_db, "(-inf, 0]")
  check_arrays(log_mel=(log_mel, "[n, ...]"))
  decibels = _DECIBELS * as_accumulator(log_mel)
  if decibels.ndim > 1:
    check_filled(log_mel=log_mel)
  peak = jnp.max(decibels, axis=tuple(range(1, decibels.ndim)), keepdims=True)
  peak = jnp.where(peak == -jnp.inf, 0.0, peak)
  return jnp.where(decibels - peak < floor_db, floor_db, decibels - peak)


def log_mel_spectrogram(
  waveforms: chex.Array,
  *,
  sample_rate: int,
  fft_size: int = 1024,
  hop: int = 256,
  num_mels: int = 100,
  fmin: float = 0.0,
  fmax: float | None = None,
  scale: Literal["slaney", "htk"] = "slaney",
  power: Literal[1, 2] = 1,
  padding: Literal["reflect", "end"] = "reflect",
  floor: chex.Numeric = 1e-5,
) -> jax.Array:
  """Logarithms of the energy in mel bands, frame by frame, under a Hann window.

  Args:
    waveforms: floats, `[b, t]`.
    sample_rate: samples per second.
    fft_size: samples of a frame.
    hop: samples from one frame to the next, at most `fft_size`.
    num_mels: number m of bands.
    fmin: lower end of the lowest band in Hz.
    fmax: upper end of the highest band in Hz; None for half of the sample rate.
    scale: as in `mel_filterbank`.
    power: 1 for magnitudes sqrt(re^2 + im^2 + 1e-9), 2 for re^2 + im^2.
    padding: "reflect" mirrors (fft_size - hop) // 2 samples at both ends; "end" lets frame i start
      at sample i * hop and adds zeros behind the waveform.
    floor: bands below this are raised to it, > 0.

  Returns:
    Natural logarithms, `[b, t // hop, m]`, in float32 or wider.

  Raises:
    ValueError: if a size is below 1, `hop` exceeds `fft_size`, a choice is unknown, `floor` <= 0,
      the frequencies do not rise from 0 to half of the sample rate, or a waveform is too short to
      be mirrored.
  """
  check_at_least(1, sample_rate=sample_rate, fft_size=fft_size, hop=hop, num_mels=num_mels)
  check_choice("power", power, (1, 2))
  check_choice("padding", padding, ("reflect", "end"))
  check_range("floor", floor, "(0, inf)")
  check_range("hop", hop, f"[1, {fft_size}]")
  check_arrays(waveforms=(waveforms, "float [b, t]"))
  filters = mel_filterbank(
    num_mels=num_mels,
    fft_size=fft_size,
    sample_rate=sample_rate,
    fmin=fmin,
    fmax=fmax,
    scale=scale,
  )
  wide = as_accumulator(waveforms)
  num_frames, length = wide.shape[1] // hop, wide.shape[1]
  border = (fft_size - hop) // 2 if padding == "reflect" else 0
  if border:
    check_at_least(border + 1, **{"the length of waveforms": length})
    wide = jnp.pad(wide, ((0, 0), (border, border)), mode="reflect")
  missing = max((num_frames - 1) * hop + fft_size - wide.shape[1], 0)
  wide = jnp.pad(wide, ((0, 0), (0, missing)))
  places = np.arange(num_frames)[:, None] * hop + np.arange(fft_size)[None]
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
  frames = wide[:, places] * jnp.asarray(window, wide.dtype)[None, None]
  spectrum = jnp.fft.rfft(frames)
  energy = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  if power == 1:
    energy = jnp.sqrt(energy + _MIN_SQUARE)
  bands = energy @ jnp.asarray(filters, energy.dtype).T
  return jnp.log(jnp.where(bands < floor, floor, bands))


def mel_filterbank(
  *,
  num_mels: int,
  fft_size: int,
  sample_rate: int,
  fmin: float = 0.0,
  fmax: float | None = None,
  scale: Literal["slaney", "htk"] = "slaney",
) -> np.ndarray:
  """Triangular bands, equally spaced in mel, over the frequencies of a Fourier transform.

  Args:
    num_mels: number m of bands.
    fft_size: length of the transform.
    sample_rate: samples per second.
    fmin: lower end of the lowest band in Hz.
    fmax: upper end of the highest band in Hz; None for half of the sample rate.
    scale: "slaney" is linear below 1000 Hz and logarithmic above, with triangles of area 1 Hz;
      "htk" is 2595 log10(1 + f / 700), with triangles of height 1.

  Returns:
    Weights, float32 `[m, fft_size // 2 + 1]`, a NumPy array.

  Raises:
    ValueError: if a size is below 1, the scale is unknown, or the frequencies do not rise from at
      least 0 to at most half of the sample rate.
  """
  check_at_least(1, num_mels=num_mels, fft_size=fft_size, sample_rate=sample_rate)
  check_choice("scale", scale, ("slaney", "htk"))
  fmax = sample_rate / 2 if fmax is None else fmax
  check_range("fmax", fmax, f"(0, {sample_rate / 2}]")
  check_range("fmin", fmin, f"[0, {fmax})")
  step = math.log(6.4) / 27

  def to_mel(f):
    if scale == "htk":
      return 2595 * np.log10(1 + f / 700)
    return np.where(f < 1000, 3 * f / 200, 15 + np.log(np.maximum(f, 1000) / 1000) / step)

  def to_hz(mel):
    if scale == "htk":
      return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(step * (mel - 15)))

  corners = to_hz(np.linspace(to_mel(fmin), to_mel(fmax), num_mels + 2))[:, None]
  low, middle, high = corners[:-2], corners[1:-1], corners[2:]
  frequencies = np.arange(fft_size // 2 + 1)[None] * sample_rate / fft_size
  rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
  triangles = np.maximum(0, np.minimum(rising, falling))
  if scale == "slaney":
    triangles = triangles * 2 / (high - low)
  return triangles.astype(np.float32)
