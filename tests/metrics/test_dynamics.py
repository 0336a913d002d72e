import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.metrics.dynamics import (
  feature_alignment,
  fit_log_diffusion,
  fit_power_diffusion,
  parameter_distance,
)

STEPS = np.unique(np.round(np.sqrt(2.0) ** np.arange(20)).astype(int))


def test_fits_recover_noiseless_laws():
  fit = fit_log_diffusion(STEPS, 0.7 * np.log(STEPS) + 2.0)
  np.testing.assert_allclose(fit, (0.7, 2.0, 1.0), rtol=1e-5)
  fit = fit_power_diffusion(STEPS, 3.0 * STEPS**0.4)
  np.testing.assert_allclose(fit, (0.4, np.log(3.0), 1.0), rtol=1e-5)


def test_fits_match_numpy_on_noise():
  distances = np.random.default_rng(0).uniform(1.0, 5.0, len(STEPS))
  for fit, y in (
    (fit_log_diffusion(STEPS, distances), distances),
    (fit_power_diffusion(STEPS, distances), np.log(distances)),
  ):
    slope, intercept = np.polyfit(np.log(STEPS), y, 1)
    residual = y - slope * np.log(STEPS) - intercept
    r_squared = 1 - np.sum(residual**2) / np.sum((y - y.mean()) ** 2)
    np.testing.assert_allclose(fit, (slope, intercept, r_squared), rtol=1e-4, atol=1e-5)


def test_equal_distances_and_steps():
  fit = jax.jit(fit_log_diffusion)(STEPS, jnp.full(len(STEPS), 0.1))
  np.testing.assert_allclose(fit, (0.0, 0.1, 1.0), atol=1e-7)
  fit = jax.jit(fit_log_diffusion)(jnp.full(3, 5), jnp.array([1.0, 2.0, 3.0]))
  np.testing.assert_allclose(fit, (0.0, 2.0, 0.0), atol=1e-6)
  grad = jax.jit(jax.grad(lambda d: fit_log_diffusion(STEPS, d).r_squared))(jnp.ones(len(STEPS)))
  assert np.isfinite(grad).all()


def test_fits_under_vmap_and_bfloat16():
  distances = np.stack([np.log(STEPS), 2 * np.log(STEPS) + 1]).astype(np.float32)
  fit = jax.jit(jax.vmap(fit_log_diffusion, (None, 0)))(jnp.asarray(STEPS), distances)
  np.testing.assert_allclose(fit.slope, (1.0, 2.0), rtol=1e-4)
  half = fit_log_diffusion(STEPS, distances[1].astype(jnp.bfloat16))
  assert half.slope.dtype == jnp.float32
  np.testing.assert_allclose(half.slope, 2.0, rtol=0.01)


def test_fit_errors():
  for fit in (fit_log_diffusion, fit_power_diffusion):
    with pytest.raises(ValueError, match="at least two points, got 1"):
      fit(np.array([1]), np.array([1.0]))
    for bad in (0, -1, np.nan):
      with pytest.raises(ValueError, match="steps must lie in"):
        fit(np.array([bad, 1]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="distances must have shape"):
      fit(np.array([1, 2, 3]), np.array([1.0, 2.0]))
  with pytest.raises(ValueError, match="distances must lie in"):
    fit_power_diffusion(np.array([1, 2]), np.array([0.0, 1.0]))


def test_parameter_distance_matches_numpy():
  rng = np.random.default_rng(0)
  first = {"a": rng.normal(size=(3, 2)), "b": [rng.normal(size=4)]}
  second = jax.tree.map(lambda x: x + rng.normal(size=x.shape), first)
  flat = [np.concatenate([tree["a"].ravel(), tree["b"][0]]) for tree in (first, second)]
  distance = jax.jit(parameter_distance)(first, second)
  np.testing.assert_allclose(distance, np.linalg.norm(flat[0] - flat[1]), rtol=1e-5)
  assert parameter_distance(first, first) == 0.0
  grad = jax.jit(jax.grad(parameter_distance))(first, first)
  jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0.0), grad)
  # The sum over many small entries of a half-precision tree keeps its digits.
  half = jnp.zeros(4096, jnp.bfloat16)
  np.testing.assert_allclose(parameter_distance({"w": half + 0.01}, {"w": half}), 0.64, rtol=0.01)
  with pytest.raises(ValueError, match=r"initial\['w'\] must have shape"):
    parameter_distance({"w": half}, {"w": half[:3]})
  with pytest.raises(ValueError, match="initial must have the structure of params"):
    parameter_distance({"w": half}, {"v": half})


def test_feature_alignment_matches_a_loop():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(2, 3, 5)).astype(np.float32)
  features = rng.normal(size=(4, 5)).astype(np.float32)
  expected = np.zeros((2, 4))
  for c, r, f in np.ndindex(2, 3, 4):
    expected[c, f] += weights[c, r] @ np.outer(features[f], features[f]) @ weights[c, r]
  ours = jax.jit(feature_alignment)(weights, features)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)
  unit = features[0] / np.linalg.norm(features[0])
  same = np.broadcast_to(unit, (2, 3, 5))
  np.testing.assert_allclose(feature_alignment(same, unit[None]), 3.0, rtol=1e-5)
  half = feature_alignment(weights.astype(jnp.bfloat16), features.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, rtol=0.1, atol=0.1)
  mapped = jax.vmap(feature_alignment, (0, None))(np.stack([weights, 2 * weights]), features)
  np.testing.assert_allclose(mapped[1], 4 * mapped[0], rtol=1e-5)
  with pytest.raises(ValueError, match=r"features must .* d = 5, got \[4, 4\]"):
    feature_alignment(weights, features[:, :4])
