import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from jaxlab import uncertainty

N, D = 120, 4
RNG = np.random.default_rng(0)
fit = jax.jit(uncertainty.fit_linear_svm, static_argnames=("num_classes", "num_steps"))
score = jax.jit(uncertainty.linear_svm_scores, static_argnames="num_classes")
accuracies = jax.jit(
  uncertainty.probe_accuracy_by_layer,
  static_argnames=("num_classes", "train_fraction", "num_splits"),
)


def overlapping(num_classes, shift=1.0):
  labels = np.arange(N) % num_classes
  features = RNG.normal(size=(N, D)) + shift * np.eye(num_classes, D)[labels]
  return features.astype(np.float32), labels.astype(np.int32)


def reference(features, labels, cost):
  svm = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=100_000)
  return svm.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_it_equals_scikit_learn(num_classes, cost):
  features, labels = overlapping(num_classes)
  expected = reference(features, labels, cost)
  probe = fit(features, labels, num_classes=num_classes, regularization=cost)
  weights = expected.coef_ if num_classes > 2 else np.concatenate([-expected.coef_, expected.coef_])
  np.testing.assert_allclose(probe.weights, weights, rtol=2e-3, atol=2e-4)
  scores = score(features, labels, features, num_classes=num_classes, regularization=cost)
  decisions = expected.decision_function(features)
  if num_classes == 2:
    decisions = np.stack([-decisions, decisions], axis=1)
  np.testing.assert_allclose(scores, decisions, rtol=2e-3, atol=2e-4)


def test_it_minimizes_its_objective():
  features, labels = overlapping(3)
  probe = fit(features, labels, num_classes=3)
  rows = np.c_[features, np.ones(N)].astype(np.float64)
  for label, weights, bias in zip(range(3), *map(np.float64, probe)):
    weights, signs = np.append(weights, bias), np.where(labels == label, 1, -1)
    slopes = -2 * signs * np.maximum(0, 1 - signs * (rows @ weights))
    np.testing.assert_allclose(weights + slopes @ rows, 0, atol=2e-4)


def test_duplicated_rows_double_the_cost():
  features, labels = overlapping(3)
  half, half_labels = features[: N // 2], labels[: N // 2]
  twice = fit(np.tile(half, (2, 1)), np.tile(half_labels, 2), num_classes=3, regularization=0.7)
  # Rows of zeros with a cost of their own would move the bias; so the smaller set is solved alone.
  once = uncertainty.fit_linear_svm(half, half_labels, num_classes=3, regularization=1.4)
  np.testing.assert_allclose(twice.weights, once.weights, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(twice.bias, once.bias, rtol=1e-3, atol=1e-4)


def test_classes_may_be_renamed():
  features, labels = overlapping(3)
  names = np.array([2, 0, 1])
  plain, renamed = (fit(features, x, num_classes=3) for x in (labels, names[labels]))
  np.testing.assert_allclose(renamed.weights[names], plain.weights, atol=1e-4)


def test_a_large_cost_separates_what_can_be_separated():
  features, labels = overlapping(3, shift=9.0)
  errors = [
    np.mean(
      np.argmax(score(features, labels, features, num_classes=3, regularization=c), 1) != labels
    )
    for c in (1e-6, 1e4)
  ]
  assert errors[1] == 0 <= errors[0]


def test_extreme_rows_and_costs():
  features, labels = overlapping(3)
  for scale, cost in ((1e4, 1.0), (1e-4, 1.0), (1.0, 1e6)):
    probe = fit(scale * features, labels, num_classes=3, regularization=cost)
    assert np.isfinite(probe.weights).all()
  zeros = fit(np.zeros((N, D), np.float32), labels, num_classes=3)
  assert (zeros.weights == 0).all() and (zeros.bias < 0).all()


def test_nan_and_unknown_labels():
  features, labels = overlapping(3)
  spoiled = features.copy()
  spoiled[3, 1] = np.nan
  assert np.isnan(fit(spoiled, labels, num_classes=3).weights).all()
  assert np.isnan(fit(features, np.where(labels == 1, 3, labels), num_classes=3).bias).all()
  scores = np.asarray(score(features, labels, spoiled, num_classes=3))
  np.testing.assert_array_equal(np.isnan(scores).all(1), np.arange(N) == 3)


def planted(labels):
  """Layers of noise, of which the second says the class."""
  layers = RNG.normal(size=(N, 3, D)).astype(np.float32)
  layers[:, 1] += 4 * np.eye(3, D, dtype=np.float32)[labels]
  return layers


def test_a_planted_feature_is_found_in_its_layer():
  labels = (np.arange(N) % 3).astype(np.int32)
  layers = planted(labels)
  split = functools.partial(accuracies, num_classes=3, num_splits=20)
  result = np.asarray(split(jax.random.key(0), layers, labels))
  assert result.shape == (20, 3) and (result[:, 1] > 0.9).all()
  chance = result[:, [0, 2]].mean()
  # Splits share rows; the error is that of all rows tested once.
  assert abs(chance - 1 / 3) < 3 * np.sqrt(2 / 9 / N)
  order = np.array([2, 0, 1])
  shuffled = split(jax.random.key(0), layers[:, order], labels)
  np.testing.assert_allclose(shuffled, result[:, order], atol=1e-6)
  layers[5, 2, 0] = np.nan
  spoiled = np.isnan(split(jax.random.key(0), layers, labels))
  np.testing.assert_array_equal(spoiled, np.tile([False, False, True], (20, 1)))


def test_splits_match_scikit_learn():
  labels = (np.arange(N) % 3).astype(np.int32)
  layers = planted(labels)
  layers[:, 1] *= 0.5
  keys = jax.random.split(jax.random.key(7), 20)
  result = accuracies(jax.random.key(7), layers, labels, num_classes=3, num_splits=20)
  order = np.asarray(jax.random.permutation(keys[0], N))
  train, test = order[:84], order[84:]
  for layer, accuracy in enumerate(result[0]):
    svm = reference(layers[train, layer], labels[train], 1.0)
    np.testing.assert_allclose(accuracy, svm.score(layers[test, layer], labels[test]), atol=1e-6)


def test_features_have_norm_1():
  features, _ = overlapping(3)
  features *= np.logspace(-30, 30, N, dtype=np.float32)[:, None]
  features[4] = 0
  exact = features.astype(np.float64)
  scale = jax.jit(uncertainty.normalize_features)
  result = np.asarray(scale(features))
  norms = np.linalg.norm(result.astype(np.float64), axis=1)
  np.testing.assert_allclose(norms, np.arange(N) != 4, rtol=1e-6)
  expected = exact[5:] / np.linalg.norm(exact[5:], axis=1, keepdims=True)
  np.testing.assert_allclose(result[5:], expected, rtol=1e-5)
  slopes = jax.jit(jax.grad(lambda x: jnp.sum(scale(x)[:, 0])))(features)
  assert np.isfinite(slopes).all() and (slopes[4] == 0).all()


def test_errors():
  features, labels = overlapping(3)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    uncertainty.fit_linear_svm(features, labels, num_classes=1)
  with pytest.raises(ValueError, match=r"regularization must lie in \(0, inf\), got 0"):
    uncertainty.fit_linear_svm(features, labels, num_classes=3, regularization=0)
  with pytest.raises(ValueError, match="labels must hold every class, got none of class 3"):
    uncertainty.fit_linear_svm(features, labels, num_classes=4)
  with pytest.raises(ValueError, match="train_labels must hold every class, got none of class 1"):
    uncertainty.linear_svm_scores(features, 0 * labels, features, num_classes=2)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
    uncertainty.fit_linear_svm(features, labels, num_classes=2)
  for fraction in (0.0, 1.0):
    with pytest.raises(ValueError, match=rf"train_fraction must lie in \(0, 1\), got {fraction}"):
      uncertainty.probe_accuracy_by_layer(
        jax.random.key(0), planted(labels), labels, num_classes=3, train_fraction=fraction
      )
