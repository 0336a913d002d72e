import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.algorithms.sequential_optimization import optimize_on_grid

_M, _INIT, _STEPS = 12, 2, 6
_CANDIDATES = jnp.asarray(np.random.default_rng(0).uniform(size=(_M, 2)), jnp.float32)
_VALUES = jnp.asarray(np.random.default_rng(1).normal(size=_M), jnp.float32)


def _nearest_value_plus_distance(key, x, y, mask, candidates):
  """Value of the nearest observation plus the distance to it."""
  del key
  distance = jnp.sqrt(jnp.sum((candidates[:, None] - x) ** 2, axis=-1))
  distance = jnp.where(mask, distance, jnp.inf)
  return y[jnp.argmin(distance, axis=1)] + 3 * jnp.min(distance, axis=1)


@functools.partial(jax.jit, static_argnames=("acquisition_fn", "num_init", "num_steps"))
def _run(
  key, acquisition_fn, values=_VALUES, candidates=_CANDIDATES, num_init=_INIT, num_steps=_STEPS
):
  return optimize_on_grid(
    key, candidates, values, acquisition_fn, num_init=num_init, num_steps=num_steps
  )


def _loop(first):
  """The same search with growing lists."""
  candidates, values = np.asarray(_CANDIDATES), np.asarray(_VALUES)
  chosen = list(first)
  for _ in range(_STEPS):
    merits = []
    for i in range(_M):
      distances = [np.linalg.norm(candidates[i] - candidates[j]) for j in chosen]
      nearest = int(np.argmin(distances))
      merits.append(values[chosen[nearest]] + 3 * distances[nearest])
    free = [i for i in range(_M) if i not in chosen]
    chosen.append(max(free, key=lambda i: (merits[i], -i)))
  return chosen, [max(values[chosen[: i + 1]]) for i in range(len(chosen))]


def test_matches_a_loop():
  for seed in range(4):
    result = _run(jax.random.key(seed), _nearest_value_plus_distance)
    indices, best = _loop(np.asarray(result.indices[:_INIT]))
    np.testing.assert_array_equal(result.indices, indices)
    np.testing.assert_allclose(result.best, best)
    assert result.indices.dtype == jnp.int32 and result.best.dtype == _VALUES.dtype


def test_numpy_arrays():
  arrays = np.asarray(_CANDIDATES), np.asarray(_VALUES)
  result = optimize_on_grid(
    jax.random.key(0), *arrays, _nearest_value_plus_distance, num_init=_INIT, num_steps=_STEPS
  )
  expected = _run(jax.random.key(0), _nearest_value_plus_distance)
  np.testing.assert_array_equal(result.indices, expected.indices)


def test_vmap_over_functions():
  keys = jax.random.split(jax.random.key(0), 3)
  values = jnp.stack([_VALUES, -_VALUES, _VALUES[::-1]])
  run = functools.partial(_run, acquisition_fn=_nearest_value_plus_distance)
  results = jax.vmap(lambda key, values: run(key, values=values))(keys, values)
  for i in range(3):
    single = run(keys[i], values=values[i])
    np.testing.assert_array_equal(results.indices[i], single.indices)
    np.testing.assert_allclose(results.best[i], single.best)


def test_observations_fill_a_buffer_of_static_shape():
  def acquisition(key, x, y, mask, candidates):
    assert x.shape == (_INIT + _STEPS, 2) and y.shape == mask.shape == (_INIT + _STEPS,)
    count = mask.sum()
    filled = jnp.all(mask == (jnp.arange(mask.size) < count))
    # Each observation is the candidate with its value; unfilled rows are zero.
    match = jnp.all(x[:, None] == candidates, axis=-1) & (y[:, None] == _VALUES)
    right = jnp.where(mask, match.any(axis=1), (y == 0) & jnp.all(x == 0, axis=1)).all()
    # If both checks hold, the winner is the candidate whose index is the number of observations.
    target = jnp.where(filled & right, count, 0)
    return -jnp.abs(jnp.arange(_M) - target).astype(jnp.float32)

  for seed in range(3):
    indices = np.asarray(_run(jax.random.key(seed), acquisition).indices)
    chosen = list(indices[:_INIT])
    for count in range(_INIT, _INIT + _STEPS):
      free = [i for i in range(_M) if i not in chosen]
      chosen.append(min(free, key=lambda i: (abs(i - count), i)))
    np.testing.assert_array_equal(indices, chosen)


@pytest.mark.parametrize("merit", [0.0, -jnp.inf, jnp.inf, jnp.nan])
def test_ties_go_to_the_lowest_free_index(merit):
  indices = _run(jax.random.key(1), lambda *_: jnp.full(_M, merit)).indices
  free = [i for i in range(_M) if i not in np.asarray(indices[:_INIT])]
  np.testing.assert_array_equal(indices[_INIT:], free[:_STEPS])


def test_nan_is_the_lowest_merit():
  def acquisition(*_):
    return jnp.arange(_M, dtype=jnp.bfloat16).at[_M - 1].set(jnp.nan)

  result = _run(jax.random.key(0), acquisition, num_init=0, num_steps=_M)
  np.testing.assert_array_equal(result.indices, [*range(_M - 2, -1, -1), _M - 1])
  assert result.best[-1] == _VALUES.max()


def test_first_points_are_uniform_without_replacement():
  run = jax.vmap(functools.partial(_run, acquisition_fn=lambda *_: jnp.zeros(_M), num_steps=0))
  indices = np.asarray(run(jax.random.split(jax.random.key(0), 3000)).indices)
  assert indices.shape == (3000, _INIT)
  assert (indices[:, 0] != indices[:, 1]).all()
  for column in indices.T:
    counts = np.bincount(column, minlength=_M)
    assert (np.abs(counts - 250) < 5 * np.sqrt(250)).all()


def test_acquisition_gets_a_new_key_each_step():
  def acquisition(key, *_):
    return jax.random.uniform(key, (_M,))

  orders = {tuple(np.asarray(_run(jax.random.key(s), acquisition).indices)) for s in range(5)}
  assert len(orders) == 5
  fixed = jnp.zeros((_M, 2)), jnp.zeros(_M)
  gaps = [np.diff(_run(jax.random.key(s), acquisition, fixed[1], fixed[0]).indices) for s in (0, 1)]
  assert not np.array_equal(*gaps)


@pytest.mark.parametrize("num_init, num_steps", [(-1, 3), (1, -1), (0, 0), (1, _M)])
def test_bad_sizes(num_init, num_steps):
  with pytest.raises(ValueError, match="num_init and num_steps"):
    optimize_on_grid(
      jax.random.key(0),
      _CANDIDATES,
      _VALUES,
      _nearest_value_plus_distance,
      num_init=num_init,
      num_steps=num_steps,
    )


def test_bad_shapes():
  with pytest.raises(ValueError, match="values must have shape"):
    optimize_on_grid(jax.random.key(0), _CANDIDATES, _VALUES[1:], _nearest_value_plus_distance)
  with pytest.raises(ValueError, match="acquisition_fn must have shape"):
    optimize_on_grid(jax.random.key(0), _CANDIDATES, _VALUES, lambda *_: jnp.zeros(3), num_steps=2)


def test_a_nan_value_shows_where_it_was_seen():
  values = jnp.where(jnp.arange(_M) == 4, jnp.nan, _VALUES)
  result = _run(jax.random.key(0), lambda key, x, y, mask, c: -c[:, 0], values)
  seen = np.asarray(values)[np.asarray(result.indices)]
  expected = np.where(np.isnan(seen), seen, np.fmax.accumulate(np.nan_to_num(seen, nan=-np.inf)))
  np.testing.assert_array_equal(result.best, expected)
