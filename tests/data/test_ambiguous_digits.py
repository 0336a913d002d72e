import functools

import jax
import numpy as np
import pytest

from jaxlab.data.ambiguous_digits import ambiguous_digit_batch

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGES = RNG.uniform(size=(40, 6)).astype(np.float32)
DIGITS = (np.arange(40) % 10).astype(np.int32)
B = 20_000


@functools.cache
def draw():
  batch = jax.jit(functools.partial(ambiguous_digit_batch, batch_size=B))(
    KEY, IMAGES, DIGITS, contrast=1.5, pixel_noise=0.02
  )
  return jax.tree.map(np.asarray, batch)


def test_inputs_are_noisy_images_and_a_cue():
  batch = draw()
  assert batch.inputs.shape == (B, 7)
  gaps = np.square(batch.inputs[:, None, :6] - IMAGES[None]).sum(-1)
  nearest = gaps.argmin(axis=1)
  assert (DIGITS[nearest] == batch.digits).mean() > 0.9
  right = DIGITS[nearest] == batch.digits
  noise = batch.inputs[right, :6] - IMAGES[nearest[right]]
  np.testing.assert_allclose(noise.std(), 0.02, rtol=0.05)
  cue = batch.inputs[batch.digits != 9, 6]
  assert abs(cue.mean()) < 0.03 and abs(cue.std() - 1) < 0.03


def test_labels_follow_their_probabilities():
  batch = draw()
  np.testing.assert_allclose(batch.probs.sum(axis=1), 1)
  rows = np.arange(B)
  even = batch.digits % 2 == 0
  for labels in (batch.labels_a, batch.labels_b):
    assert labels.dtype == np.int32
    assert (batch.probs[rows, labels] > 0).all()
    np.testing.assert_array_equal(labels[even], batch.digits[even])
  for digit, seconds in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 0)):
    chosen = batch.digits == digit
    probs, first, second = (v[chosen] for v in (batch.probs, batch.labels_a, batch.labels_b))
    share = (first == seconds).mean()
    limit = 4 * 0.5 / np.sqrt(chosen.sum())
    assert abs(share - 0.5) < limit and set(first) == {digit, seconds}
    if digit in (1, 3):
      np.testing.assert_array_equal(probs[:, [digit, seconds]], 0.5)
      agreement = (first == second).mean()
      assert abs(agreement - 0.5) < limit
    else:
      np.testing.assert_array_equal(first, second)
      assert set(probs.max(axis=1)) == {1}


def test_the_cue_of_a_nine_is_a_hint():
  batch = draw()
  nines = batch.digits == 9
  cue, bit = batch.inputs[nines, 6], batch.labels_a[nines] == 0
  share = 1 / (1 + np.exp(-2 * 1.5 * cue))
  for low, high in ((0, 0.2), (0.2, 0.8), (0.8, 1)):
    inside = (share >= low) & (share <= high)
    expected = share[inside].mean()
    assert abs(bit[inside].mean() - expected) < 4 * 0.5 / np.sqrt(inside.sum())
  # Of 5 and 7 nothing shows.
  hidden = np.isin(batch.digits, (5, 7))
  answers = batch.labels_a[hidden] != batch.digits[hidden]
  assert abs(np.corrcoef(batch.inputs[hidden, 6], answers)[0, 1]) < 4 / np.sqrt(hidden.sum())


def test_digits_outside():
  outside = np.where(DIGITS == 3, -1, DIGITS)
  batch = jax.jit(functools.partial(ambiguous_digit_batch, batch_size=64))(KEY, IMAGES, outside)
  unknown = np.asarray(batch.digits) == 10
  assert unknown.any()
  np.testing.assert_array_equal(np.isnan(batch.probs).all(axis=1), unknown)
  assert (np.asarray(batch.labels_a)[unknown] == 10).all()


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"batch_size": 0}, "batch_size"),
    ({"contrast": -1.0}, "contrast"),
    ({"pixel_noise": -1.0}, "pixel_noise"),
    ({"images": 16 * IMAGES}, "images must lie"),
    ({"digits": DIGITS + 1}, "digits must lie"),
    ({"images": IMAGES[:0], "digits": DIGITS[:0]}, "images must not be empty"),
  ],
)
def test_errors(options, words):
  with pytest.raises(ValueError, match=words):
    ambiguous_digit_batch(KEY, **{"images": IMAGES, "digits": DIGITS, "batch_size": 2} | options)
