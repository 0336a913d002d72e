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
JITTED = {metric: jax.jit(metric) for metric in METRICS}
correlation, percentage_error, root_mean_squared_error = JITTED.values()


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
  np.testing.assert_allclose(root_mean_squared_error(*pairs), np.sqrt(np.mean(square)), rtol=1e-5)
  np.testing.assert_allclose(percentage_error(*pairs), np.mean(percent), rtol=1e-4)


def test_percentage_error_leaves_out_targets_of_0():
  result = percentage_error(np.array([1.0, 3.0]), np.array([0.0, 2.0]))
  assert result == 50.0
  assert percentage_error(np.ones(2), np.zeros(2)) == 0.0
  gradient = jax.jit(jax.grad(percentage_error))(np.ones(2), np.array([0.0, 2.0]))
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
  np.testing.assert_allclose(whole, root_mean_squared_error(*pairs), rtol=1e-5)
  for group in (-1, 5):
    assert np.isnan(worst(predictions, targets, np.where(groups == 1, group, 0), num_groups=5))


@pytest.mark.parametrize("metric", METRICS)
def test_vmap_and_half_precision(metric, pairs):
  predictions, targets = pairs
  stacked = np.stack([predictions, 2 * predictions]), np.stack([targets, targets])
  mapped = jax.jit(jax.vmap(metric))(*stacked)
  mapped = np.asarray(mapped)
  np.testing.assert_allclose(mapped[1], JITTED[metric](2 * predictions, targets), rtol=1e-5)
  half = JITTED[metric](predictions.astype(jnp.bfloat16), targets.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, mapped[0], rtol=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_finite_at_the_edges(metric):
  gradient = jax.jit(jax.grad(metric))
  vector = np.arange(4, dtype=np.float32)
  for predictions, targets in (
    (vector, vector),
    (np.ones(4), vector),
    (vector, np.ones(4)),
    (np.ones(1), np.zeros(1)),
    (1e30 * vector, vector),
  ):
    assert np.all(np.isfinite(gradient(np.resize(predictions, 4), np.resize(targets, 4))))


def test_squares_do_not_overflow():
  errors = np.array([3e30, 4e30], np.float32)
  np.testing.assert_allclose(
    root_mean_squared_error(errors, np.zeros(2)), np.sqrt(12.5) * 1e30, rtol=1e-5
  )
  assert root_mean_squared_error(np.array([np.inf, 0.0]), np.zeros(2)) == np.inf
  assert root_mean_squared_error(np.ones(3), np.ones(3)) == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_nan_inputs_give_nan(metric):
  assert np.isnan(JITTED[metric](np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0])))
  assert np.isnan(JITTED[metric](np.ones(3), np.array([1.0, np.nan, 3.0])))


def test_rank_promotion_may_be_forbidden(pairs):
  with jax.numpy_rank_promotion("raise"):
    for metric in METRICS:
      jax.eval_shape(metric, *pairs)


def test_errors(pairs):
  for metric in METRICS:
    with pytest.raises(ValueError, match=r"targets must have shape"):
      metric(pairs[0], pairs[1][:, :2])
    with pytest.raises(ValueError, match="predictions must not be empty"):
      metric(pairs[0][:0], pairs[1][:0])
  with pytest.raises(ValueError, match="groups"):
    metrics.worst_group_rmse(jnp.ones(2), jnp.ones(2), np.array([0, 2]), num_groups=2)
  with pytest.raises(ValueError, match="num_groups"):
    metrics.worst_group_rmse(jnp.ones(2), jnp.ones(2), jnp.array([0, 0]), num_groups=0)
  with pytest.raises(ValueError, match=r"groups must have shape \[2\], got \[3\]"):
    metrics.worst_group_rmse(jnp.ones(2), jnp.ones(2), [0, 0, 1], num_groups=2)
