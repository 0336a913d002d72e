"""Naive Bayes against SciPy's densities and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.naive_bayes import GaussianNB

from jaxlab import algorithms, data

M, N, K = 60, 4, 3


def compiled(function):
  """One program, with results that NumPy may take apart."""
  function = jax.jit(function)
  return lambda *args: jax.tree.map(np.asarray, function(*args))


@compiled
def fit(features, labels, var_epsilon=1e-9):
  return algorithms.gaussian_nb_fit(features, labels, num_classes=K, var_epsilon=var_epsilon)


@compiled
def evaluate(state, features):
  shared = algorithms.gaussian_nb_log_joint(*state, features)
  own = algorithms.gaussian_nb_log_joint(*state, features, shared_variance=False)
  linear = algorithms.gaussian_nb_linear(*state)
  return {
    "shared": shared,
    "own": own,
    "weights": linear.weights,
    "bias": linear.bias,
    "linear": features @ linear.weights.T + linear.bias[None],
    "shared classes": algorithms.gaussian_nb_predict(*state, features),
    "own classes": algorithms.gaussian_nb_predict(*state, features, shared_variance=False),
  }


@compiled
def update(state, features, labels):
  return algorithms.gaussian_nb_update(state, features, labels)


def draw(seed=0):
  rng = np.random.default_rng(seed)
  labels = np.concatenate([np.arange(K), rng.integers(0, K, M - K)]).astype(np.int32)
  features = rng.normal(size=(M, N)) * rng.uniform(0.5, 2, N) + rng.normal(size=(K, N))[labels]
  return features.astype(np.float32), labels


def slow_fit(features, labels, var_epsilon=1e-9):
  features = features.astype(np.float64)
  rows = [features[labels == c] for c in range(K)]
  means = np.array([x.mean(0) for x in rows])
  variances = np.array([np.mean((x - x.mean(0)) ** 2, axis=0) for x in rows]) + var_epsilon
  return np.array([len(x) for x in rows]), means, variances


def slow_log_joint(counts, means, variances, features, shared):
  priors = counts / counts.sum()
  result = np.zeros((len(features), K))
  for k in range(K):
    variance = sum(p * v for p, v in zip(priors, variances)) if shared else variances[k]
    for i, x in enumerate(features.astype(np.float64)):
      result[i, k] = np.log(priors[k]) + stats.norm.logpdf(x, means[k], np.sqrt(variance)).sum()
  return result


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_and_log_joint_match_a_loop(seed):
  features, labels = draw(seed)
  state, expected = fit(features, labels), slow_fit(features, labels)
  for ours, theirs in zip(state, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  result = evaluate(state, features)
  for kind in ("shared", "own"):
    theirs = slow_log_joint(*expected, features, kind == "shared")
    np.testing.assert_allclose(result[kind], theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result[f"{kind} classes"], theirs.argmax(1))
  assert result["own classes"].dtype == result["shared classes"].dtype == jnp.int32


def test_one_variance_gives_a_linear_classifier():
  features, labels = draw()
  state = fit(features, labels)
  result = evaluate(state, features)
  gap = np.asarray(result["linear"]) - result["shared"]
  np.testing.assert_allclose(gap, np.repeat(gap[:, :1], K, axis=1), rtol=1e-4, atol=1e-4)
  counts, means, variances = slow_fit(features, labels)
  priors = counts / counts.sum()
  weights = means / (priors @ variances)
  np.testing.assert_allclose(result["weights"], weights, rtol=1e-4, atol=1e-5)
  bias = np.log(priors) - 0.5 * (means * weights).sum(1)
  np.testing.assert_allclose(result["bias"], bias, rtol=1e-4, atol=1e-5)


def test_own_variances_match_scikit_learn():
  features, labels = draw()
  theirs = GaussianNB(var_smoothing=0.0).fit(features, labels)
  state = fit(features, labels, 0.0)
  np.testing.assert_allclose(state.variances, theirs.var_, rtol=1e-4)
  result = evaluate(state, features)
  np.testing.assert_array_equal(result["own classes"], theirs.predict(features))
  posterior = np.exp(result["own"]) / np.exp(result["own"]).sum(1, keepdims=True)
  np.testing.assert_allclose(posterior, theirs.predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_any_split_gives_the_fit_of_all(order):
  features, labels = (x[::order] for x in draw())
  whole = fit(features, labels)
  # The first half holds no example of class 2, the second none of class 0.
  by_class = np.argsort(labels, kind="stable")
  for rows in (np.arange(M), by_class, by_class[::-1]):
    first, second = rows[: M // 2], rows[M // 2 :]
    state = update(fit(features[first], labels[first]), features[second], labels[second])
    for ours, theirs in zip(state, whole):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_classes_without_examples_are_never_predicted():
  features, labels = draw()
  labels = np.minimum(labels, K - 2)
  state = fit(features, labels)
  assert state.counts[K - 1] == 0
  np.testing.assert_array_equal(state.means[K - 1], 0)
  np.testing.assert_allclose(state.variances[K - 1], 1e-9)
  # Its variance must not matter, not even if it is 0.
  for var_epsilon in (1e-9, 0.0):
    result = evaluate(fit(features, labels, var_epsilon), np.zeros_like(features))
    for kind in ("shared", "own", "linear"):
      assert (np.asarray(result[kind][:, K - 1]) == -np.inf).all()
      assert np.isfinite(result[kind][:, : K - 1]).all()
    assert max(result["own classes"].max(), result["shared classes"].max()) < K - 1
  # An absent class stays absent, and takes what comes.
  again = update(state, features, labels)
  np.testing.assert_array_equal(again.counts, 2 * np.asarray(state.counts))
  np.testing.assert_array_equal(again.means[K - 1], 0)
  empty = fit(features, np.full(M, K, np.int32) + np.zeros(M, np.int32))
  for ours, theirs in zip(update(empty, features, labels), fit(features, labels)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_scale_of_a_feature_and_names_of_classes_do_not_matter():
  features, labels = draw()
  result = evaluate(fit(features, labels), features)
  scaled = features * np.array([1, 64, 1, 1 / 64], np.float32)
  again = evaluate(fit(scaled, labels), scaled)
  renamed = np.array([2, 0, 1], np.int32)
  permuted = fit(features, renamed[labels])
  for ours, theirs in zip(permuted, fit(features, labels)):
    np.testing.assert_allclose(ours[renamed], theirs, rtol=1e-6)
  for kind in ("shared classes", "own classes"):
    np.testing.assert_array_equal(again[kind], result[kind])
    np.testing.assert_array_equal(
      evaluate(permuted, features)[kind], renamed[np.asarray(result[kind])]
    )


def test_a_constant_feature_is_harmless():
  features, labels = draw()
  expected = evaluate(fit(features, labels), features)
  features[:, 1] = 0.7
  state = fit(features, labels)
  np.testing.assert_array_equal(state.means[:, 1], np.float32(0.7))
  np.testing.assert_allclose(state.variances[:, 1], 1e-9)
  expected = evaluate(fit(np.delete(features, 1, 1), labels), np.delete(features, 1, 1))
  result = evaluate(state, features)
  for kind in ("shared classes", "own classes"):
    np.testing.assert_array_equal(result[kind], expected[kind])
  halves = update(fit(features[:30], labels[:30]), features[30:], labels[30:])
  np.testing.assert_array_equal(halves.means[:, 1], np.float32(0.7))
  # Where it does vary later, it is equally unlikely under all classes.
  features[:, 1] = 0.9
  moved = evaluate(state, features)
  np.testing.assert_array_equal(moved["shared classes"], expected["shared classes"])
  for values in moved.values():
    assert np.isfinite(values).all()


def test_unknown_labels_take_rows_out_and_nan_stays_in_its_class():
  features, labels = draw()
  kept = np.arange(M) < M // 2
  outside = np.where(kept, labels, np.where(np.arange(M) % 2, -1, K + 5)).astype(np.int32)
  features_half, labels_half = features[kept], labels[kept]
  for ours, theirs in zip(fit(features, outside), slow_fit(features_half, labels_half)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  spoiled = features.copy()
  spoiled[0, 2] = np.nan
  for ours, theirs in zip(fit(spoiled, labels)[1:], fit(features, labels)[1:]):
    broken = np.isnan(ours)
    assert broken[labels[0], 2] and broken.sum() == 1
    np.testing.assert_array_equal(np.asarray(ours)[~broken], np.asarray(theirs)[~broken])


@jax.jit
def error_with_true_parameters(key):
  drawn = data.sample_gaussian_classes(key, num_samples=200_000, num_features=8, num_classes=2)
  means = data.gaussian_class_means(num_features=8, num_classes=2)
  variances = jnp.array([[8.0] * 4 + [1.0] * 4] * 2)
  # The means are moved together, so that there are errors.
  features = drawn.features - 0.7 * means[drawn.labels]
  linear = algorithms.gaussian_nb_linear(jnp.ones(2), 0.3 * means, variances)
  scores = features @ linear.weights.T + linear.bias[None]
  return jnp.mean(jnp.argmax(scores, axis=1) != drawn.labels)


def test_error_with_true_parameters_is_that_of_bayes():
  expected = stats.norm.cdf(-0.3 * np.sqrt(2 * 8 + 2) / 2)
  error = error_with_true_parameters(jax.random.key(0))
  assert abs(error - expected) < 5 * np.sqrt(expected / 200_000)


def test_errors():
  features, labels = draw()
  state = [np.asarray(x) for x in fit(features, labels)]
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    algorithms.gaussian_nb_fit(features, labels, num_classes=1)
  with pytest.raises(ValueError, match=r"var_epsilon must lie in \[0, inf\), got -1.0"):
    algorithms.gaussian_nb_fit(features, labels, num_classes=K, var_epsilon=-1.0)
  with pytest.raises(ValueError, match="labels must lie in"):
    algorithms.gaussian_nb_fit(features, labels + 1, num_classes=K)
  with pytest.raises(ValueError, match="labels must have shape"):
    algorithms.gaussian_nb_fit(features, labels[1:], num_classes=K)
  with pytest.raises(ValueError, match="features must have shape"):
    algorithms.gaussian_nb_log_joint(*state, features[:, 1:])
  with pytest.raises(ValueError, match="variances must lie in"):
    algorithms.gaussian_nb_predict(state[0], state[1], 0 * state[2], features)
