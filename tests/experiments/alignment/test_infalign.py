import dataclasses

import jax
import numpy as np
import pytest

from experiments.alignment.infalign import methods
from experiments.alignment.infalign.__main__ import PRESETS, validate
from experiments.alignment.infalign.methods import BEST, CALIBRATED, METHODS, OPTIMUM, TILTED

P, M = 3, 800
RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(P, M)).astype(np.float32) * np.array([[0.2], [1.0], [5.0]], np.float32)
VALID = RNG.random((P, M)) < 0.97
TRUE[~VALID] = -50
CONFIG = dataclasses.replace(
  PRESETS["smoke"], pool=M, stored=(25, 400, 800), tilts=(0.5, 1.0), cells=200
)
distort = jax.jit(methods.distort, static_argnums=4)


def test_training_sees_a_monotone_map_by_prompt():
  seen = np.asarray(distort(TRUE, VALID, TRUE, VALID, 30.0))
  for true, distorted, valid in zip(TRUE, seen, VALID):
    order = np.argsort(true[valid])
    assert np.all(np.diff(distorted[valid][order]) >= 0)
    assert distorted[~valid].max() <= distorted[valid].min()
  # tanh is flat at the ends, sinh is steep.
  spread = [np.ptp(x[v]) / x[v].std() for x, v in zip(seen, VALID)]
  assert spread[0] < spread[1] < spread[2]


def test_calibration_undoes_the_map():
  transform = jax.jit(methods.transform, static_argnums=0)
  seen = distort(TRUE, VALID, TRUE, VALID, 30.0)
  for name in (CALIBRATED, BEST):
    method = METHODS.index(name)
    # Rewards beyond four standard deviations become equal.
    np.testing.assert_allclose(
      transform(method, seen, seen[:, :400]), transform(method, TRUE, TRUE[:, :400]), rtol=0.04
    )


@pytest.fixture(scope="module")
def rates():
  reference = {"true": TRUE, "seen": distort(TRUE, VALID, TRUE, VALID, 30.0)}
  pool = jax.jit(lambda: methods.tilt_pool(CONFIG, None, reference))()
  exact = jax.jit(lambda: methods.solve_grid(CONFIG))()
  return jax.device_get((pool, exact))


def test_tilted_pools_lie_on_the_grid(rates):
  """The rewards are calibrated by 400 others, whatever map training sees."""
  pool, exact = rates
  for method in (CALIBRATED, methods.WORST, BEST):
    for quantity, values in exact[method].items():
      found = pool[quantity][TILTED.index(method)]
      np.testing.assert_allclose(found, values, atol=1.5, err_msg=f"{method}, {quantity}")


def test_nothing_is_above_the_optimum(rates):
  _, exact = rates
  for quantity in (methods.BEST_OF_4, methods.PLAIN):
    for method in (CALIBRATED, BEST, methods.WORST, methods.LOG):
      assert np.all(exact[method][quantity] <= exact[OPTIMUM][quantity] + 0.1)


def test_valid_responses_are_repeated():
  rewards, valid = np.arange(8.0).reshape(2, 4), np.array([[0, 1, 0, 1], [0] * 4], bool)
  result = jax.jit(methods.repeat_valid)(rewards, valid)
  np.testing.assert_array_equal(result[0], [1, 3, 1, 3])


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("stored", (2, 4), "three numbers"),
    ("stored", (2, 4, 100), "at most 8"),
    ("scale_range", 0.5, "at least 1"),
    ("tilts", (0.5,), "hold 0.5 and 1.0"),
  ],
)
def test_impossible_sizes(name, value, message):
  with pytest.raises(ValueError, match=f"{name} must.* {message}"):
    validate(dataclasses.replace(PRESETS["smoke"], **{name: value}))
