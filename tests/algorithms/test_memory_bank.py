import functools

import jax
import numpy as np
import pytest

from jaxlab import algorithms, losses

RNG = np.random.default_rng(0)


@functools.cache
def bank(capacity):
  made = algorithms.feature_bank(capacity=capacity, dim=2)
  return made.init, jax.jit(made.update)


@pytest.mark.parametrize(("capacity", "size"), [(7, 3), (3, 7), (4, 4)])
def test_the_last_rows_stay(capacity, size):
  init, update = bank(capacity)
  state, rows, classes = init(), [], []
  assert state.labels.dtype == np.int32 and np.all(state.labels == -1)
  for _ in range(5):
    features = RNG.normal(size=(size, 2)).astype(np.float32)
    labels = RNG.integers(0, 9, size)
    rows, classes = [*rows, *features], [*classes, *labels]
    state = jax.device_get(update(state, features, labels))
    # The oldest row is where the cursor stands.
    kept = min(len(rows), capacity)
    order = (state.cursor - np.arange(kept, 0, -1)) % capacity
    np.testing.assert_array_equal(state.features[order], rows[-kept:])
    np.testing.assert_array_equal(state.labels[order], classes[-kept:])
    assert np.sum(state.labels == -1) == capacity - kept


def test_empty_slots_have_no_vote_and_no_gradient_flows():
  init, update = bank(7)
  features = RNG.normal(size=(3, 2)).astype(np.float32)
  labels = np.array([0, 1, 1])

  def loss(queries, stored):
    state = update(init(), stored, labels)
    return losses.knn_classification_loss(
      queries, labels, state.features, state.labels, num_neighbors=7
    ).sum()

  @jax.jit
  def both(queries, stored):
    direct = losses.knn_classification_loss(queries, labels, stored, labels, num_neighbors=3)
    return jax.value_and_grad(loss, argnums=(0, 1))(queries, stored), direct

  (value, (of_queries, of_stored)), direct = jax.device_get(both(features, features + 0.1))
  np.testing.assert_allclose(value, np.sum(direct), rtol=1e-5)
  assert np.any(of_queries != 0) and np.all(of_stored == 0)


def test_errors():
  for name in ("capacity", "dim"):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
      algorithms.feature_bank(**{"capacity": 4, "dim": 4} | {name: 0})
  init, update = bank(4)
  with pytest.raises(ValueError, match=r"features must have shape \[b, 2\], got \[3, 5\]"):
    update(init(), np.zeros((3, 5), np.float32), np.zeros(3, np.int32))
