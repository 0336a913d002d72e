"""A polynomial that cannot be right: what foresees its error, a model of errors or a variance?"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from experiments.kit.epistemic import DEUP, GP, gp_error_model, rank
from jaxlab import algorithms, data, uncertainty

IN_SAMPLE, NEIGHBORS, PLUG_IN = "in-sample errors", "nearest errors", "plug-in by a GP"
BOOTSTRAP, LINEAR = "bootstrap", "linear posterior"
VARIANCES = GP, BOOTSTRAP, LINEAR
NUM_GRID = 300  # Points on which the truth is compared.
_NUM_RESAMPLES = 10  # Of the bootstrap.
_MAX_DEGREE = 8
_LENGTH, _RIDGE = 0.003, 0.01  # Of the kernel that interpolates.


class Problem(NamedTuple):
  """A polynomial's degree, the power that thins the inputs, and the scale of a kernel on top."""

  degree: int
  power: float
  kernel: float


MISSPECIFIED, INTERPOLATING, THINNED = "quadratic", "interpolating", "degree 8, thinned"
PROBLEMS = {
  MISSPECIFIED: Problem(2, 1.0, 0.0),
  INTERPOLATING: Problem(2, 1.0, 1.0),
  THINNED: Problem(8, 2.0, 0.0),
}


def polynomial(x: chex.Array, degree: chex.Numeric) -> jax.Array:
  """Chebyshev polynomials up to a degree, zeros beyond it, `[n, 9]`."""
  _, low, high = data.BOUNDS["sinusoid"]
  z = (2 * x[:, 0] - low - high) / (high - low)
  columns = [jnp.ones_like(z), z]
  while len(columns) <= _MAX_DEGREE:
    columns.append(2 * z * columns[-1] - columns[-2])
  return jnp.stack(columns, axis=1) * (jnp.arange(_MAX_DEGREE + 1) <= degree)


def fit(config, problem: Problem, key, x, y, mask, previous=None):
  """Least squares; what is left is known for the kernel on top."""
  del key, previous
  design = jnp.where(mask[:, None], polynomial(x, problem.degree), 0.0)
  gram = design.T @ design + 1e-5 * jnp.eye(design.shape[1])
  weights = jnp.linalg.solve(gram, design.T @ y)
  return weights, x, jnp.where(mask, y - design @ weights, 0.0), mask


def predict(config, problem: Problem, model, x) -> jax.Array:
  """Predictions `[n]` of what `fit` gives."""
  weights, seen_x, residuals, mask = model
  options = {"lengthscale": _LENGTH, "noise": _RIDGE, "mask": mask}
  rest = uncertainty.gp_posterior(seen_x, residuals, x, **options).mean
  return polynomial(x, problem.degree) @ weights + problem.kernel * rest


def measure(config, key: chex.PRNGKey, problem: Problem) -> dict:
  """Draws points, fits, and compares all rows with the true excess of the squared error.

  Returns:
    `rows`, row -> quantity; `facts` of the problem; `curves` for a figure.
  """
  keys, (_, low, high) = jax.random.split(key, 5), data.BOUNDS["sinusoid"]
  place = lambda share: (low + (high - low) * share)[:, None]  # noqa: E731
  grid = place(jnp.linspace(0.0, 1.0, NUM_GRID))
  beyond = jnp.linspace(0.01, 1 / 3, NUM_GRID // 6)
  queries = jnp.concatenate([grid, place(-beyond), place(1 + beyond)])
  raw = data.sinusoid(grid)
  truth = lambda x: (data.sinusoid(x) - jnp.mean(raw)) / jnp.std(raw)  # noqa: E731
  x = place(jax.random.uniform(keys[0], (config.num_points,)) ** problem.power)
  y = truth(x) + config.noise * jax.random.normal(keys[1], (len(x),))
  everything, floor = jnp.ones(len(x), bool), config.noise**2

  fit_fn = lambda *inputs: fit(config, problem, *inputs)  # noqa: E731
  predict_fn = lambda model, x: predict(config, problem, model, x)  # noqa: E731

  unseen = lambda x: jnp.pad(x, ((0, 0), (0, 1)))  # noqa: E731

  def feature_fn(model, x, training_x, mask):
    del model
    seen = uncertainty.seen_indicator(x, training_x, mask=mask)
    return uncertainty.error_features(x, include=("x", "seen"), seen=seen)

  model = fit_fn(None, x, y, everything)
  prediction, fitted = predict_fn(model, queries), predict_fn(model, x)
  callbacks = fit_fn, predict_fn, feature_fn
  found = algorithms.cross_validated_errors(keys[2], *callbacks, x, y, kind="squared")
  space = {x: getattr(config, x) for x in ("lengthscales", "outputscales", "noises")}
  error_model = functools.partial(gp_error_model, **space)
  own = uncertainty.error_target(fitted, y, kind="squared")
  held = found.features[:, 1] == 0
  gaps = jnp.where(held[None], jnp.abs(queries - found.features[None, :, 0]), jnp.inf)
  _, nearest = jax.lax.top_k(-gaps, config.num_neighbors)
  settings = uncertainty.fit_gp(x, y)
  posterior = uncertainty.gp_posterior(x, y, queries, **settings._asdict())

  def resampled(key):
    rows = jax.random.randint(key, (len(x),), 0, len(x))
    return predict_fn(fit_fn(None, x[rows], y[rows], everything), queries)

  members = jax.lax.map(resampled, jax.random.split(keys[3], _NUM_RESAMPLES))
  design, new = (polynomial(points, problem.degree) for points in (x, queries))
  options = {"weight_std": 10.0, "noise_std": jnp.std(model[2])}
  linear = uncertainty.gaussian_predictive(design, y, new, **options)
  totals = {  # The expected squared error, and what of it is noise.
    DEUP: (error_model(*found)(unseen(queries)), floor),
    IN_SAMPLE: (error_model(unseen(x), own)(unseen(queries)), floor),
    NEIGHBORS: (jnp.mean(found.targets[nearest], axis=1), floor),
    PLUG_IN: (jnp.square(prediction - posterior.mean) + floor, floor),
    GP: (posterior.variance, settings.noise),
    BOOTSTRAP: (jnp.var(members, axis=0) + floor, floor),
    LINEAR: (linear.variance, options["noise_std"] ** 2),
  }
  excess = jnp.square(truth(grid) - prediction[:NUM_GRID])
  rows, curves = {}, {"error": excess, "truth": truth(grid), "prediction": prediction[:NUM_GRID]}
  for row, (total, noise) in totals.items():
    scores = uncertainty.total_error_estimate(prediction, total, noise).epistemic
    inside = scores[:NUM_GRID]
    gap = jnp.sqrt(jnp.mean(jnp.square(inside - excess)))
    rows[row] = rank(inside, excess, scores[NUM_GRID:]) | {"RMSE to the excess": gap}
    curves[row] = inside
  missed = jnp.mean(jnp.square(truth(grid) - posterior.mean[:NUM_GRID]))
  facts = {
    "mean excess": jnp.mean(excess),
    "RMSE of a GP": jnp.sqrt(missed),
    "in-sample error over others": jnp.mean(own) / jnp.mean(excess + floor),
  }
  return {"rows": rows, "facts": facts, "curves": curves | {"x": x[:, 0], "y": y}}
