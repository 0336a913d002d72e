"""Targets and features of models of errors."""

import jax
import numpy as np
import pytest
from scipy import special

from jaxlab import uncertainty

N, M, D, K = 30, 8, 2, 4
RNG = np.random.default_rng(0)
X, TRAIN = RNG.normal(size=(N, D)).astype("f"), RNG.normal(size=(M, D)).astype("f")
KINDS = ("log_squared", "squared", "inverse_softplus")


def compiled(function):
  """One program, with results that NumPy may take apart."""
  function = jax.jit(function)
  return lambda *args: jax.tree.map(np.asarray, function(*args))


@compiled
def targets(predictions, values):
  return {kind: uncertainty.error_target(predictions, values, kind=kind) for kind in KINDS}


@compiled
def back(values):
  return {kind: uncertainty.error_from_target(values[kind], kind=kind) for kind in KINDS}


@compiled
def geometry(x, training_x, mask):
  distance = uncertainty.nearest_distance(x, training_x, mask=mask)
  return distance, uncertainty.seen_indicator(x, training_x, mask=mask)


classify = compiled(uncertainty.classification_error_target)
excess, scale = (
  compiled(uncertainty.epistemic_from_error),
  compiled(uncertainty.min_max_scale),
)


def test_targets_match_their_formulas_and_are_inverted():
  predictions, values = RNG.normal(size=(2, N)).astype(np.float32)
  squared = (predictions.astype(np.float64) - values) ** 2
  found = targets(predictions, values)
  np.testing.assert_allclose(found["squared"], squared, rtol=1e-4)
  np.testing.assert_allclose(found["log_squared"], np.log(squared), rtol=1e-4, atol=1e-4)
  inverse = np.log(np.expm1(squared))
  np.testing.assert_allclose(found["inverse_softplus"], inverse, rtol=1e-4, atol=1e-4)
  for restored in back(found).values():
    np.testing.assert_allclose(restored, squared, rtol=1e-3, atol=1e-6)


def test_no_error_gives_the_smallest_value():
  values = np.resize(np.array([0, 1, 1e-30, 1e4], np.float32), N)
  found = targets(values, values)
  assert (found["log_squared"] == -10).all() and (found["inverse_softplus"] == -10).all()
  assert (found["squared"] == 0).all()
  large = targets(1e4 * values, -1e4 * values)
  assert all(np.isfinite(x).all() for x in large.values())
  # Read back, values beyond the limits count as these.
  limits = {kind: np.resize(np.array([-1e4, 1e4], np.float32), N) for kind in KINDS}
  restored = back(limits)
  np.testing.assert_allclose(restored["log_squared"][:2], np.exp([-20, 3]), rtol=1e-5)
  np.testing.assert_allclose(restored["squared"][:2], [0, 1e4])
  np.testing.assert_allclose(restored["inverse_softplus"][:2], [0, 1e4])
  slope = jax.jit(
    jax.grad(lambda x: sum(uncertainty.error_target(x, values, kind=kind).sum() for kind in KINDS))
  )
  np.testing.assert_array_equal(slope(values), 0)
  np.testing.assert_array_equal(slope(values + 1), 0)


def test_classification_target_matches_a_loop():
  logits, labels = 3 * RNG.normal(size=(N, K)).astype("f"), RNG.integers(0, K, N)
  expected = []
  for z, label in zip(logits.astype(np.float64), labels):
    losses = [-np.log(special.expit(z[k] if k == label else -z[k])) for k in range(K)]
    expected.append(np.log10(sum(losses)))
  np.testing.assert_allclose(classify(logits, labels), expected, rtol=1e-4, atol=1e-5)
  sure = np.where(np.arange(K) == labels[:, None], 1e4, -1e4).astype(np.float32)
  np.testing.assert_array_equal(classify(sure, labels), -5)
  assert np.isfinite(classify(-sure, labels)).all()
  masked = np.where(np.arange(K) == (labels[:, None] + 1) % K, -np.inf, logits).astype("f")
  assert np.isfinite(classify(masked, labels)).all()
  outside = np.where(np.arange(N) < 2, [K, -1] * (N // 2), labels)
  np.testing.assert_array_equal(np.isnan(classify(logits, outside)), np.arange(N) < 2)


def test_excess_of_a_constant_predictor():
  """With the true expected loss and noise, the excess is the squared distance to the truth."""
  truth = np.sin(np.arange(N)).astype(np.float32)
  total = (0.3 - truth) ** 2 + 0.04
  np.testing.assert_allclose(excess(total, np.float32(0.04)), (0.3 - truth) ** 2, atol=1e-6)
  np.testing.assert_array_equal(excess(total - 10, np.float32(0.04)), 0)
  spoiled = np.where(np.arange(N) == 1, np.nan, total)
  np.testing.assert_array_equal(np.isnan(excess(spoiled, np.float32(0.04))), np.arange(N) == 1)


def test_replicates():
  values = RNG.normal(size=(5, 3)).astype(np.float32)
  np.testing.assert_allclose(
    jax.jit(uncertainty.replicate_variance)(values), values.var(axis=1, ddof=1), rtol=1e-5
  )
  with pytest.raises(ValueError, match="values must hold at least 2 measurements, got 1"):
    uncertainty.replicate_variance(values[:, :1])


def test_distances_and_the_seen_bit():
  x = X.copy()
  x[:3] = TRAIN[:3]
  x[3] = TRAIN[3] + np.float32(5e-4)
  x[4] = TRAIN[6]
  mask = np.arange(M) < 5
  distances = np.linalg.norm(x[:, None].astype(np.float64) - TRAIN[None, :5], axis=2).min(1)
  found, seen = geometry(x, np.where(mask[:, None], TRAIN, np.nan), mask)
  np.testing.assert_allclose(found, distances, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(seen, np.arange(N) < 4)
  found, seen = geometry(x, TRAIN, np.zeros(M, bool))
  assert (found == np.inf).all() and (seen == 0).all()
  slope = jax.jit(jax.grad(lambda x: uncertainty.nearest_distance(x, TRAIN).sum()))(x)
  assert np.isfinite(slope).all() and (slope[:3] == 0).all()
  x[7, 0] = np.nan
  for values in geometry(x, TRAIN, mask):
    np.testing.assert_array_equal(np.isnan(values), np.arange(N) == 7)


def test_min_max_scale():
  values = RNG.normal(size=N).astype(np.float32)
  found = scale(values, np.float32(-1), np.float32(3))
  np.testing.assert_allclose(found, (values + 1) / 4, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(scale(values, np.float32(2), np.float32(2)), 0)


def test_features_stand_in_one_order():
  columns = {name: RNG.normal(size=N).astype("f") for name in ("density", "variance", "seen")}
  found = uncertainty.error_features(X, include=("seen", "x", "density"), **columns)
  expected = np.column_stack([X, columns["density"], columns["seen"]])
  np.testing.assert_array_equal(found, expected)
  with pytest.raises(ValueError, match="include names 'distance', but distance is not given"):
    uncertainty.error_features(X, include=("x", "distance"), **columns)
  with pytest.raises(ValueError, match="include must be one of 'x', 'density'"):
    uncertainty.error_features(X, include=("y",))
  with pytest.raises(ValueError, match="include must not be empty"):
    uncertainty.error_features(X, include=())


def test_errors():
  for function in (
    lambda: uncertainty.error_target(X, X, kind="log"),
    lambda: uncertainty.error_from_target(X, kind="log"),
  ):
    with pytest.raises(ValueError, match="kind must be one of 'log_squared', 'squared'"):
      function()
  with pytest.raises(ValueError, match=r"epsilon must lie in \(0, inf\), got 0.0"):
    uncertainty.seen_indicator(X, TRAIN, epsilon=0.0)
  with pytest.raises(ValueError, match="training_x must have shape"):
    uncertainty.nearest_distance(X, TRAIN[:, :1])
  with pytest.raises(ValueError, match="total_error and aleatoric must have shapes"):
    uncertainty.epistemic_from_error(np.ones(3), np.ones(2))
