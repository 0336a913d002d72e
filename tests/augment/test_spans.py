import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import augment

B, T = 40, 12
RNG = np.random.default_rng(0)
LENGTHS = np.concatenate([[0, 1, T], RNG.integers(0, T + 1, B - 3)]).astype(np.int32)
INSIDE = np.arange(T)[None] < LENGTHS[:, None]
STARTS = (RNG.uniform(size=(B, T)) < 0.2).astype(np.int32)
CONFIDENCE = RNG.uniform(size=(B, T)).astype(np.float32).round(1)  # With ties.
COUNTS = RNG.integers(1, T + 1, B).astype(np.int32)
KEY = jax.random.key(0)
expand = jax.jit(augment.expand_spans, static_argnames="span_length")
top = jax.jit(lambda *args: augment.top_confidence_frames(*args[:2], num_frames=args[2]))


@pytest.mark.parametrize("span_length", [1, 3, 20])
def test_spans_match_a_loop_over_starts(span_length):
  expected = np.zeros((B, T), np.int32)
  for row, length in enumerate(LENGTHS):
    for start in np.flatnonzero(STARTS[row, :length]):
      expected[row, start : min(start + span_length, length)] = 1
  masks = expand(STARTS, LENGTHS, span_length=span_length)
  assert masks.dtype == jnp.int32
  np.testing.assert_array_equal(masks, expected)


def test_spans_of_one_frame_are_their_starts_and_longer_ones_hold_shorter():
  masks = [np.asarray(expand(STARTS, LENGTHS, span_length=w)) for w in (1, 3, 20)]
  np.testing.assert_array_equal(masks[0], STARTS * INSIDE)
  assert np.all(masks[0] <= masks[1]) and np.all(masks[1] <= masks[2])
  assert not masks[2][~INSIDE].any()


@pytest.mark.parametrize("num_frames", [1, 4, 30, COUNTS], ids=["1", "4", "30", "rows"])
def test_the_most_confident_frames_are_chosen_the_earliest_on_ties(num_frames):
  chosen = np.asarray(top(CONFIDENCE, LENGTHS, np.broadcast_to(num_frames, B)))
  for row, length in enumerate(LENGTHS):
    count = np.broadcast_to(num_frames, B)[row]
    best = sorted(range(length), key=lambda t: (-CONFIDENCE[row, t], t))[:count]
    np.testing.assert_array_equal(np.flatnonzero(chosen[row]), sorted(best))


def test_one_number_of_frames_for_all_utterances():
  same = jax.jit(lambda c, n: augment.top_confidence_frames(c, n, num_frames=4))
  np.testing.assert_array_equal(same(CONFIDENCE, LENGTHS), top(CONFIDENCE, LENGTHS, np.full(B, 4)))


def test_equal_confidences_give_the_first_frames_and_nan_the_last():
  chosen = top(np.ones_like(CONFIDENCE), LENGTHS, np.full(B, 4))
  np.testing.assert_array_equal(chosen, INSIDE & (np.arange(T) < 4)[None])
  spoiled = np.where(np.arange(T)[None] == 0, np.nan, CONFIDENCE).astype(np.float32)
  chosen = np.asarray(top(spoiled, LENGTHS, np.full(B, 4)))
  np.testing.assert_array_equal(chosen.sum(1), np.minimum(LENGTHS, 4))
  np.testing.assert_array_equal(chosen[:, 0] == 1, (LENGTHS > 0) & (LENGTHS <= 4))


def test_random_starts_have_their_probability_in_every_frame():
  lengths = np.full(20_000, 8, np.int32)
  draw = jax.jit(lambda p: augment.random_starts(KEY, lengths, max_length=10, probability=p))
  starts = np.asarray(draw(0.3))
  assert not starts[:, 8:].any() and starts.dtype == np.int32
  assert np.all(np.abs(starts[:, :8].mean(0) - 0.3) < 4 * np.sqrt(0.21 / 20_000))
  assert draw(1.0)[:, :8].all()


def test_sampled_starts_are_of_the_pool_and_vary():
  draw = jax.jit(
    jax.vmap(lambda key: augment.sample_confident_starts(key, CONFIDENCE, LENGTHS, num_frames=3))
  )
  starts = np.asarray(draw(jax.random.split(KEY, 50)))
  np.testing.assert_array_equal(starts.sum(2), np.minimum(LENGTHS, 3)[None].repeat(50, 0))
  pool = np.asarray(top(CONFIDENCE, LENGTHS, np.full(B, 6)))
  assert not starts[:, pool == 0].any()
  # Every candidate comes up, in a row that has 6 of similar confidence, but not always.
  assert np.all(starts[:, 2].mean(0) < 1) and starts[:, 2].max(0).sum() >= 5


def test_starts_are_drawn_in_proportion():
  """One start of two candidates: the odds are exp(sharpness times the difference)."""
  confidence = np.tile(np.float32([0.2, 0.9, 0.8]), (20_000, 1))
  lengths = np.full(20_000, 3, np.int32)
  draw = jax.jit(
    lambda sharpness: augment.sample_confident_starts(
      KEY, confidence, lengths, num_frames=1, sharpness=sharpness
    )
  )
  for sharpness in (0.0, 10.0):
    expected = np.array([0, 1, 1 / (1 + np.exp(sharpness * 0.1))])
    expected[1] -= expected[2]
    error = np.abs(np.asarray(draw(sharpness)).mean(0) - expected)
    assert np.all(error < 4 * 0.5 / np.sqrt(20_000)), sharpness


def test_a_pool_of_one_is_the_top():
  draw = jax.jit(
    lambda count: augment.sample_confident_starts(
      KEY, CONFIDENCE, LENGTHS, num_frames=count, pool=1
    )
  )
  np.testing.assert_array_equal(draw(COUNTS), top(CONFIDENCE, LENGTHS, COUNTS))


def test_spans_are_added_until_enough_frames_are_masked():
  wanted = np.linspace(0, T, B).astype(np.float32)
  draw = jax.jit(
    jax.vmap(
      lambda key: augment.confident_span_mask(
        key, CONFIDENCE, LENGTHS, num_masked=wanted, span_length=3, pool=1
      )
    )
  )
  masks = np.asarray(draw(jax.random.split(KEY, 400)))
  assert masks.dtype == np.int32
  for row, length in enumerate(LENGTHS):
    # With a pool of one, the best frames are the starts.
    order = sorted(range(length), key=lambda t: (-CONFIDENCE[row, t], t))
    allowed, best = [np.zeros(T, int)], np.zeros(T, int)
    target = min(wanted[row], length)
    for start in order:
      if best.sum() >= target:
        break
      best = best.copy()
      best[start : min(start + 3, length)] = 1
      allowed.append(best)
    if target == 0:
      assert not masks[:, row].any()
      continue
    is_last = (masks[:, row] == allowed[-1]).all(1)
    assert np.all(is_last | (masks[:, row] == allowed[-2]).all(1))
    step = allowed[-1].sum() - allowed[-2].sum()
    assert abs(masks[:, row].sum(1).mean() - target) <= 4 * step * 0.5 / np.sqrt(400) + 1e-5


def test_masked_spans_vary_and_have_the_mean_that_is_asked_for():
  lengths = np.full(4000, T, np.int32)
  confidence = np.tile(np.linspace(0, 1, T, dtype=np.float32) ** 8, (4000, 1))
  draw = jax.jit(
    lambda: augment.confident_span_mask(KEY, confidence, lengths, num_masked=4.5, span_length=3)
  )
  masks = np.asarray(draw())
  assert abs(masks.sum(1).mean() - 4.5) < 4 * 1.5 / np.sqrt(4000)
  assert len(np.unique(masks, axis=0)) > 5 and masks[:, -3:].mean() > 3 * masks[:, :6].mean()


def test_distractors_are_other_masked_frames():
  mask = expand(STARTS, LENGTHS, span_length=3)
  draw = jax.jit(lambda m: augment.sample_distractors(KEY, m, num_distractors=400))
  index, mask = np.asarray(draw(mask)), np.asarray(mask)
  assert index.shape == (B, T, 400) and index.dtype == np.int32
  for row in range(B):
    masked = np.flatnonzero(mask[row])
    for t in range(T):
      others = np.setdiff1d(masked, [t])
      if mask[row, t] and len(others):
        drawn, counts = np.unique(index[row, t], return_counts=True)
        np.testing.assert_array_equal(drawn, others)
        share = 1 / len(others)
        assert np.all(np.abs(counts / 400 - share) < 5 * np.sqrt(share * (1 - share) / 400) + 1e-9)
      else:
        assert np.all(index[row, t] == t)


def test_masked_frames_are_replaced():
  frames, vector = RNG.normal(size=(B, T, 2)).astype(np.float32), np.float32([5, -5])
  mask = np.asarray(expand(STARTS, LENGTHS, span_length=3))
  spoiled = np.where(mask[..., None] == 1, np.nan, frames).astype(np.float32)

  def total(frames, vector):
    result = augment.apply_span_mask(frames, mask, vector)
    return jnp.sum(result**2), result

  slope = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  (of_frames, of_vector), result = slope(spoiled, vector)
  np.testing.assert_array_equal(result, np.where(np.isnan(spoiled), vector, frames))
  np.testing.assert_array_equal(of_frames, np.where(np.isnan(spoiled), 0, 2 * frames))
  np.testing.assert_allclose(of_vector, 2 * vector * mask.sum(), rtol=1e-5)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="span_length must be at least 1, got 0"):
    augment.expand_spans(STARTS, LENGTHS, span_length=0)
  with pytest.raises(ValueError, match=r"lengths must lie in \[0, 12\]"):
    augment.expand_spans(STARTS, LENGTHS + 1)
  with pytest.raises(ValueError, match=r"num_frames must lie in \[1, inf\), got 0"):
    augment.top_confidence_frames(CONFIDENCE, LENGTHS, num_frames=0)
  with pytest.raises(ValueError, match=r"num_frames must have shape \[b\] with b = 40"):
    augment.sample_confident_starts(KEY, CONFIDENCE, LENGTHS, num_frames=COUNTS[1:])
  with pytest.raises(TypeError, match="num_frames must be of type int"):
    augment.top_confidence_frames(CONFIDENCE, LENGTHS, num_frames=2.5)
  with pytest.raises(ValueError, match="pool must be at least 1, got 0"):
    augment.sample_confident_starts(KEY, CONFIDENCE, LENGTHS, num_frames=1, pool=0)
  with pytest.raises(ValueError, match=r"num_masked must lie in \[0, inf\), got -1"):
    augment.confident_span_mask(KEY, CONFIDENCE, LENGTHS, num_masked=-1)
  with pytest.raises(ValueError, match=r"num_masked must have shape \[b\] with b = 40"):
    augment.confident_span_mask(KEY, CONFIDENCE, LENGTHS, num_masked=np.ones(3))
  with pytest.raises(ValueError, match=r"probability must lie in \(0, 1\], got 0.0"):
    augment.random_starts(KEY, LENGTHS, max_length=T, probability=0.0)
  with pytest.raises(ValueError, match="num_distractors must be at least 1, got 0"):
    augment.sample_distractors(KEY, STARTS, num_distractors=0)
  with pytest.raises(ValueError, match=r"mask_vector must have shape \[d\] with d = 3"):
    augment.apply_span_mask(np.zeros((B, T, 3)), STARTS, np.zeros(2))
