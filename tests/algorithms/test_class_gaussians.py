"""Gaussians of classes against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import algorithms

N, D, K = 90, 3, 5


def compiled(function, *static):
  """One program, with results that NumPy may take apart."""
  function = jax.jit(function, static_argnames=static)
  return lambda *args, **kwargs: jax.tree.map(np.asarray, function(*args, **kwargs))


DENSITY = compiled(algorithms.class_log_density)
CALIBRATE = compiled(algorithms.calibrate_tail_gaussians, "weighting", "num_heads")
SAMPLE = compiled(algorithms.sample_class_gaussians, "num_samples")


@compiled
def fit(features, labels, weights, ridge=0.0):
  return algorithms.fit_class_gaussians(features, labels, weights, num_classes=K, ridge=ridge)


def draw(seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, K, N).astype(np.int32)
  features = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + rng.normal(size=(K, D))[labels]
  return features.astype(np.float32), labels


def gaussians(seed=0):
  rng = np.random.default_rng(seed)
  roots = rng.normal(size=(K, D, D))
  mean, covariance = rng.normal(size=(K, D)), roots @ roots.swapaxes(1, 2)
  return mean.astype("f"), covariance.astype("f"), rng.integers(1, 50, K).astype("f")


def test_equal_weights_give_means_and_covariances():
  features, labels = draw()
  for weights in (np.ones(N, np.float32), None):
    fitted = fit(features, labels, weights)
    for c in range(K):
      own = features[labels == c].astype(np.float64)
      np.testing.assert_allclose(fitted.mean[c], own.mean(0), rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(fitted.covariance[c], np.cov(own.T), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(fitted.count, np.bincount(labels, minlength=K))


def test_integer_weights_repeat_points():
  features, labels = draw(1)
  times = np.random.default_rng(9).integers(0, 3, N)
  fitted = fit(features, labels, times.astype(np.float32))
  for c in range(K):
    own = np.repeat(features[labels == c], times[labels == c], axis=0).astype(np.float64)
    np.testing.assert_allclose(fitted.mean[c], own.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.covariance[c], np.cov(own.T), rtol=1e-4, atol=1e-5)


def test_classes_of_two_points_one_and_none():
  features, labels = draw(2)
  labels = np.zeros(N, np.int32)
  labels[:2], labels[2] = 1, 2
  fitted = fit(features, labels, np.ones(N, np.float32), 0.5)
  covariance = np.asarray(fitted.covariance) - 0.5 * np.eye(D)
  assert np.linalg.matrix_rank(covariance[1], tol=1e-4) == 1
  np.testing.assert_allclose(fitted.mean[2], features[2], rtol=1e-6)
  np.testing.assert_allclose(covariance[2:], 0, atol=1e-6)
  np.testing.assert_array_equal(fitted.mean[3:], 0)
  np.testing.assert_array_equal(fitted.count, [N - 3, 2, 1, 0, 0])


def test_nan_and_unknown_labels_stay_by_themselves():
  features, labels = draw()
  expected = fit(features, labels, np.ones(N, np.float32))
  spoiled = features.copy()
  spoiled[labels == 1] = np.nan
  for result in (
    fit(spoiled, labels, np.ones(N, np.float32)),
    fit(features, labels, np.where(labels == 1, np.nan, 1).astype("f")),
  ):
    for ours, theirs in zip(result, expected):
      np.testing.assert_array_equal(np.delete(ours, 1, 0), np.delete(theirs, 1, 0))
    assert np.isnan(result.mean[1]).all()
  outside = np.where(labels == 1, np.where(np.arange(N) % 2, -1, K), labels).astype(np.int32)
  result = fit(features, outside, np.ones(N, np.float32))
  assert result.count[1] == 0
  np.testing.assert_array_equal(np.delete(result.mean, 1, 0), np.delete(expected.mean, 1, 0))


def slow_calibrate(mean, covariance, count, is_tail, num_heads, weight, inflation, weighting):
  mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
  means, covariances = mean.copy(), covariance.copy()
  heads = [c for c in range(K) if not is_tail[c]]
  for t in np.flatnonzero(is_tail):
    near = sorted(heads, key=lambda h: (((mean[h] - mean[t]) ** 2).sum(), h))[:num_heads]
    if near:
      share = count[near] if weighting == "size" else np.ones(len(near))
      share = share / share.sum()
      means[t] = weight * share @ mean[near] + (1 - weight) * mean[t]
      lent = np.einsum("h,hij->ij", share, covariance[near])
      covariances[t] = weight * lent + (1 - weight) * covariance[t]
    covariances[t] += inflation * np.eye(D)
  return means, covariances


@pytest.mark.parametrize("weighting", ["size", "uniform"])
@pytest.mark.parametrize("num_tails", [0, 2, 3, 5])
def test_calibration_matches_a_loop(num_tails, weighting):
  given = *gaussians(num_tails), np.arange(K) < num_tails
  result = CALIBRATE(*given, weighting=weighting)
  expected = slow_calibrate(*given, 3, 0.5, 0.1, weighting)
  for ours, theirs in zip(result, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  for ours, theirs in zip(result, given):
    np.testing.assert_array_equal(ours[num_tails:], theirs[num_tails:])
  eigenvalues = np.linalg.eigvalsh(result.covariance)
  assert (eigenvalues > -1e-5).all()
  np.testing.assert_allclose(result.covariance, np.swapaxes(result.covariance, 1, 2), atol=1e-5)


def test_calibration_by_nothing_and_by_the_nearest_head_alone():
  mean, covariance, count = gaussians()
  is_tail = np.arange(K) >= 2
  same = CALIBRATE(mean, covariance, count, is_tail, head_weight=0.0, inflation=0.0)
  np.testing.assert_allclose(same.mean, mean, rtol=1e-6)
  np.testing.assert_allclose(same.covariance, covariance, rtol=1e-6)
  copied = CALIBRATE(mean, covariance, count, is_tail, head_weight=1.0, num_heads=1)
  for t in range(2, K):
    head = np.argmin(((mean[:2] - mean[t]) ** 2).sum(1))
    np.testing.assert_allclose(copied.mean[t], mean[head], rtol=1e-6)
    expected = covariance[head] + 0.1 * np.eye(D)
    np.testing.assert_allclose(copied.covariance[t], expected, rtol=1e-5, atol=1e-6)


def test_equally_near_heads_come_in_order_and_broken_ones_lend_nothing():
  mean, covariance, count = gaussians()
  mean[:4] = mean[0]
  is_tail = np.array([False, False, False, True, True])
  copied = CALIBRATE(mean, covariance, count, is_tail, num_heads=1, head_weight=1.0, inflation=0.0)
  np.testing.assert_allclose(copied.covariance[3:], covariance[[0, 0]], rtol=1e-6)
  mean[0] = np.nan
  copied = CALIBRATE(mean, covariance, count, is_tail, num_heads=1, head_weight=1.0, inflation=0.0)
  np.testing.assert_allclose(copied.covariance[3:], covariance[[1, 1]], rtol=1e-6)


@compiled
def fit_two_ways(features, labels):
  raw = algorithms.fit_class_gaussians(features, labels, num_classes=3)
  is_tail = algorithms.tail_classes(raw.count)
  return is_tail, raw, algorithms.calibrate_tail_gaussians(*raw, is_tail, inflation=0.0)


def test_a_tail_class_with_a_heads_covariance_is_estimated_better():
  """Six points in sixteen dimensions, and two head classes of the same shape."""
  rng = np.random.default_rng(0)
  errors = []
  for _ in range(10):
    root = rng.normal(size=(16, 16)) / 4
    labels = np.repeat(np.arange(3), (300, 300, 6)).astype(np.int32)
    features = rng.normal(size=(606, 16)) @ root.T + 3 * rng.normal(size=(3, 16))[labels]
    is_tail, *fitted = fit_two_ways(features.astype("f"), labels)
    assert is_tail.tolist() == [False, False, True]
    errors.append([np.linalg.norm(x.covariance[2] - root @ root.T) for x in fitted])
  raw, calibrated = np.mean(errors, axis=0)
  assert calibrated < 0.6 * raw


def test_tail_classes_are_smaller_than_average():
  tail = compiled(algorithms.tail_classes)
  np.testing.assert_array_equal(tail(np.array([12, 5, 5, 2])), [False, True, True, True])
  assert not tail(np.full(4, 7)).any()


def test_draws_have_the_means_and_covariances():
  mean, covariance, _ = gaussians()
  covariance[0] = np.outer(mean[0], mean[0])  # Singular.
  covariance[1] = 0
  num = 100_000
  features, labels = SAMPLE(jax.random.key(0), mean, covariance, num_samples=num)
  assert features.shape == (K, num, D) and np.isfinite(features).all()
  np.testing.assert_array_equal(labels, np.repeat(np.arange(K), num).reshape(K, num))
  for c, own in enumerate(np.asarray(features, np.float64)):
    variances = np.diag(covariance[c])
    assert (abs(own.mean(0) - mean[c]) <= 4 * np.sqrt(variances / num) + 1e-5).all()
    error = np.sqrt((np.outer(variances, variances) + covariance[c] ** 2) / num)
    assert (abs(np.cov(own.T) - covariance[c]) <= 4 * error + 1e-5).all()


def test_log_density_matches_scipy():
  mean, covariance, _ = gaussians()
  covariance[0] = 0
  features = draw()[0]
  result = DENSITY(features, mean, covariance, ridge=0.1)
  for c in range(K):
    exact = stats.multivariate_normal(mean[c], covariance[c] + 0.1 * np.eye(D)).logpdf(features)
    np.testing.assert_allclose(result[:, c], exact, rtol=1e-3, atol=1e-3)


def test_gradients_are_finite():
  mean, covariance, _ = gaussians()
  covariance[:] = np.eye(D)  # Equal eigenvalues.

  def total(mean, covariance):
    drawn = algorithms.sample_class_gaussians(
      jax.random.key(0), mean, covariance, num_samples=4
    ).features
    return jnp.sum(drawn**2) + jnp.sum(
      algorithms.class_log_density(drawn[0], mean, covariance, ridge=0.1)
    )

  for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(mean, covariance):
    assert np.isfinite(gradient).all()


def test_errors():
  features, labels = draw()
  mean, covariance, count = gaussians()
  is_tail = count < 20
  fitting, calibrate = algorithms.fit_class_gaussians, algorithms.calibrate_tail_gaussians
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    fitting(features, labels, num_classes=1)
  with pytest.raises(ValueError, match=r"ridge must lie in \[0, inf\), got -1"):
    fitting(features, labels, num_classes=K, ridge=-1)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\), got 0 to 4"):
    fitting(features, labels, num_classes=4)
  with pytest.raises(ValueError, match=r"weights must lie in \[0, inf\)"):
    fitting(features, labels, np.full(N, -1.0), num_classes=K)
  for wrong, text in (
    ({"head_weight": 1.5}, r"head_weight must lie in \[0, 1\], got 1.5"),
    ({"inflation": -1}, r"inflation must lie in \[0, inf\), got -1"),
    ({"weighting": "rank"}, "weighting must be one of 'size', 'uniform', got 'rank'"),
    ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
  ):
    with pytest.raises(ValueError, match=text):
      calibrate(mean, covariance, count, is_tail, **wrong)
  with pytest.raises(TypeError, match="is_tail must be of type bool"):
    calibrate(mean, covariance, count, count)
  with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
    algorithms.sample_class_gaussians(jax.random.key(0), mean, covariance, num_samples=0)
  with pytest.raises(ValueError, match=r"covariance must have shape \[k, d, d\]"):
    algorithms.class_log_density(features, mean, covariance[:, :2])
