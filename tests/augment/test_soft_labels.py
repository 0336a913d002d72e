"""Sharpened, averaged and aligned guesses."""

import jax
import numpy as np
import pytest

from jaxlab import augment

sharpen = jax.jit(augment.sharpen)
guess_labels = jax.jit(augment.guess_labels)
align_distribution = jax.jit(augment.align_distribution)
RNG = np.random.default_rng(0)
VIEWS = RNG.dirichlet(np.ones(4), (2, 6)).astype(np.float32)
PROBS, MEAN, TARGET = VIEWS[0], VIEWS[1, 0], VIEWS[1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sharpening_is_a_power(temperature):
  powers = np.float64(PROBS) ** (1 / temperature)
  expected = powers / powers.sum(-1, keepdims=True)
  np.testing.assert_allclose(sharpen(PROBS, temperature=temperature), expected, rtol=1e-5)


def test_sharpening_at_the_edges():
  cold = sharpen(PROBS, temperature=1e-3)
  np.testing.assert_allclose(cold, np.eye(4)[PROBS.argmax(-1)], atol=1e-3)
  rows = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], *PROBS[:4]], np.float32)
  slope = jax.jit(jax.grad(lambda p: sharpen(p)[:, 0].sum()))(rows)
  np.testing.assert_allclose(sharpen(rows)[:2], rows[:2], atol=1e-6)
  assert np.isfinite(slope).all()


def test_a_guess_is_the_sharpened_mean_of_views():
  np.testing.assert_allclose(guess_labels(VIEWS), sharpen(VIEWS.mean(0)), rtol=1e-5)
  np.testing.assert_allclose(guess_labels(np.stack([PROBS, PROBS])), sharpen(PROBS), rtol=1e-5)


def test_alignment_matches_a_loop():
  aligned = align_distribution(PROBS, MEAN, TARGET)
  for row, result in zip(np.float64(PROBS), aligned):
    scaled = [p * (t + 1e-6) / (m + 1e-6) for p, t, m in zip(row, TARGET, MEAN)]
    np.testing.assert_allclose(result, scaled / np.sum(scaled), rtol=1e-5)
  np.testing.assert_allclose(np.sum(aligned, axis=-1), 1.0, rtol=1e-6)


def test_alignment_needs_directions_alone():
  np.testing.assert_allclose(align_distribution(PROBS, MEAN, MEAN), PROBS, rtol=1e-5)
  exact = align_distribution(PROBS, MEAN, TARGET, epsilon=0.0)
  scaled = align_distribution(PROBS, 7 * MEAN, TARGET, epsilon=0.0)
  np.testing.assert_allclose(scaled, exact, rtol=1e-5)


def test_alignment_of_classes_without_mass():
  gone = np.float32([0, 1, 0, 0])
  probs = PROBS * (1 - np.float32([1, 0, 0, 0]))
  mean = MEAN * (1 - np.float32([1, 0, 0, 0]))
  assert np.isfinite(align_distribution(probs, mean, TARGET, epsilon=0.0)).all()
  np.testing.assert_allclose(
    align_distribution(PROBS * (1 - gone), MEAN, gone, epsilon=0.0), PROBS * (1 - gone)
  )


def test_errors():
  with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\), got 0"):
    augment.sharpen(PROBS, temperature=0)
  with pytest.raises(ValueError, match="epsilon"):
    augment.align_distribution(PROBS, MEAN, TARGET, epsilon=-1.0)
  with pytest.raises(ValueError, match="target_mean must have shape"):
    augment.align_distribution(PROBS, MEAN, TARGET[:2])
  with pytest.raises(ValueError, match="probs must not be empty"):
    augment.guess_labels(np.zeros((0, 2, 4), np.float32))
