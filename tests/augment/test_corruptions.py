"""Corruptions of signals against loops, and streams of corrupted batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from jaxlab import augment
from jaxlab.augment.corruptions import SIGNAL_CORRUPTIONS, corrupt_signals, corruption_stream

KEY = jax.random.key(0)
LENGTH = 25


@pytest.fixture(scope="module")
def signals():
  return np.random.default_rng(0).standard_normal((6, LENGTH, 2)).astype(np.float32)


def _changes(signals, kind, severity, num=40):
  """What a corruption adds to `num` copies of the signals, and these copies."""
  many = np.tile(signals, (num, 1, 1))
  return np.asarray(corrupt_signals(KEY, many, kind=kind, severity=severity)) - many, many


def test_names_of_the_corruptions_in_order():
  assert SIGNAL_CORRUPTIONS == (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "blur",
    "motion",
    "contrast",
    "brightness",
    "drift",
    "elastic",
    "pixelate",
    "quantize",
    "occlusion",
  )
  assert augment.SIGNAL_CORRUPTIONS is SIGNAL_CORRUPTIONS


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_noise(signals, severity):
  added, _ = _changes(signals, "gaussian_noise", severity)
  std = (0.2, 0.4, 0.6, 0.8, 1.0)[severity - 1]
  assert abs(added.mean()) < 4 * std / np.sqrt(added.size)
  np.testing.assert_allclose(added.std(), std, rtol=0.05)


def test_shot_noise_grows_with_the_signal(signals):
  added, many = _changes(signals, "shot_noise", 3)
  noise = added / (0.6 * np.sqrt(np.abs(many) + 0.1))
  assert abs(added.mean()) < 0.03
  np.testing.assert_allclose([noise.std(), noise[np.abs(many) > 1].std()], 1.0, rtol=0.05)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.02), (5, 0.16)])
def test_impulse_noise(signals, severity, share):
  added, many = _changes(signals, "impulse_noise", severity)
  hit = added != 0
  np.testing.assert_allclose(hit.mean(), share, rtol=0.15)
  values = (many + added)[hit]
  np.testing.assert_allclose(np.abs(values), 3.0, rtol=1e-6)
  assert abs(np.mean(values > 0) - 0.5) < 0.1


def _loop(kind, x, severity):
  """Deterministic kinds, one signal [T] at a time."""
  length, i = len(x), severity - 1
  match kind:
    case "blur":
      return gaussian_filter1d(x, (0.5, 0.75, 1, 1.5, 2)[i], mode="nearest", radius=6)
    case "motion":
      w = (2, 3, 4, 5, 7)[i]
      return [np.mean([x[max(t - j, 0)] for j in range(w)]) for t in range(length)]
    case "contrast":
      return x.mean() + (0.75, 0.5, 0.4, 0.3, 0.15)[i] * (x - x.mean())
    case "brightness":
      return x + (0.3, 0.6, 0.9, 1.2, 1.5)[i]
    case "pixelate":
      w = (2, 3, 4, 5, 6)[i]
      return np.concatenate(
        [np.full(len(x[s : s + w]), x[s : s + w].mean()) for s in range(0, length, w)]
      )
    case "quantize":
      step = (0.25, 0.5, 0.75, 1, 1.5)[i]
      return step * np.round(x / step)


@pytest.mark.parametrize(
  "kind", ["blur", "motion", "contrast", "brightness", "pixelate", "quantize"]
)
def test_deterministic_kinds_match_a_loop(signals, kind):
  for severity in range(1, 6):
    ours = corrupt_signals(KEY, signals, kind=kind, severity=severity)
    wide = signals.astype(np.float64)
    expected = np.stack(
      [np.stack([_loop(kind, row[:, c], severity) for c in range(2)], -1) for row in wide]
    )
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_quantize_rounds_halves_to_even():
  x = jnp.tile(jnp.array([0.5, 1.5, 2.5, -0.5, -1.5])[None, :, None], (1, 3, 1))
  out = corrupt_signals(KEY, x, kind="quantize", severity=4)
  np.testing.assert_array_equal(out[0, :5, 0], [0, 2, 2, 0, -2])
  np.testing.assert_array_equal(corrupt_signals(KEY, out, kind="quantize", severity=4), out)


def test_contrast_keeps_the_mean(signals):
  out = corrupt_signals(KEY, signals, kind="contrast", severity=5)
  np.testing.assert_allclose(np.mean(out, 1), signals.mean(1), atol=1e-6)


def test_drift_adds_one_line_per_row(signals):
  added, _ = _changes(signals, "drift", 5)
  line = np.linspace(-1, 1, LENGTH)
  slope = added[:, -1, 0]
  expected = np.broadcast_to(slope[:, None, None] * line[:, None], added.shape)
  np.testing.assert_allclose(added, expected, atol=1e-5)
  assert -3 <= slope.min() < -2.5 and 2.5 < slope.max() <= 3
  one = corrupt_signals(KEY, signals[:, :1], kind="drift", severity=5)
  assert np.isfinite(one).all()


def test_elastic_samples_along_a_sine_wave():
  """On a straight line, the value is the sampled position."""
  line = jnp.tile(jnp.arange(float(LENGTH))[None, :, None], (50, 1, 2))
  out = np.asarray(corrupt_signals(KEY, line, kind="elastic", severity=3))
  time = np.arange(LENGTH)
  for row in out[..., 0]:
    candidates = [
      np.clip(time + 1.5 * np.sin(2 * np.pi * (2 * time / LENGTH + phase)), 0, LENGTH - 1)
      for phase in np.linspace(0, 1, 400)
    ]
    assert np.abs(candidates - row).max(1).min() < 0.02
  np.testing.assert_array_equal(out[..., 0], out[..., 1])
  assert np.unique(out[:, 12, 0]).size == 50


@pytest.mark.parametrize(("severity", "run"), [(1, 3), (5, 12)])
def test_occlusion_zeroes_one_run_per_row(signals, severity, run):
  out, many = _changes(signals + 10, "occlusion", severity)
  gone = (out + many == 0).astype(int)
  np.testing.assert_array_equal(gone.sum(1), run)
  starts = gone[..., 0].argmax(1)
  assert starts.min() == 0 and starts.max() == LENGTH - run
  for row, start in zip(gone, starts):
    assert row[start : start + run].all()


@pytest.mark.parametrize("kind", SIGNAL_CORRUPTIONS)
def test_shape_dtype_jit_and_extreme_values(signals, kind):
  plain = corrupt_signals(KEY, signals, kind=kind, severity=4)
  assert plain.shape == signals.shape and plain.dtype == jnp.float32
  traced = jax.jit(lambda s: corrupt_signals(KEY, signals, kind=kind, severity=s))(4)
  np.testing.assert_allclose(traced, plain, atol=1e-6)
  half = corrupt_signals(KEY, jnp.asarray(signals, jnp.bfloat16), kind=kind, severity=4)
  assert half.dtype == jnp.bfloat16
  extreme = corrupt_signals(KEY, jnp.full((1, LENGTH, 1), 1e4), kind=kind, severity=5)
  assert np.isfinite(extreme).all()


def test_missing_values_stay_missing(signals):
  signals = signals.copy()
  signals[0, 3, 0] = np.nan
  for kind in ("gaussian_noise", "brightness", "quantize"):
    out = np.asarray(corrupt_signals(KEY, signals, kind=kind, severity=1))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(signals))


@pytest.mark.parametrize("kind", SIGNAL_CORRUPTIONS)
def test_no_shape_is_broadcast_by_accident(signals, kind):
  with jax.numpy_rank_promotion("raise"):
    out = jax.eval_shape(lambda x: corrupt_signals(KEY, x, kind=kind, severity=2), signals)
  assert out.shape == signals.shape


def test_traced_severities_outside_the_table_give_nan(signals):
  corrupt = jax.jit(lambda s: corrupt_signals(KEY, signals, kind="contrast", severity=s))
  for severity in (-1, 0, 6):
    assert np.isnan(corrupt(severity)).all()
  assert np.isfinite(corrupt(5)).all()


def test_stream_shows_every_sample_once_per_part(signals):
  many = np.arange(10.0, dtype=np.float32)[:, None, None] + np.zeros((10, LENGTH, 1), np.float32)
  arguments = dict(kinds=("brightness", "contrast"), severities=(1, 5, 1), batch_size=3)
  stream = corruption_stream(KEY, many, np.arange(10), **arguments)
  assert stream.inputs.shape == (2 * 3 * 3, 3, LENGTH, 1) and stream.labels.shape == (18, 3)
  parts = np.asarray(stream.labels).reshape(6, 9)
  assert all(len(set(part)) == 9 for part in parts)
  assert len({tuple(part) for part in parts}) == 6
  added = np.asarray(stream.inputs)[..., 0, 0].reshape(6, 9) - parts
  np.testing.assert_allclose(added[:3].mean(1), [0.3, 1.5, 0.3], atol=1e-5)
  np.testing.assert_allclose(added[3:], 0, atol=1e-5)
  again = jax.jit(lambda k: corruption_stream(k, many, np.arange(10), **arguments))(KEY)
  np.testing.assert_array_equal(again.labels, stream.labels)


def test_stream_of_images():
  images = np.full((4, 8, 8, 1), 0.5, np.float32)
  stream = corruption_stream(
    KEY, images, np.arange(4), kinds=("brightness",), severities=(5,), batch_size=4
  )
  np.testing.assert_allclose(stream.inputs, 0.8, atol=1e-6)


def test_stream_takes_soft_labels(signals):
  labels = {"class": list(range(6)), "soft": np.eye(6)}
  stream = jax.eval_shape(
    lambda x: corruption_stream(KEY, x, labels, kinds=("blur",), severities=(1, 2), batch_size=2),
    signals,
  )
  assert stream.labels["class"].shape == (6, 2) and stream.labels["soft"].shape == (6, 2, 6)


def test_errors(signals):
  with pytest.raises(ValueError, match=r"'gaussian_noise', .*'occlusion', got 'snow'"):
    corrupt_signals(KEY, signals, kind="snow", severity=1)
  for severity in (0, 6):
    with pytest.raises(ValueError, match=rf"severity must lie in \[1, 5\], got {severity}"):
      corrupt_signals(KEY, signals, kind="blur", severity=severity)
  with pytest.raises(TypeError, match="severity must be of type int"):
    corrupt_signals(KEY, signals, kind="blur", severity=1.5)
  with pytest.raises(ValueError, match="at least 12 values, got 8"):
    corrupt_signals(KEY, signals[:, :8], kind="occlusion", severity=1)
  with pytest.raises(ValueError, match="signals must have shape"):
    corrupt_signals(KEY, signals[0], kind="blur", severity=1)
  labels = np.zeros(6, int)
  for batch_size in (0, 7):
    with pytest.raises(ValueError, match=rf"batch_size must lie in \[1, 6\], got {batch_size}"):
      corruption_stream(
        KEY, signals, labels, kinds=("blur",), severities=(1,), batch_size=batch_size
      )
  with pytest.raises(ValueError, match="must not be empty"):
    corruption_stream(KEY, signals, labels, kinds=(), severities=(1,), batch_size=2)
  with pytest.raises(ValueError, match="severities must lie in"):
    corruption_stream(KEY, signals, labels, kinds=("blur",), severities=(1, 7), batch_size=2)
  with pytest.raises(ValueError, match="got 'snow'"):
    corruption_stream(KEY, signals, labels, kinds=("snow",), severities=(1,), batch_size=2)
  with pytest.raises(TypeError, match="severities must be of type int"):
    corruption_stream(KEY, signals, labels, kinds=("blur",), severities=(1.5,), batch_size=2)
  with pytest.raises(ValueError, match="labels must have shape"):
    corruption_stream(KEY, signals, labels[:5], kinds=("blur",), severities=(1,), batch_size=2)
