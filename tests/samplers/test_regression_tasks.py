import functools

import jax
import numpy as np
import pytest

from jaxlab.samplers import regression_tasks as tasks

KEY, B = jax.random.key(0), 64


def test_linear_tasks_have_the_conjugate_prior():
  drawn = jax.jit(
    functools.partial(
      tasks.sample_linear_tasks, batch_size=20_000, num_features=2, shape=6.0, rate=10.0
    )
  )(KEY, weight_precision=2.0)
  weights, stds = jax.tree.map(np.asarray, drawn)
  # Of an inverse-gamma variance the mean is rate / (shape - 1) and 1 / variance is gamma.
  np.testing.assert_allclose((stds**2).mean(), 2.0, rtol=0.03)
  np.testing.assert_allclose((stds**-2.0).mean(), 0.6, rtol=0.02)
  np.testing.assert_allclose((stds**-2.0).var(), 0.06, rtol=0.06)
  scaled = weights / stds[:, None]
  np.testing.assert_allclose(scaled.var(axis=0), 0.5, rtol=0.05)
  assert abs(scaled.mean(axis=0)).max() < 0.02


def test_tasks_of_a_pool():
  pool = tasks.LinearTasks(np.arange(6.0).reshape(3, 2), np.array([0.1, 0.2, 0.3]))
  drawn = jax.tree.map(
    np.asarray,
    jax.jit(functools.partial(tasks.sample_from_pool, batch_size=B))(KEY, pool),
  )
  members = np.round(drawn.noise_stds / 0.1).astype(int) - 1
  assert set(members) == {0, 1, 2}
  np.testing.assert_array_equal(drawn.weights, pool.weights[members])


def test_linear_regression():
  many = tasks.LinearTasks(
    np.tile([[1.0, -2.0]], (B, 1)), np.where(np.arange(B) < 32, 0.0, 0.5).astype(np.float32)
  )
  scale = np.where(np.arange(B) % 2, 3.0, 1.0).astype(np.float32)
  draw = jax.jit(functools.partial(tasks.sample_linear_regression, num_points=400))
  x, y = jax.tree.map(np.asarray, draw(KEY, many, input_scale=scale))
  noise = y - x @ np.array([1.0, -2.0], np.float32)
  np.testing.assert_allclose(noise[:32], 0, atol=1e-4)
  np.testing.assert_allclose(noise[32:].std(axis=1), 0.5, rtol=0.15)
  np.testing.assert_allclose(x.std(axis=(1, 2)), scale, rtol=0.12)
  batch = tasks.RegressionSequences(x, y)
  assert batch.targets is batch.y


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (
      lambda: tasks.sample_linear_tasks(KEY, batch_size=1, num_features=1, shape=0.0),
      "shape",
    ),
    (
      lambda: tasks.sample_linear_tasks(KEY, batch_size=1, num_features=1, rate=-1.0),
      "rate",
    ),
    (
      lambda: tasks.sample_linear_tasks(KEY, batch_size=1, num_features=1, weight_precision=0.0),
      "weight_precision",
    ),
    (
      lambda: tasks.sample_linear_regression(
        KEY, tasks.LinearTasks(np.ones((1, 2)), np.array([-1.0])), num_points=2
      ),
      "noise_stds",
    ),
    (
      lambda: tasks.sample_from_pool(
        KEY, tasks.LinearTasks(np.ones((0, 2)), np.ones(0)), batch_size=2
      ),
      "pool.weights",
    ),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
