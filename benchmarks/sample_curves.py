"""Curves of the error over the sample size: 1,000 fits in one program, beside a loop of fits.

Rows beyond the sample size are masked, so that all sizes have one shape. Both sides fit, and count
the errors on test rows, in one process on one device.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import algorithms

PACKAGES = ("scikit-learn",)
_SIZES, _SMALLEST, _SEEDS, _DIM, _TEST = 1000, 10, 4, 20, 500
_LOOPED = 50  # Sizes of a turn of the loops, whose times are per fit.
_NEWTON_STEPS = 12
_GROUP = f"{_SIZES:,} sizes x {_SEEDS} seeds, {_DIM} features, {_TEST} test rows"
_NAIVE, _SCAN = "gaussian_nb_fit, masked rows", "gaussian_nb_update, row by row"
_LOGISTIC = "logistic regression by Newton's method, masked rows"
_NAIVE_LOOP, _LOGISTIC_LOOP = "GaussianNB in a loop", "LogisticRegression in a loop"
ROWS = (
  Row(_GROUP, _NAIVE, _NAIVE_LOOP, goal=1.0, unit="fit"),
  Row(_GROUP, _SCAN, _NAIVE_LOOP, goal=1.0, unit="fit"),
  Row(_GROUP, _LOGISTIC, _LOGISTIC_LOOP, goal=1.0, unit="fit"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from sklearn.linear_model import LogisticRegression
  from sklearn.naive_bayes import GaussianNB

  measure.start(divides=1)
  num_sizes, num_looped = (20, 4) if quick else (_SIZES, _LOOPED)
  sizes = _SMALLEST + np.arange(num_sizes, dtype=np.int32)
  looped = np.linspace(0, num_sizes - 1, num_looped).astype(int)
  rows, test = _draw(sizes[-1]), _draw(_TEST)
  arguments = jax.device_put((sizes, rows, test))
  programs = {
    _NAIVE: jax.jit(_curves(_naive_bayes_error)),
    _SCAN: jax.jit(_scanned_curves),
    _LOGISTIC: jax.jit(_curves(_logistic_error)),
  }
  functions = {name: functools.partial(f, *arguments) for name, f in programs.items()}
  loops = {
    name: functools.partial(_loop, estimator, sizes[looped], rows, test)
    for name, estimator in ((_NAIVE_LOOP, GaussianNB()), (_LOGISTIC_LOOP, LogisticRegression()))
  }
  times = measure.interleave(
    {name: Timed(call, _SEEDS * num_sizes) for name, call in functions.items()}
    | {name: Timed(call, _SEEDS * num_looped) for name, call in loops.items()},
    quick=quick,
    repetitions=7,
  )
  for row in ROWS:
    ours, theirs = np.asarray(functions[row.ours]()), loops[row.peer]()
    gap = np.abs(ours[:, looped] - theirs).max()
    checks = {
      "the errors of the loop, to 0.01": gap <= 0.01,
      "compiles once": programs[row.ours]._cache_size() == 1,
    }
    notes = {
      "error of the smallest sample": ours[:, 0].mean(),
      "of the largest": ours[:, -1].mean(),
      "largest difference": gap,
    }
    yield measure.result(row, times, checks=checks, notes=notes)


def _draw(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of every seed: `[seeds, num_rows, features]`, and labels of two classes in turn."""
  rng = np.random.default_rng([num_rows, 0])
  labels = np.tile(np.arange(num_rows, dtype=np.int32) % 2, (_SEEDS, 1))
  # Features share a part, which naive Bayes takes for evidence of each.
  shared = rng.standard_normal((_SEEDS, num_rows, 1))
  noise = rng.standard_normal((_SEEDS, num_rows, _DIM)) + 0.7 * shared
  shifts = np.linspace(0, 0.6, _DIM) * (2 * labels[:, :, None] - 1)
  return (noise + shifts).astype(np.float32), labels


def _curves(error_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Errors `[seeds, sizes]`, fit after fit."""

  def curves(sizes, rows, test):
    def of_seed(data):
      return jax.lax.map(lambda size: error_fn(size, *data), sizes)

    return jax.lax.map(of_seed, (rows, test))

  return curves


def _naive_bayes_error(size, rows, test):
  features, labels = rows
  kept = jnp.where(jnp.arange(len(labels)) < size, labels, -1)
  return _error_of_state(algorithms.gaussian_nb_fit(features, kept, num_classes=2), test)


def _error_of_state(state: algorithms.GaussianNBState, test) -> jax.Array:
  predicted = algorithms.gaussian_nb_predict(*state, test[0], shared_variance=False)
  return jnp.mean(predicted != test[1])


def _scanned_curves(sizes, rows, test):
  """The same errors: each state is the last one, and one more row."""
  del sizes  # As many rows as there are sizes follow the first.

  def of_seed(data):
    rows, test = data
    first, later = ([x[part] for x in rows] for part in (np.s_[:_SMALLEST], np.s_[_SMALLEST:]))

    def add(state, row):
      state = algorithms.gaussian_nb_update(state, row[0][None], row[1][None])
      return state, _error_of_state(state, test)

    state = algorithms.gaussian_nb_fit(*first, num_classes=2)
    _, errors = jax.lax.scan(add, state, later)
    return jnp.concatenate([_error_of_state(state, test)[None], errors])

  return jax.lax.map(of_seed, (rows, test))


def _logistic_error(size, rows, test):
  """As scikit-learn's default: half the squared weights are added to the loss, C = 1."""
  features, labels = rows
  inputs = jnp.column_stack([features, jnp.ones(len(labels))])
  kept = (jnp.arange(len(labels)) < size).astype(inputs.dtype)
  penalty = jnp.ones(inputs.shape[1]).at[-1].set(0.0)

  def improve(_, weights):
    probs = jax.nn.sigmoid(inputs @ weights)
    gradient = (kept * (probs - labels)) @ inputs + penalty * weights
    curvature = (kept * probs * (1 - probs))[:, None] * inputs
    hessian = inputs.T @ curvature + jnp.diag(penalty)
    return weights - jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")

  weights = jax.lax.fori_loop(0, _NEWTON_STEPS, improve, jnp.zeros(inputs.shape[1]))
  return jnp.mean((test[0] @ weights[:-1] + weights[-1] > 0) != test[1])


def _loop(estimator, sizes, rows, test) -> np.ndarray:
  errors = [
    [np.mean(estimator.fit(x[:size], y[:size]).predict(test_x) != test_y) for size in sizes]
    for x, y, test_x, test_y in zip(*rows, *test)
  ]
  return np.array(errors)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
