"""Log-mel spectrograms beside librosa's."""

import numpy as np
import pytest

from jaxlab import augment

librosa = pytest.importorskip("librosa")

RATE, FFT, HOP, MELS = 8000, 512, 200, 32
TIMES = np.arange(6000) / RATE
RNG = np.random.default_rng(0)
WAVEFORMS = np.stack([
  RNG.normal(size=len(TIMES)),
  np.sin(2 * np.pi * (200 * TIMES + 800 * TIMES**2)),  # A rising chirp.
  np.sign(np.sin(2 * np.pi * 110 * TIMES)),
])  # fmt: skip
# As every recording has; without it, single precision decides what is left between tones.
WAVEFORMS += 0.01 * RNG.normal(size=WAVEFORMS.shape)
NORMS = {"slaney": {"htk": False, "norm": "slaney"}, "htk": {"htk": True, "norm": None}}


def theirs(waveform, scale, power, **limits):
  """The energies of librosa, in double precision, of frames that start every `HOP` samples."""
  spectrum = librosa.stft(
    waveform, n_fft=FFT, hop_length=HOP, center=False, window="hann", dtype=np.complex128
  )
  filters = librosa.filters.mel(
    sr=RATE, n_fft=FFT, n_mels=MELS, dtype=np.float64, **limits, **NORMS[scale]
  )
  # Ours has this term, so that magnitudes have gradients at silence.
  offset = 1e-9 if power == 1 else 0.0
  return (filters @ (np.abs(spectrum) ** 2 + offset) ** (power / 2)).T


@pytest.mark.parametrize("scale", NORMS)
@pytest.mark.parametrize("limits", [{}, {"fmin": 50.0, "fmax": 3500.0}])
def test_filters(scale, limits):
  ours = augment.mel_filterbank(
    num_mels=MELS, fft_size=FFT, sample_rate=RATE, scale=scale, **limits
  )
  expected = librosa.filters.mel(sr=RATE, n_fft=FFT, n_mels=MELS, **limits, **NORMS[scale])
  np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("padding", ["reflect", "end"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("scale", NORMS)
def test_log_mel_spectrograms(scale, power, padding):
  floor = 1e-3
  ours = augment.log_mel_spectrogram(
    WAVEFORMS.astype(np.float32),
    sample_rate=RATE,
    fft_size=FFT,
    hop=HOP,
    num_mels=MELS,
    scale=scale,
    power=power,
    padding=padding,
    floor=floor,
  )
  assert ours.shape == (len(WAVEFORMS), len(TIMES) // HOP, MELS)
  border = (FFT - HOP) // 2
  for waveform, logs in zip(WAVEFORMS, ours):
    if padding == "reflect":
      padded = np.pad(waveform, border, mode="reflect")
    else:
      padded = np.pad(waveform, (0, FFT))
    expected = theirs(padded, scale, power)[: len(logs)]
    np.testing.assert_allclose(logs, np.log(np.maximum(expected, floor)), atol=1e-4)


def test_decibels():
  options = {"sample_rate": RATE, "fft_size": FFT, "hop": HOP, "num_mels": MELS}
  options |= {"scale": "htk", "power": 2, "padding": "end", "floor": 1e-10}
  logs = augment.log_mel_spectrogram(WAVEFORMS.astype(np.float32), **options)
  ours = augment.decibels_below_peak(logs)
  for waveform, decibels in zip(WAVEFORMS, ours):
    energy = theirs(np.pad(waveform, (0, FFT)), "htk", 2)[: len(decibels)]
    expected = librosa.power_to_db(energy, ref=np.max, amin=1e-10, top_db=80.0)
    np.testing.assert_allclose(decibels, expected, atol=1e-3)
