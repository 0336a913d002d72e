"""Many small problems are minimized at once."""

import jax
import numpy as np
import pytest
from scipy import optimize

from jaxlab._minimize import minimize

STARTS = np.array([[-1.2, 1.0], [0.0, 0.0], [2.0, -1.0], [1.0, 1.0]], np.float32)


def valley(params):
  """Rosenbrock's function of every row, whose minimum is at (1, 1)."""
  x, y = params[..., 0], params[..., 1]
  return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def search(starts, active):
  return np.asarray(_search(starts, active))


@jax.jit
def _search(starts, active):
  return minimize(valley, starts, num_steps=200, active=active)


def test_minima_are_those_of_scipy():
  found = search(STARTS, np.ones(4, bool))
  for start, params in zip(STARTS.astype(float), found):
    best = optimize.minimize(valley, start, method="BFGS")
    np.testing.assert_allclose(params, best.x, atol=2e-3)
  np.testing.assert_allclose(found[3], [1.0, 1.0], atol=1e-6)


def test_rows_do_not_depend_on_each_other():
  whole = search(STARTS, np.ones(4, bool))
  for active in np.eye(4, dtype=bool):
    found = search(STARTS, active)
    np.testing.assert_allclose(found[active], whole[active], rtol=1e-6)
    np.testing.assert_array_equal(found[~active], STARTS[~active])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_not_finite_stays_where_it_starts(broken):
  starts = STARTS.copy()
  starts[1] = broken
  found = search(starts, np.ones(4, bool))
  np.testing.assert_array_equal(found[1], starts[1])
  np.testing.assert_allclose(found[[0, 2, 3]], search(STARTS, np.ones(4, bool))[[0, 2, 3]])


def test_without_steps_rows_stay():
  stay = jax.jit(lambda starts: minimize(valley, starts, num_steps=0))
  np.testing.assert_array_equal(stay(STARTS), STARTS)
