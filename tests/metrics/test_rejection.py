import jax
import numpy as np
import pytest

from jaxlab.metrics import rejection

RNG = np.random.default_rng(0)
N = 12
ERRORS = RNG.exponential(size=N).astype(np.float32)
UNSURE = np.round(ERRORS + RNG.normal(size=N)).astype(np.float32)  # With ties.


def test_curve_matches_a_loop():
  curve = jax.tree.map(np.asarray, jax.jit(rejection.rejection_curve)(UNSURE, ERRORS))
  np.testing.assert_array_equal(curve.thresholds, np.sort(UNSURE))
  for i, threshold in enumerate(curve.thresholds):
    kept = threshold >= UNSURE
    np.testing.assert_allclose(curve.kept[i], kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(curve.error[i], ERRORS[kept].mean(), rtol=1e-5)


def slow_area(uncertainty):
  points = [(u, (uncertainty <= u).mean(), ERRORS[uncertainty <= u].mean()) for u in uncertainty]
  points = sorted(set(points))
  kept, error = ([0.0, *(p[1] for p in points)], [points[0][2], *(p[2] for p in points)])
  return np.trapezoid(error, kept)


def test_ratio():
  ratio = jax.jit(rejection.rejection_ratio)
  expected = (ERRORS.mean() - slow_area(UNSURE)) / (ERRORS.mean() - slow_area(ERRORS))
  np.testing.assert_allclose(ratio(UNSURE, ERRORS), expected, rtol=1e-4)
  np.testing.assert_allclose(ratio(np.exp(ERRORS), ERRORS), 1, rtol=1e-5)
  np.testing.assert_allclose(ratio(np.ones(N, np.float32), ERRORS), 0, atol=1e-6)
  assert ratio(-ERRORS, ERRORS) < 0
  assert ratio(UNSURE, np.ones(N, np.float32)) == 0
  spoiled = UNSURE.copy()
  spoiled[3] = np.nan
  assert np.isnan(ratio(spoiled, ERRORS)) and np.isnan(ratio(UNSURE, spoiled))


def test_missing_uncertainty_is_refused_first():
  spoiled = UNSURE.copy()
  spoiled[3] = np.nan
  curve = jax.tree.map(np.asarray, jax.jit(rejection.rejection_curve)(spoiled, ERRORS))
  assert np.isnan([curve.thresholds[-1], curve.kept[-1], curve.error[-1]]).all()
  assert np.isfinite(curve.error[:-1]).all()


def test_errors():
  with pytest.raises(ValueError, match="uncertainty must not be empty"):
    rejection.rejection_curve(np.zeros(0), np.zeros(0))
