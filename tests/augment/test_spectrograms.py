"""Perturbed waveforms and spectrograms, and the mel front end."""

import functools

import jax
import numpy as np
import pytest

from jaxlab import augment

KEY = jax.random.key(0)
WAVES = np.random.default_rng(0).uniform(1.0, 2.0, (60, 40)).astype(np.float32)
SPECTROGRAMS = np.random.default_rng(1).uniform(-70, 0, (60, 10, 8)).astype(np.float32)


def compiled(function, **arguments):
  return jax.jit(functools.partial(function, **arguments))


def run_lengths(hidden):
  """Start and length of the one run of True."""
  places = np.flatnonzero(hidden)
  assert len(places) == 0 or len(places) == places[-1] - places[0] + 1
  return (places[0], len(places)) if len(places) else (0, 0)


def test_occlusion_silences_one_piece():
  views = np.asarray(compiled(augment.occlude, probability=1.0)(KEY, WAVES))
  assert np.all((views == 0) | (views == WAVES))
  sizes = np.array([run_lengths(row == 0)[1] for row in views])
  assert sizes.min() <= 1 and 8 <= sizes.max() <= 10
  half = np.asarray(compiled(augment.occlude, scales=(0.5, 0.5))(KEY, WAVES))
  hidden = np.sum(half == 0, axis=1)
  assert set(hidden) == {0, 20} and 15 < np.sum(hidden == 20) < 45


def test_probability_zero_and_rate_one_change_nothing():
  for function in (augment.occlude, augment.speed_perturb):
    np.testing.assert_array_equal(compiled(function, probability=0.0)(KEY, WAVES), WAVES)
  np.testing.assert_array_equal(
    compiled(augment.cutout, probability=0.0)(KEY, SPECTROGRAMS), SPECTROGRAMS
  )
  still = compiled(augment.speed_perturb, rates=(1.0, 1.0), probability=1.0)
  np.testing.assert_array_equal(still(KEY, WAVES), WAVES)


def slow_speed(wave, rate, offset):
  """The definition, sample by sample."""
  length = len(wave)
  played = round(length / rate)
  result = np.zeros(length)
  for t in range(length):
    if played <= length and not offset <= t < offset + played:
      continue
    position = (t - offset if played <= length else t + offset) * rate
    position = min(position, length - 1)
    low = int(np.floor(position))
    high = min(low + 1, length - 1)
    result[t] = wave[low] + (position - low) * (wave[high] - wave[low])
  return result


@pytest.mark.parametrize("rate", [0.7, 1.3])
def test_speed_matches_the_definition_at_some_offset(rate):
  change = jax.jit(lambda key, x, r: augment.speed_perturb(key, x, rates=(r, r), probability=1.0))
  views, room = np.asarray(change(KEY, WAVES, rate)), abs(40 - round(40 / rate))
  offsets = set()
  for wave, view in zip(WAVES, views):
    fitting = [
      o for o in range(room + 1) if np.allclose(slow_speed(wave, rate, o), view, atol=1e-4)
    ]
    assert len(fitting) == 1
    offsets |= {*fitting}
  assert len(offsets) > room // 2


def test_cutout_removes_a_rectangle_of_the_stated_size():
  cut = compiled(augment.cutout, time_scales=(0.25, 0.61), probability=1.0)
  views = np.asarray(cut(KEY, SPECTROGRAMS))
  times, bands = set(), set()
  for view, row in zip(views, SPECTROGRAMS):
    hidden = view == -80
    assert np.all(hidden | (view == row))
    frames, columns = hidden.any(1), hidden.any(0)
    np.testing.assert_array_equal(hidden, frames[:, None] & columns[None])
    times.add(run_lengths(frames)[1])
    bands.add(run_lengths(columns)[1])
  # ceil(.25 * 10) = 3 to ceil(.61 * 10) - 1 = 6; ceil(.1 * 8) = 1 to ceil(.5 * 8) - 1 = 3.
  assert times == {3, 4, 5, 6} and bands == {1, 2, 3}


def test_decibels_below_the_peak():
  power = np.float32([[1.0, 0.1, 1e-12], [100.0, 0.0, 100.0], [0.0, 0.0, 0.0]])
  with np.errstate(divide="ignore"):
    result = jax.jit(augment.decibels_below_peak)(np.log(power))
  expected = [[0, -10, -80], [0, -80, 0], [-80, -80, -80]]
  np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_filters_are_triangles_in_mel(scale):
  filters = augment.mel_filterbank(num_mels=6, fft_size=512, sample_rate=8000, scale=scale)
  assert filters.shape == (6, 257) and filters.dtype == np.float32
  peaks = filters.argmax(-1) * 8000 / 512
  mel = 2595 * np.log10(1 + 4000 / 700) / 7 * np.arange(1, 7)
  if scale == "htk":
    np.testing.assert_allclose(peaks, 700 * (10 ** (mel / 2595) - 1), atol=10)
    assert 0.9 < filters.max(-1).min() <= filters.max() <= 1
  else:
    # Linear up to 1000 Hz; every triangle has area 1 Hz.
    np.testing.assert_allclose(filters.sum(-1) * 8000 / 512, 1.0, atol=0.05)
  assert np.all(np.diff(peaks) > 0)


def slow_mel(wave, *, power, padding, floor, scale):
  fft_size, hop = 16, 8
  frames = len(wave) // hop
  if padding == "reflect":
    wave = np.pad(wave, 4, mode="reflect")
  wave = np.concatenate([wave, np.zeros(fft_size)])
  filters = augment.mel_filterbank(num_mels=3, fft_size=16, sample_rate=800, scale=scale)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
  rows = []
  for i in range(frames):
    spectrum = np.abs(np.fft.rfft(wave[i * hop : i * hop + fft_size] * window)) ** 2
    energy = np.sqrt(spectrum + 1e-9) if power == 1 else spectrum
    rows.append(np.log(np.maximum(filters @ energy, floor)))
  return np.array(rows)


@pytest.mark.parametrize(
  "settings",
  [
    {"power": 1, "padding": "reflect", "floor": 1e-5, "scale": "slaney"},
    {"power": 2, "padding": "end", "floor": 1e-10, "scale": "htk"},
  ],
)
def test_log_mel_matches_a_loop(settings):
  transform = compiled(
    augment.log_mel_spectrogram, sample_rate=800, fft_size=16, hop=8, num_mels=3, **settings
  )
  result = transform(WAVES)
  assert result.shape == (60, 5, 3)
  for row, wave in zip(result[:5], WAVES.astype(np.float64)):
    np.testing.assert_allclose(row, slow_mel(wave, **settings), atol=1e-3)
  slope = jax.jit(jax.grad(lambda x: transform(x).sum()))(np.zeros_like(WAVES))
  assert np.isfinite(slope).all()


def test_errors():
  with pytest.raises(ValueError, match=r"scales must be two numbers in order, got \(0.5, 0.1\)"):
    augment.occlude(KEY, WAVES, scales=(0.5, 0.1))
  with pytest.raises(ValueError, match="rates must lie in"):
    augment.speed_perturb(KEY, WAVES, rates=(0.0, 1.0))
  with pytest.raises(ValueError, match="probability must lie in"):
    augment.cutout(KEY, SPECTROGRAMS, probability=1.5)
  with pytest.raises(ValueError, match="spectrograms must have shape"):
    augment.cutout(KEY, WAVES)
  with pytest.raises(ValueError, match="hop must lie in"):
    augment.log_mel_spectrogram(WAVES, sample_rate=800, fft_size=8, hop=9, num_mels=3)
  with pytest.raises(ValueError, match="length of waveforms must be at least 385, got 40"):
    augment.log_mel_spectrogram(WAVES, sample_rate=8000)
  with pytest.raises(ValueError, match="fmin must lie in"):
    augment.mel_filterbank(num_mels=3, fft_size=16, sample_rate=800, fmin=300.0, fmax=200.0)
