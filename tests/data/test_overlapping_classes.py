import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxlab import data

KEY = jax.random.key(0)
LABELS = np.random.default_rng(0).integers(0, 6, 5000)
noisy = jax.jit(functools.partial(data.paired_label_noise, num_classes=6))


def test_flipped_labels_become_the_partner():
  noise = noisy(KEY, LABELS, noise_rate=0.3)
  partners, flipped = np.asarray(noise.partners), np.asarray(noise.is_flipped)
  assert np.all(partners != np.arange(6)) and np.all((partners >= 0) & (partners < 6))
  np.testing.assert_array_equal(noise.labels, np.where(flipped, partners[LABELS], LABELS))
  assert abs(flipped.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 5000)


@pytest.mark.parametrize("noise_rate", [0, 1])
def test_noise_rates_zero_and_one_flip_none_and_all(noise_rate):
  noise = noisy(KEY, LABELS, noise_rate=noise_rate)
  assert np.all(noise.is_flipped == noise_rate)
  assert np.all((noise.labels == LABELS) == (not noise_rate))


def test_partners_are_uniform_over_the_other_classes():
  draw = jax.vmap(lambda key: noisy(key, LABELS[:1], noise_rate=0.0).partners)
  partners = np.asarray(draw(jax.random.split(KEY, 2000)))
  for own in range(6):
    shares = np.bincount(partners[:, own], minlength=6) / 2000
    others = np.delete(shares, own)
    assert shares[own] == 0 and np.all(np.abs(others - 0.2) < 4 * np.sqrt(0.16 / 2000))


def test_given_partners_are_kept():
  partners = np.roll(np.arange(6), 1)
  noise = noisy(KEY, LABELS, noise_rate=0.5, partners=partners)
  np.testing.assert_array_equal(noise.partners, partners)
  two = data.paired_label_noise(KEY, np.array([0, 1]), num_classes=2, noise_rate=1.0)
  np.testing.assert_array_equal(two.labels, [1, 0])


def test_gaussians_have_their_means_and_posterior():
  sample = jax.jit(
    functools.partial(
      data.sample_overlapping_gaussians, num_samples=4000, num_classes=3, dim=5, separation=1.5
    )
  )(KEY)
  means = 1.5 * np.eye(5)[:3]
  for label in range(3):
    rows = np.asarray(sample.inputs)[np.asarray(sample.labels) == label]
    assert np.all(np.abs(rows.mean(0) - means[label]) < 4 / np.sqrt(len(rows)))
    np.testing.assert_allclose(rows.std(0), 1, atol=0.1)
  density = np.stack([multivariate_normal(mean).pdf(sample.inputs[:20]) for mean in means], 1)
  expected = density / density.sum(1, keepdims=True)
  np.testing.assert_allclose(sample.posterior[:20], expected, rtol=1e-4)
  hits = np.asarray(sample.posterior).argmax(1) == sample.labels
  confidence = np.asarray(sample.posterior).max(1)
  assert abs(hits.mean() - confidence.mean()) < 4 * 0.5 / np.sqrt(4000)


def test_large_and_zero_separation():
  draw = functools.partial(data.sample_overlapping_gaussians, num_classes=2, dim=2)
  far = draw(KEY, num_samples=50, separation=1e4)
  assert np.all(np.isfinite(far.posterior))
  np.testing.assert_array_equal(jnp.argmax(far.posterior, 1), far.labels)
  one = draw(KEY, num_samples=1, separation=0.0)
  np.testing.assert_allclose(one.posterior, 0.5)


def test_errors():
  noise = data.paired_label_noise
  with pytest.raises(ValueError, match=r"noise_rate must lie in \[0, 1\], got 1.5"):
    noise(KEY, LABELS, num_classes=6, noise_rate=1.5)
  with pytest.raises(ValueError, match="must differ"):
    noise(KEY, LABELS, num_classes=6, noise_rate=0.1, partners=np.array([1, 1, 0, 0, 0, 0]))
  with pytest.raises(ValueError, match="partners"):
    noise(KEY, LABELS, num_classes=6, noise_rate=0.1, partners=np.arange(1, 7))
  with pytest.raises(ValueError, match="labels"):
    noise(KEY, LABELS, num_classes=5, noise_rate=0.1)
  with pytest.raises(ValueError, match=r"labels must have shape \[n\], got \[2, 3\]"):
    noise(KEY, np.zeros((2, 3), int), num_classes=5, noise_rate=0.1)
  with pytest.raises(ValueError, match=r"partners must have shape \[5\], got \[6\]"):
    noise(KEY, LABELS, num_classes=5, noise_rate=0.1, partners=np.arange(6))
  with pytest.raises(TypeError, match="labels must be of type int, got float32"):
    noise(KEY, np.zeros(3, np.float32), num_classes=5, noise_rate=0.1)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    noise(KEY, np.zeros(3, int), num_classes=1, noise_rate=0.1)
  gaussians = data.sample_overlapping_gaussians
  with pytest.raises(ValueError, match="dim must be at least the number of classes, got 3 < 4"):
    gaussians(KEY, num_samples=5, num_classes=4, dim=3, separation=1.0)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    gaussians(KEY, num_samples=0, num_classes=2, dim=3, separation=1.0)
  with pytest.raises(ValueError, match="separation"):
    gaussians(KEY, num_samples=5, num_classes=2, dim=3, separation=-1.0)
