import jax
import numpy as np
import pytest

from jaxlab import data

RATE, ROWS = 4000, 8
LABELS = np.repeat(np.arange(10), ROWS)
sample = jax.jit(
  lambda key, labels: data.sample_sound_events(
    key, labels, sample_rate=RATE, seconds=0.5, snr_db=(20.0, 20.0)
  )
)


@pytest.fixture(scope="module")
def sounds():
  return np.asarray(sample(jax.random.key(0), LABELS)).reshape(10, ROWS, -1)


def band(sounds, low, high):
  """Share of the power between two frequencies."""
  power = np.abs(np.fft.rfft(sounds)) ** 2
  frequency = np.fft.rfftfreq(sounds.shape[-1], 1 / RATE)
  inside = (frequency >= low) & (frequency < high)
  return power[..., inside].sum(-1) / power.sum(-1)


def test_shapes_levels_and_noise(sounds):
  assert sounds.shape == (10, ROWS, 2000) and sounds.dtype == np.float32
  assert len(data.SOUND_EVENTS) == 10
  # A level of -6 to 0 dB, an event of half of the clip or more, and a hundredth of noise.
  power = np.mean(sounds**2, axis=-1)
  assert power.min() > 0.1 and power.max() < 1.1
  assert len(np.unique(power)) == 10 * ROWS


def test_classes_have_their_spectra(sounds):
  kinds = dict(zip(data.SOUND_EVENTS, sounds))
  assert band(kinds["low noise"], 60, 700).min() > 0.9
  assert band(kinds["high noise"], 600, 2000).min() > 0.9
  assert band(kinds["slow pulses"], 380, 820).min() > 0.8
  assert band(kinds["decaying clicks"], 60, 1900).min() > 0.8
  for name, rises in (("rising chirp", True), ("falling chirp", False)):
    # The first and the last loud quarter of the clip.
    for wave in kinds[name]:
      loud = np.flatnonzero(np.convolve(wave**2, np.ones(50) / 50, "same") > 0.1)
      first, last = wave[loud[0] :][:200], wave[: loud[-1]][-200:]
      low, high = (np.argmax(np.abs(np.fft.rfft(x))) for x in (first, last))
      assert (high > low) == rises


def test_each_row_keeps_its_class_and_unknown_ones_are_nan(sounds):
  labels = LABELS.copy()
  labels[3] = 10
  changed = np.asarray(sample(jax.random.key(0), labels)).reshape(10, ROWS, -1)
  assert np.isnan(changed[0, 3]).all()
  np.testing.assert_array_equal(changed[1:], sounds[1:])


def test_errors():
  with pytest.raises(ValueError, match="sample_rate must be at least 4000, got 100"):
    data.sample_sound_events(jax.random.key(0), LABELS, sample_rate=100)
  with pytest.raises(ValueError, match="snr_db must be two numbers in order"):
    data.sample_sound_events(jax.random.key(0), LABELS, snr_db=(1.0, 0.0))
