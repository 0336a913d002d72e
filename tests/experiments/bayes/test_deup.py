import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bayes.deup import regression, search, shift
from experiments.bayes.deup.__main__ import PRESETS, validate
from experiments.bayes.deup.regression import PROBLEMS, Problem
from experiments.kit.epistemic import DEUP, ENSEMBLE, GP, SPEARMAN
from jaxlab import data

CONFIG, LAPTOP = PRESETS["smoke"], PRESETS["laptop"]
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_polynomials_are_fitted_to_rows_that_count():
  x = RNG.uniform(-1, 2, (40, 1)).astype(np.float32)
  y = RNG.normal(size=40).astype(np.float32)
  mask = np.arange(40) < 25

  @jax.jit
  def predictions(x, y):
    models = [Problem(2, 1.0, 0.0), Problem(8, 1.0, 0.0), Problem(2, 1.0, 1.0)]
    fits = [regression.fit(CONFIG, p, None, x, jnp.where(mask, y, 0), mask) for p in models]
    return [regression.predict(CONFIG, *pair, x) for pair in zip(models, fits)]

  plain, high, interpolating = map(np.asarray, predictions(x, y))
  for degree, found in ((2, plain), (8, high)):
    expected = np.polynomial.Polynomial.fit(x[mask, 0], y[mask], degree)(x[:, 0])
    assert (np.abs(found - expected) < 5e-3 * (1 + np.abs(expected))).all()
  # The kernel knows the rows that count, nearly, and nothing far away from them.
  assert np.abs(interpolating - y)[mask].mean() < 0.2 * np.abs(plain - y)[mask].mean()
  gaps = np.abs(x - x[mask].T).min(1)
  np.testing.assert_allclose(interpolating[gaps > 0.02], plain[gaps > 0.02], atol=1e-4)


def test_the_excess_of_a_constant_is_recovered():
  """The implementation check: the best constant, whose excess is its squared distance."""
  config = dataclasses.replace(
    LAPTOP, num_points=200, lengthscales=(0.1,), outputscales=(1.0,), noises=(0.1,)
  )
  measure = jax.jit(lambda problem: regression.measure(config, KEY, problem))
  found = jax.tree.map(np.asarray, measure(Problem(0.0, 1.0, 0.0)))
  curves, rows = found["curves"], found["rows"]
  assert np.ptp(curves["prediction"]) < 1e-5
  expected = np.square(curves["truth"] - curves["prediction"])
  np.testing.assert_allclose(curves["error"], expected, atol=1e-5)
  np.testing.assert_allclose(curves["truth"].mean(), 0, atol=1e-4)
  assert rows[DEUP][SPEARMAN] >= 0.9
  for row in (DEUP, regression.NEIGHBORS, GP):
    gap = np.sqrt(np.mean(np.square(curves[row] - expected)))
    np.testing.assert_allclose(rows[row]["RMSE to the excess"], gap, rtol=1e-3)
  assert rows[regression.PLUG_IN][SPEARMAN] > 0.95
  assert set(regression.VARIANCES) < set(rows) and len(PROBLEMS) == 3


def test_images_are_turned_and_parts_are_disjoint():
  parts = shift.draw(LAPTOP, 0)
  assert parts.train.inputs.shape == (1000, 64) and parts.shifted.inputs.shape == (797, 64)
  both = np.concatenate([parts.train.inputs, parts.clean.inputs])
  assert len({image.tobytes() for image in both}) > 1790
  config = dataclasses.replace(LAPTOP, max_angle=0.0)
  noise = shift.draw(config, 0).shifted.inputs - parts.clean.inputs
  assert abs(noise.std() - LAPTOP.pixel_noise) < 0.01
  np.testing.assert_array_equal(parts.clean.labels, parts.shifted.labels)


def test_axes_are_those_of_the_rows_that_are_used():
  x = RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 5))
  used = np.arange(30) < 20
  found = np.asarray(jax.jit(lambda x: shift.principal_axes(x, used, 2)(x))(x.astype(np.float32)))
  standardized = (x - x[used].mean(0)) / np.sqrt(x[used].var(0).mean())
  axes = np.linalg.svd(standardized[used], full_matrices=False)[2][:2]
  expected = standardized @ axes[::-1].T
  np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


def test_searches_begin_alike_and_a_gp_finds_the_maximum():
  config = dataclasses.replace(CONFIG, num_candidates=60, num_rounds=30)
  best = {
    row: np.asarray(jax.jit(lambda key, row=row: search.search(config, row, key))(KEY))
    for row in (GP, ENSEMBLE)
  }
  grid = np.linspace(-1, 2, 60, dtype=np.float32)[:, None]
  highest = np.max(jax.jit(data.multi_optima)(grid))
  for values in best.values():
    assert values.shape == (34,) and (np.diff(values) >= 0).all()
    np.testing.assert_array_equal(values[:4], best[GP][:4])
    assert values[-1] <= highest + 1e-6
  np.testing.assert_allclose(best[GP][-1], highest, rtol=1e-5)


@pytest.mark.parametrize(
  "change", [{"num_points": 1}, {"batch_size": 301}, {"num_rounds": 300}, {"dropout": 1.0}]
)
def test_impossible_sizes_are_named(change):
  name = {"num_rounds": "num_init"}.get(next(iter(change)), next(iter(change)))
  with pytest.raises(ValueError, match=name):
    validate(dataclasses.replace(LAPTOP, **change))
