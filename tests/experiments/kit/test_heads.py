import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from experiments.kit import heads

RNG = np.random.default_rng(0)


def test_the_setting_of_the_smallest_held_out_error_is_chosen():
  inputs, targets = RNG.normal(size=(30, 4)), RNG.normal(size=30)
  targets = (inputs[:, 0] + targets).astype(np.float32)
  inputs, used, folds = inputs.astype(np.float32), np.arange(30) < 20, np.arange(30) % 3
  penalties = (0.1, 1.0, 10.0, 100.0)
  fit = jax.jit(lambda *x: heads.ridge(*x, penalties, num_folds=3))
  found, best = fit(inputs, targets, used.astype(np.float32), folds)

  def slow(rows, penalty):
    x = inputs[rows]
    return np.linalg.solve(x.T @ x + penalty * np.eye(4), x.T @ targets[rows])

  errors = []
  for penalty in penalties:
    error = 0.0
    for fold in range(3):
      weights = slow(used & (folds != fold), penalty)
      for i in np.flatnonzero(used & (folds == fold)):
        error += (inputs[i] @ weights - targets[i]) ** 2
    errors.append(error)
  assert best == np.argmin(errors)
  np.testing.assert_allclose(found, slow(used, penalties[best]), rtol=1e-3, atol=1e-5)


def test_logistic_regression_minimizes_its_objective():
  features, labels = RNG.normal(size=(40, 3)).astype(np.float32), RNG.integers(0, 3, 40)
  weights = (np.arange(40) < 30).astype(np.float32)

  @jax.jit
  def fit(features, labels, weights):
    options = {"num_classes": 3, "strengths": (0.5,), "num_folds": 2, "num_steps": 300}
    return heads.logistic_regression(features, labels, weights, jnp.arange(40) % 2, **options)(
      features
    )

  def objective(flat):
    kernel, bias = flat[:9].reshape(3, 3), flat[9:]
    total = (kernel**2).sum() / 2
    for x, label in zip(features[:30], labels[:30]):
      logits = x @ kernel + bias
      total += 0.5 * (np.log(np.exp(logits).sum()) - logits[label])
    return total

  best = minimize(objective, np.zeros(12)).x
  expected = features @ best[:9].reshape(3, 3) + best[9:]
  centered = lambda x: x - x.mean(1, keepdims=True)  # noqa: E731
  np.testing.assert_allclose(
    centered(np.asarray(fit(features, labels, weights))), centered(expected), atol=0.01
  )


def test_rows_are_scaled_by_those_that_count():
  rows, used = RNG.normal(3.0, 2.0, (30, 2)).astype(np.float32), np.arange(30) < 20
  weights = used.astype(np.float32)

  @jax.jit
  def both(rows, weights):
    return heads.averaged(rows, weights), heads.standardized(weights, rows, 2 * rows)

  averaged, (ours, other) = jax.tree.map(np.asarray, both(rows, weights))
  mean = rows[used].T @ rows[used] / 20
  np.testing.assert_allclose(averaged.T @ averaged / 30, mean, rtol=1e-4)
  mean, scale = rows[used].mean(0), np.sqrt(rows[used].var(0).mean())
  np.testing.assert_allclose(ours, (rows - mean) / scale, atol=1e-4)
  np.testing.assert_allclose(other, (2 * rows - mean) / scale, atol=1e-4)
