import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics

METRICS = (
  metrics.pearson_correlation,
  metrics.mean_absolute_percentage_error,
  metrics.root_mean_squared_error,
)
correlation = jax.jit(metrics.pearson_correlation)


@pytest.fixture(scope="module")
def pairs():
  rng = np.random.default_rng(0)
  targets = rng.normal(1.0, 2.0, (20, 3))
  return (targets + rng.normal(size=(20, 3))).astype(np.float32), targets.astype(np.float32)


def test_correlation_matches_numpy(pairs):
  predictions, targets = pairs
  slow = [np.corrcoef(predictions[:, i], targets[:, i])[0, 1] for i in range(3)]
  np.testing.assert_allclose(correlation(*pairs), np.mean(slow), rtol=1e-5)
  one = correlation(predictions[:, 0], targets[:, 0])
  np.testing.assert_allclose(one, slow[0], rtol=1e-5)


def test_correlation_of_affine_maps_is_one(pairs):
  _, targets = pairs
  for scale, offset in ((2.0, 1.0), (-0.5, 3.0), (1e-3, 1e3), (1e15, 0.0)):
    result = correlation(scale * targets + offset, targets)
    np.testing.assert_allclose(result, np.sign(scale), atol=1e-2 if offset == 1e3 else 1e-5)


def test_constants_have_no_correlation(pairs):
  predictions, targets = pairs
  # The float32 mean of equal values, and so their standard deviation, need not be exact.
  constant = np.full(20, 0.1, np.float32)
  assert correlation(constant, targets[:, 0]) == 0.0
  assert correlation(predictions[:, 0], constant) == 0.0
  mixed = np.stack([predictions[:, 0], constant, predictions[:, 2]], axis=1)
  some = correlation(mixed, targets)
  ends = [correlation(predictions[:, i], targets[:, i]) for i in (0, 2)]
  np.testing.assert_allclose(some, sum(ends) / 3, rtol=1e-5)
  fixed = np.stack([targets[:, 0], constant, targets[:, 2]], axis=1)
  some = correlation(predictions, fixed)
  np.testing.assert_allclose(some, sum(ends) / 2, rtol=1e-5)


def test_rmse_and_percentage_error_match_loops(pairs):
  predictions, targets = (np.asarray(array, np.float64) for array in pairs)
  square, percent = [], []
  for i in range(20):
    for j in range(3):
      square.append((predictions[i, j] - targets[i, j]) ** 2)
      percent.append(100 * abs(predictions[i, j] - targets[i, j]) / abs(targets[i, j]))
  np.testing.assert_allclose(
    metrics.root_mean_squared_error(*pairs), np.sqrt(np.mean(square)), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics.mean_absolute_percentage_error(*pairs), np.mean(percent), rtol=1e-4
  )


def test_percentage_error_leaves_out_targets_of_0():
  result = metrics.mean_absolute_percentage_error(jnp.array([1.0, 3.0]), jnp.array([0.0, 2.0]))
  assert result == 50.0
  assert metrics.mean_absolute_percentage_error(jnp.ones(2), jnp.zeros(2)) == 0.0
  gradient = jax.grad(metrics.mean_absolute_percentage_error)(jnp.ones(2), jnp.array([0.0, 2.0]))
  np.testing.assert_array_equal(gradient, [0.0, -50.0])


def test_worst_group_rmse_matches_a_loop(pairs):
  predictions, targets = pairs
  groups = np.random.default_rng(1).integers(0, 4, 20)
  groups[groups == 2] = 1  # Group 2 is empty.
  worst = jax.jit(metrics.worst_group_rmse, static_argnames="num_groups")
  slow = max(
    np.sqrt(np.mean((predictions[groups == g] - targets[groups == g]) ** 2)) for g in set(groups)
  )
  np.testing.assert_allclose(worst(predictions, targets, groups, num_groups=5), slow, rtol=1e-5)
  whole = worst(predictions, targets, np.zeros(20, int), num_groups=5)
  np.testing.assert_allclose(whole, metrics.root_mean_squared_error(*pairs), rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_vmap_and_half_precision(metric, pairs):
  predictions, targets = pairs
  stacked = jnp.stack([predictions, 2 * predictions]), jnp.stack([targets, targets])
  mapped = jax.jit(jax.vmap(metric))(*stacked)
  np.testing.assert_allclose(mapped[1], metric(2 * predictions, targets), rtol=1e-5)
  half = metric(jnp.asarray(predictions, jnp.bfloat16), jnp.asarray(targets, jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, mapped[0], rtol=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_finite_at_the_edges(metric):
  gradient = jax.jit(jax.grad(metric))
  vector = jnp.arange(4.0)
  for predictions, targets in (
    (vector, vector),
    (jnp.ones(4), vector),
    (vector, jnp.ones(4)),
    (jnp.ones(1), jnp.zeros(1)),
    (1e30 * vector, vector),
  ):
    assert np.all(np.isfinite(gradient(jnp.resize(predictions, 4), jnp.resize(targets, 4))))


def test_squares_do_not_overflow():
  errors = jnp.array([3e30, 4e30])
  np.testing.assert_allclose(
    jax.jit(metrics.root_mean_squared_error)(errors, jnp.zeros(2)), np.sqrt(12.5) * 1e30, rtol=1e-5
  )
  assert metrics.root_mean_squared_error(jnp.array([np.inf, 0.0]), jnp.zeros(2)) == np.inf
  assert metrics.root_mean_squared_error(jnp.ones(3), jnp.ones(3)) == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_nan_inputs_give_nan(metric):
  assert np.isnan(metric(jnp.array([1.0, np.nan, 2.0]), jnp.array([1.0, 2.0, 3.0])))


def test_errors(pairs):
  for metric in METRICS:
    with pytest.raises(AssertionError):
      metric(pairs[0], pairs[1][:, :2])
  with pytest.raises(ValueError, match="groups"):
    metrics.worst_group_rmse(jnp.ones(2), jnp.ones(2), np.array([0, 2]), num_groups=2)
  with pytest.raises(ValueError, match="num_groups"):
    metrics.worst_group_rmse(jnp.ones(2), jnp.ones(2), jnp.array([0, 0]), num_groups=0)
