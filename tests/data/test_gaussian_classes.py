"""Gaussian classes have the means, variances and priors that they state."""

import jax
import numpy as np
import pytest

from jaxlab import data


def test_means():
  means = jax.jit(lambda: data.gaussian_class_means(num_features=2, num_classes=5))()
  np.testing.assert_array_equal(means, [[-1] * 2, [1] * 2, [2] * 2, [4] * 2, [8] * 2])


def test_samples_have_the_stated_moments():
  drawn = data.sample_gaussian_classes(
    jax.random.key(0), num_samples=60_000, num_features=5, num_classes=3
  )
  features, labels = np.asarray(drawn.features), np.asarray(drawn.labels)
  assert features.dtype == np.float32 and labels.dtype == np.int32
  for c, mean in enumerate((-1, 1, 2)):
    own = features[labels == c]
    assert abs(len(own) / 60_000 - 1 / 3) < 0.01
    np.testing.assert_allclose(own.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(own.T), np.diag([5, 5, 1, 1, 1]), atol=0.2)


def test_no_class_is_missing():
  draw = jax.jit(
    jax.vmap(
      lambda key: data.sample_gaussian_classes(key, num_samples=4, num_features=2, num_classes=3)
    )
  )
  labels = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)).labels)
  counts = (labels[:, :, None] == np.arange(3)).sum(1)
  assert (counts > 0).all()
  # Of the 36 equally likely draws, each class has two examples in 12.
  np.testing.assert_allclose((counts == 2).mean(0), 1 / 3, atol=0.06)


def test_errors():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="num_features must be at least 2, got 1"):
    data.gaussian_class_means(num_features=1, num_classes=2)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    data.sample_gaussian_classes(key, num_samples=4, num_features=2, num_classes=1)
  with pytest.raises(ValueError, match="num_samples must be at least 3, got 2"):
    data.sample_gaussian_classes(key, num_samples=2, num_features=2, num_classes=3)
