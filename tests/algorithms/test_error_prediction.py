"""Errors out of sample, and a search that uses their predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab import algorithms, uncertainty

N, M, INIT, STEPS = 6, 15, 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 1)).astype(np.float32)
Y = RNG.normal(size=N).astype(np.float32)
# No two gaps are equal, so that there are no ties.
GRID = np.sort(RNG.uniform(-1, 1, (M, 1)), axis=0).astype(np.float32)
VALUES = np.sin(7 * GRID[:, 0]).astype(np.float32)


def fit_mean(key, x, y, mask, previous):
  """The mean of what is seen; every warm start moves it a little, so that it shows."""
  del key, x
  mean = jnp.sum(jnp.where(mask, y, 0)) / jnp.maximum(jnp.sum(mask), 1)
  return mean if previous is None else mean + 0.01 * previous


def predict_mean(model, x):
  return jnp.broadcast_to(model, x.shape[:1])


def features(model, x, training_x, mask):
  seen = uncertainty.seen_indicator(x, training_x, mask=mask)
  distance = uncertainty.nearest_distance(x, training_x, mask=mask)
  del model
  return uncertainty.error_features(
    x, include=("distance", "variance", "seen"), distance=distance, variance=0 * seen, seen=seen
  )


def fit_error(features, targets, mask):
  """Weights of a line through 0 from the distance, with a ridge."""
  distance, targets = jnp.where(mask, features[:, 0], 0), jnp.where(mask, targets, 0)
  return jnp.sum(distance * targets) / (jnp.sum(distance * distance) + 0.1)


def predict_error(model, features):
  return model * features[:, 0]


CALLBACKS = fit_mean, predict_mean, features


@functools.partial(jax.jit, static_argnames=("num_folds", "kind"))
def cross_validate(key, x, y, num_folds, kind="squared"):
  return algorithms.cross_validated_errors(
    key, *CALLBACKS, x, y, num_repeats=3, num_folds=num_folds, kind=kind
  )


@pytest.mark.parametrize("num_folds", [2, 3])
def test_cross_validation_of_a_mean(num_folds):
  data = cross_validate(jax.random.key(1), X, Y, num_folds)
  table = np.asarray(data.features).reshape(3, num_folds, N, 3)
  errors = np.asarray(data.targets).reshape(3, num_folds, N)
  seen = table[..., 2]
  # Each point is left out once in a repeat, with as many others as fit.
  np.testing.assert_array_equal(seen.sum(1), num_folds - 1)
  np.testing.assert_array_equal(seen.sum(2), N - N // num_folds)
  for repeat in range(3):
    for fold in range(num_folds):
      used = seen[repeat, fold] == 1
      expected = (Y[used].mean() - Y) ** 2
      np.testing.assert_allclose(errors[repeat, fold], expected, rtol=1e-4, atol=1e-6)
  # Only the distance and the seen bit separate new points from old ones.
  assert (table[..., 1] == 0).all()
  assert ((table[..., 0] > 0) == (seen == 0)).all()
  assert len({seen[i].tobytes() for i in range(3)}) > 1


def test_targets_have_a_smallest_value():
  data = cross_validate(jax.random.key(0), X, np.ones(N, np.float32), 2, "log_squared")
  np.testing.assert_array_equal(data.targets, -20)


def test_buffer_is_a_ring():
  keeper = algorithms.error_buffer(capacity=5, num_features=2)
  update, state = jax.jit(keeper.update), jax.jit(keeper.init)()
  written = []
  for start in range(0, 16, 4):
    rows = np.arange(start, start + 4, dtype=np.float32)
    state = jax.tree.map(np.asarray, update(state, np.stack([rows, -rows], axis=1), 10 * rows))
    written += list(rows)
    assert state.size == len(written)
    for row in written[-5:]:
      place = int(row) % 5
      assert state.targets[place] == 10 * row
      np.testing.assert_array_equal(state.features[place], [row, -row])
  with pytest.raises(ValueError, match="targets must be at most 5, the capacity, got 6"):
    keeper.update(state, np.zeros((6, 2)), np.zeros(6))
  with pytest.raises(ValueError, match="features must have shape"):
    keeper.update(state, np.zeros((2, 3)), np.zeros(2))
  with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
    algorithms.error_buffer(capacity=0, num_features=2)


@functools.partial(jax.jit, static_argnames=("num_steps", "kind"))
def search(key, values=VALUES, num_steps=STEPS, kind="log_squared"):
  return algorithms.optimize_with_error_prediction(
    key,
    GRID,
    values,
    fit_fn=fit_mean,
    predict_fn=predict_mean,
    feature_fn=features,
    fit_error_fn=fit_error,
    predict_error_fn=predict_error,
    num_init=INIT,
    num_steps=num_steps,
    kind=kind,
    aleatoric=0.01,
  )


def slow_search(first, rows):
  """The rounds with growing lists, from the first points and the rows of their errors."""

  def describe(chosen):
    gaps = np.abs(GRID[:, 0, None] - GRID[None, chosen, 0]).min(1)
    return np.column_stack([gaps, 0 * gaps, gaps < 1e-3])

  def target(model, index):
    return max(np.log((model - VALUES[index]) ** 2), -10)

  chosen, rows, model = list(first), list(rows), None
  for step in range(STEPS):
    mean = VALUES[chosen].mean()
    model = mean if model is None else mean + 0.01 * model
    table = describe(chosen)
    if step:
      rows.append((*table[chosen[-1]], target(model, chosen[-1])))
    distance, targets = np.array(rows)[:, 0], np.array(rows)[:, -1]
    slope = distance @ targets / (distance @ distance + 0.1)
    total = np.exp(np.clip(slope * table[:, 0], -20, 3))
    std = np.sqrt(np.maximum(total - 0.01, 0) + 1e-6)
    z = (model - VALUES[chosen].max()) / std
    merit = std * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    merit[chosen] = -np.inf
    best = int(np.argmax(merit))
    rows.append((*table[best], target(model, best)))
    chosen.append(best)
  return chosen, np.array(rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_search_matches_a_loop(seed):
  run = jax.tree.map(np.asarray, search(jax.random.key(seed)))
  start = np.column_stack([run.buffer.features, run.buffer.targets])[: 4 * INIT]
  chosen, rows = slow_search(run.indices[:INIT], start)
  np.testing.assert_array_equal(run.indices, chosen)
  np.testing.assert_allclose(run.best, np.maximum.accumulate(VALUES[chosen]))
  # One row more in each round but the first, whose points were all there from the start.
  assert run.buffer.size == len(rows) == 4 * INIT + 2 * STEPS - 1
  kept = np.column_stack([run.buffer.features, run.buffer.targets])
  assert len(kept) == 4 * INIT + 2 * STEPS
  np.testing.assert_allclose(kept[: len(rows)], rows, rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(kept[len(rows) :], 0)


def test_first_points_and_no_steps():
  run = search(jax.random.key(0), num_steps=0)
  np.testing.assert_array_equal(run.indices, search(jax.random.key(0)).indices[:INIT])
  assert run.buffer.size == 4 * INIT
  baseline = algorithms.optimize_on_grid(
    jax.random.key(0), GRID, VALUES, lambda *args: args[-1][:, 0], num_init=INIT, num_steps=STEPS
  )
  np.testing.assert_array_equal(baseline.indices[:INIT], run.indices)


def test_vmap_over_seeds():
  keys = jax.random.split(jax.random.key(3), 2)
  runs = jax.tree.map(np.asarray, jax.jit(jax.vmap(search))(keys))
  for i, key in enumerate(keys):
    for ours, theirs in zip(jax.tree.leaves(runs), jax.tree.leaves(search(key))):
      np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-5)


def test_errors():
  key = jax.random.key(0)
  for wrong, text in (
    ({"num_repeats": 0}, "num_repeats must be at least 1, got 0"),
    ({"num_folds": 1}, "num_folds must be at least 2, got 1"),
    ({"num_folds": 7}, "num_folds must be at most the number of points, got 7"),
    ({"kind": "log"}, "kind must be one of 'log_squared'"),
  ):
    with pytest.raises(ValueError, match=text):
      algorithms.cross_validated_errors(key, *CALLBACKS, X, Y, **wrong)
  run = functools.partial(
    algorithms.optimize_with_error_prediction,
    key,
    GRID,
    VALUES,
    fit_fn=fit_mean,
    predict_fn=predict_mean,
    feature_fn=features,
    fit_error_fn=fit_error,
    predict_error_fn=predict_error,
  )
  with pytest.raises(ValueError, match="num_init must be at least 2, got 1"):
    run(num_init=1)
  with pytest.raises(ValueError, match="num_init and num_steps must be non-negative"):
    run(num_init=4, num_steps=M)
  with pytest.raises(ValueError, match="kind must be one of"):
    run(num_init=4, num_steps=2, kind="log")
  with pytest.raises(ValueError, match="the result of predict_fn must have shape"):
    run(num_init=4, num_steps=2, predict_fn=lambda model, x: model * jnp.ones(3))
