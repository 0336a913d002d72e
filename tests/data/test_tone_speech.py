import jax
import numpy as np
import pytest

from jaxlab import data
from jaxlab.data import tone_speech

SIZE, MOST = 2000, 12
sample = jax.jit(
  data.sample_utterances, static_argnames=("num_samples", "min_digits", "max_digits")
)
corrupt = jax.jit(data.corrupt_segments, static_argnames="kinds")
# Two digits of the lowest bands, and one of the highest.
TONES = np.array([(0.0, 3.0), (1.5, 4.5), (10.0, 13.0)], np.float32)


@pytest.fixture(scope="module")
def utterances():
  return jax.device_get(
    sample(jax.random.key(0), num_samples=SIZE, max_digits=MOST, rate_spread=0.45)
  )


def test_tokens_are_digits_between_start_and_end(utterances):
  tokens, lengths = utterances.tokens, utterances.token_lengths
  assert tokens.shape == (SIZE, MOST + 2) and tokens.dtype == np.int32
  for row, length in zip(tokens, lengths):
    assert row[0] == 1 and row[length - 1] == 2 and not row[length:].any()
    assert np.all((row[1 : length - 1] >= 3) & (row[1 : length - 1] < data.SPEECH_VOCAB_SIZE))
  digits = lengths - 2
  assert digits.min() == 1 and digits.max() == MOST and 3 <= np.median(digits) <= 4
  shares = np.bincount(tokens[tokens >= 3] - 3) / (tokens >= 3).sum()
  np.testing.assert_allclose(shares, 0.1, atol=0.015)


def test_frames_end_with_the_last_digit_and_rates_vary(utterances):
  frames, lengths = utterances.frames, utterances.frame_lengths
  digits = utterances.token_lengths - 2
  assert frames.shape == (SIZE, 20 * MOST, data.TONE_BANDS) and frames.dtype == np.float32
  sounds = np.any(frames != 0, axis=-1)
  np.testing.assert_array_equal(sounds, np.arange(20 * MOST)[None] < lengths[:, None])
  rate = lengths / digits
  assert rate.min() >= 4 and rate.max() <= 20 and 7.5 < np.median(rate) < 8.5
  # What two dimensions of buckets need: duration does not tell the number of tokens.
  assert 0.4 < np.corrcoef(lengths, digits)[0, 1] < 0.9
  assert 0.3 < np.log(rate).std() < 0.5


def test_rates_without_spread_vary_by_digit_alone():
  steady = jax.device_get(
    sample(jax.random.key(1), num_samples=SIZE, max_digits=MOST, rate_spread=0.0)
  )
  rate = steady.frame_lengths / (steady.token_lengths - 2)
  assert np.log(rate).std() < 0.15


def test_the_tones_tell_the_digit(utterances):
  """Middles of digits, found by a slow reading of the noisiest kind, are near their two tones."""
  right = []
  for row in range(400):
    count = utterances.token_lengths[row] - 2
    length = utterances.frame_lengths[row]
    if count != 1:
      continue
    # In the middle of its rise, half a band above the first tone.
    middle = utterances.frames[row, length // 2 - 1 : length // 2 + 2].mean(0)
    bands = np.arange(data.TONE_BANDS)[None, None]
    shapes = np.exp(-0.5 * ((bands - tone_speech._TONES[..., None] - 0.5) / 0.6) ** 2).sum(1)
    guess = np.argmax(shapes @ middle - 0.5 * (shapes**2).sum(1))
    right.append(guess == utterances.tokens[row, 1] - 3)
  assert len(right) > 20 and np.mean(right) > 0.9


def test_alignment_says_which_token_sounds_and_for_how_long():
  key, limits = jax.random.key(5), {"min_digits": 2, "max_digits": 4, "rate_spread": 0.3}
  draw = jax.jit(
    lambda key: data.sample_aligned_utterances(
      key, num_samples=300, num_frames=32, tones=TONES, **limits
    )
  )
  (frames, lengths, tokens, token_lengths), sounding, phases = jax.device_get(draw(key))
  assert frames.shape == (300, 32, data.TONE_BANDS) and lengths.max() <= 32
  assert set(token_lengths) == {4, 5, 6} and sounding.dtype == np.int32
  bands = np.arange(data.TONE_BANDS)
  errors = []
  for row in range(300):
    t = 0
    for token in tokens[row, 1 : token_lengths[row] - 1]:
      end = t + 1
      # Its phase falls back where the next one begins, which may be the same token.
      while end < lengths[row] and phases[row, end] > phases[row, end - 1]:
        end += 1
      assert 4 <= end - t <= 16
      np.testing.assert_array_equal(sounding[row, t:end], token)
      phase = (np.arange(end - t) + 0.5) / (end - t)
      np.testing.assert_allclose(phases[row, t:end], phase, rtol=1e-5)
      for i, x in enumerate(phase):
        centers = TONES[token - 3] + x
        tone = sum(np.exp(-0.5 * ((bands - center) / 0.6) ** 2) for center in centers)
        errors.append(frames[row, t + i] - np.sin(np.pi * x) * tone)
      t = end
    assert t == lengths[row] and not np.any(frames[row, t:])
    assert not np.any(sounding[row, t:]) and not np.any(phases[row, t:])
  # What is left is the noise.
  np.testing.assert_allclose([np.mean(errors), np.std(errors)], [0, 0.3], atol=0.005)


def test_foreign_tones_may_be_given(speech):
  draw = jax.jit(
    lambda key: data.corrupt_segments(
      key, *speech, share=0.999, kinds=("foreign",), foreign_tones=TONES[2:]
    )
  )
  new, corrupted = jax.device_get(draw(jax.random.key(6)))
  loud = corrupted & (np.linalg.norm(new, axis=-1) > 2.2)
  power = np.square(new[loud]).mean(0)
  assert power[[10, 11, 13, 14]].min() > 2 * power[:9].max()


@pytest.fixture(scope="module")
def speech(utterances):
  """Utterances of up to 64 frames, and a silent one."""
  lengths = np.minimum(utterances.frame_lengths[:800], 64)
  lengths[0] = 0
  inside = np.arange(64)[None] < lengths[:, None]
  return utterances.frames[:800, :64] * inside[..., None], lengths


@pytest.mark.parametrize(
  ("share", "kinds"),
  [(0.5, ("noise",)), (0.999, ("foreign",)), *((x, ("noise", "foreign")) for x in (0, 0.5, 0.999))],
)
def test_two_stretches_are_corrupted_at_the_same_energy(speech, share, kinds):
  frames, lengths = speech
  new, corrupted = jax.device_get(corrupt(jax.random.key(3), *speech, share=share, kinds=kinds))
  assert new.dtype == np.float32 and corrupted.dtype == bool
  np.testing.assert_array_equal(corrupted.sum(1), np.round(np.float32(share) * lengths))
  assert not corrupted[np.arange(64)[None] >= lengths[:, None]].any()
  np.testing.assert_array_equal(new[~corrupted], frames[~corrupted])
  if share == 0.999:
    np.testing.assert_array_equal(corrupted, np.arange(64)[None] < lengths[:, None])
  if share:
    assert np.abs(new - frames)[corrupted].max(-1).min() > 0
    energy = np.linalg.norm(frames, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(new, axis=-1), energy, rtol=1e-4, atol=1e-6)
  if share == 0.5:
    begins = np.diff(np.pad(corrupted, ((0, 0), (1, 0))).astype(int), axis=1) == 1
    assert set(begins.sum(1)) <= {0, 1, 2} and np.mean(begins.sum(1) == 2) > 0.8
    # Both ends as often as two uniform places of the frames that stay say.
    kept = (lengths - corrupted.sum(1))[1:]
    expected = 1 - np.mean((kept / (kept + 1)) ** 2)
    for end in (0, lengths[1:] - 1):
      assert abs(corrupted[np.arange(1, 800), end].mean() - expected) < 4 * 0.5 / np.sqrt(800)


def test_foreign_tones_lie_between_those_of_digits(speech):
  frames, lengths = speech
  loud = np.linalg.norm(frames, axis=-1) > 2.2
  spectra = {"clean": frames[loud]}
  for kind in ("noise", "foreign"):
    new, corrupted = jax.device_get(corrupt(jax.random.key(4), *speech, share=0.999, kinds=(kind,)))
    spectra[kind] = new[loud & corrupted]
  mean = {kind: np.square(rows).mean(0) for kind, rows in spectra.items()}
  np.testing.assert_allclose(mean["noise"], mean["noise"].mean(), rtol=0.2)
  alike = lambda a, b: np.corrcoef(mean[a], mean[b])[0, 1]  # noqa: E731
  assert alike("clean", "foreign") < 0
  assert gap(tone_speech._TONES, tone_speech._FOREIGN_TONES) > 0.04


def gap(ours, theirs):
  """Least distance of the bands that rising tones of two tables cross."""
  swept = lambda table: np.concatenate(  # noqa: E731
    [np.arange(x, x + 1, 0.05) + 0.025 for x in np.unique(table)]
  )
  return np.abs(swept(ours)[:, None] - swept(theirs)[None]).min()


def test_random_tables_differ_and_their_foreign_tones_lie_between():
  keys = jax.random.split(jax.random.key(0), 40)
  own, foreign = jax.device_get(jax.jit(jax.vmap(data.sample_tone_tables))(keys))
  for ours, theirs in zip(own, foreign):
    for table in (ours, theirs):
      assert table.shape == (10, 2) and len(np.unique(table, axis=0)) == 10
      assert table.min() >= 0 and table.max() + 1 < data.TONE_BANDS - 0.9
      assert np.all(table[:, 1] - table[:, 0] > 1)
      # Different tones of a table are two bands apart.
      assert np.diff(np.unique(np.round(table, 3))).min() > 1
    assert gap(ours, theirs) > 0.04
  assert len({row.tobytes() for row in own}) == 40
  lowest = np.round(own.min((1, 2)) - foreign.min((1, 2)))
  assert set(lowest) == {-1, 1}


def test_corruption_checks_its_arguments(speech):
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r"share must lie in \[0, 1\), got 1.0"):
    data.corrupt_segments(key, *speech, share=1.0)
  with pytest.raises(ValueError, match="kinds must be one of 'noise', 'foreign', got 'music'"):
    data.corrupt_segments(key, *speech, kinds=("noise", "music"))
  with pytest.raises(ValueError, match="kinds must not be empty"):
    data.corrupt_segments(key, *speech, kinds=())
  with pytest.raises(ValueError, match=r"frames must have shape \[b, T, 16\]"):
    data.corrupt_segments(key, speech[0][..., 1:], speech[1])
  with pytest.raises(ValueError, match=r"lengths must lie in \[0, 64\]"):
    data.corrupt_segments(key, speech[0], speech[1] + 64)


def test_fixed_counts_and_bad_arguments():
  fixed = sample(jax.random.key(2), num_samples=4, min_digits=3, max_digits=3)
  np.testing.assert_array_equal(fixed.token_lengths, 5)
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    data.sample_utterances(key, num_samples=0)
  with pytest.raises(ValueError, match="min_digits must be at least 1, got 0"):
    data.sample_utterances(key, num_samples=2, min_digits=0)
  with pytest.raises(ValueError, match="max_digits must be at least 5, got 4"):
    data.sample_utterances(key, num_samples=2, min_digits=5, max_digits=4)
  with pytest.raises(ValueError, match="num_frames must be at least 8, got 7"):
    data.sample_aligned_utterances(key, num_samples=2, min_digits=2, num_frames=7)
  with pytest.raises(ValueError, match=r"tones must have shape \[k, 2\]"):
    data.sample_aligned_utterances(key, num_samples=2, tones=TONES[:, :1])
  with pytest.raises(ValueError, match=r"rate_spread must lie in \[0, inf\), got -1"):
    data.sample_utterances(key, num_samples=2, rate_spread=-1)
