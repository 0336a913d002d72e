import functools

import jax
import numpy as np
import pytest
import sklearn.datasets

from jaxlab import data

NUM = 2000
DIGITS = sklearn.datasets.load_digits()
draw = jax.jit(data.digit_pairs, static_argnames=("num_pairs", "split", "objective"))
KEY, OTHER = (jax.random.key(seed) for seed in (0, 1))
draw = functools.partial(draw, num_pairs=NUM)


def rows_of(images):
  """Numbers of images in the whole set, by their pixels."""
  places = {pixels.tobytes(): row for row, pixels in enumerate(np.float32(DIGITS.data / 16))}
  return np.array([places[image.tobytes()] for image in np.asarray(images)])


@pytest.mark.parametrize("objective", ["digit", "ink"])
def test_labels_say_which_image_has_more(objective):
  pairs = draw(KEY, split="weak", objective=objective)
  assert pairs.first.shape == pairs.second.shape == (NUM, 64)
  assert pairs.labels.dtype == np.float32
  values = DIGITS.target if objective == "digit" else DIGITS.data.sum(1)
  first, second = (values[rows_of(images)] for images in pairs[:2])
  assert (first != second).all()
  np.testing.assert_array_equal(pairs.labels, first > second)
  assert 0.45 < np.mean(pairs.labels) < 0.55


def test_splits_are_disjoint_thirds():
  rows = {}
  for split in ("weak", "student", "test"):
    pairs = draw(KEY, split=split)
    rows[split] = set(rows_of(pairs.first)) | set(rows_of(pairs.second))
    # Of 599 images, a few in a thousand are in none of 4,000 draws.
    assert 580 < len(rows[split]) <= 599
  assert sum(map(len, rows.values())) == len(set.union(*rows.values()))


def test_images_of_a_split_are_those_of_its_pairs():
  images, digits = data.digit_images("student")
  rows = rows_of(images)
  assert len(set(rows)) == 599 and images.dtype == np.float32
  np.testing.assert_array_equal(digits, DIGITS.target[rows])
  pairs = draw(KEY, split="student")
  assert set(rows_of(pairs.first)) | set(rows_of(pairs.second)) <= set(rows)
  with pytest.raises(ValueError, match="split must be one of"):
    data.digit_images("all")


def test_pairs_are_uniform():
  """Digits stand in pairs as often as their share among pairs of unequal digits says."""
  first, second = (DIGITS.target[rows_of(x)] for x in draw(KEY, split="test")[:2])
  own = np.zeros((10, 10))
  np.add.at(own, (first, second), 1 / NUM)
  images = rows_of(np.concatenate([np.asarray(x) for x in draw(KEY, split="test")[:2]]))
  shares = np.bincount(DIGITS.target[np.unique(images)], minlength=10) / len(np.unique(images))
  expected = np.outer(shares, shares) * (1 - np.eye(10))
  expected /= expected.sum()
  np.testing.assert_allclose(own, expected, atol=5 * np.sqrt(expected.max() / NUM))


def test_draws_depend_on_the_key():
  pairs, again, other = (draw(key, split="weak") for key in (KEY, KEY, OTHER))
  np.testing.assert_array_equal(again.first, pairs.first)
  assert np.any(np.asarray(other.first) != pairs.first)


def test_pooled_pixels_are_means_of_squares():
  images = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
  expected = np.zeros((3, 16))
  for n in range(3):
    for i in range(8):
      for j in range(8):
        expected[n, i // 2 * 4 + j // 2] += images[n, 8 * i + j] / 4
  np.testing.assert_allclose(jax.jit(data.pool_pixels)(images), expected, rtol=1e-5, atol=1e-6)


def test_errors():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="split must be one of 'weak', 'student', 'test'"):
    data.digit_pairs(key, num_pairs=2, split="train")
  with pytest.raises(ValueError, match="objective must be one of 'digit', 'ink'"):
    data.digit_pairs(key, num_pairs=2, split="weak", objective="size")
  with pytest.raises(ValueError, match="num_pairs must be at least 1, got 0"):
    data.digit_pairs(key, num_pairs=0, split="weak")
  with pytest.raises(ValueError, match=r"images must have shape \[..., 64\]"):
    data.pool_pixels(np.zeros((2, 8, 8)))
