"""Kernel spaces: draws of functions through the training points, and the exact law of errors."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import log_ndtr

from experiments.kit import datasets
from jaxlab import metrics, samplers, uncertainty

TUNED, UNIT = "kernel", "kernel, length and amplitude 1"
SMALLER, LARGER = "kernel, amplitude² × 1/4", "kernel, amplitude² × 4"
ROWS = TUNED, UNIT, SMALLER, LARGER


class Task(NamedTuple):
  """Training rows `[n, ...]` and test rows `[m, ...]`, with targets `[n, k]` and `[m, k]`."""

  inputs: chex.Array
  targets: chex.Array
  test_inputs: chex.Array
  test_targets: chex.Array

  @property
  def flat(self) -> "Task":
    """The same with inputs as vectors."""
    x, _, test_x, _ = self
    x, test_x = x.reshape(len(x), -1), test_x.reshape(len(test_x), -1)
    return self._replace(inputs=x, test_inputs=test_x)


def sphere_tasks(config, seed: int) -> Task:
  """Draws of the kernel's own process on spheres, with a leading axis of dimensions.

  Points have zeros in place of further coordinates, which changes no distance.
  """
  rng, num = np.random.default_rng(seed), config.sphere_train + config.sphere_test
  tasks = []
  for dim in config.dims:
    points = rng.normal(size=(num, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(_correlations(points, points, 1.0))
    targets = vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.normal(size=num))
    points = np.pad(points, ((0, 0), (0, max(config.dims) - dim))).astype(np.float32)
    targets = targets[:, None].astype(np.float32)
    cut = config.sphere_train
    tasks.append(Task(points[:cut], targets[:cut], points[cut:], targets[cut:]))
  return jax.tree.map(lambda *x: np.stack(x), *tasks)


def image_task(config, seed: int) -> Task:
  """Images and their classes as one-hot targets."""
  dataset = datasets.describe(config.dataset)
  splits = dataset.splits(config.num_train, config.num_test, seed=seed)
  hot = np.eye(dataset.num_classes, dtype=np.float32)
  return Task(*itertools.chain.from_iterable((x.inputs, hot[x.labels]) for x in splits))


def draw_errors(
  config, key, task: Task, lengthscale: chex.Numeric, variance: chex.Numeric, num_samples: int
) -> jax.Array:
  """Test errors `[num_samples]` of functions through the training points, drawn block by block."""
  size = min(config.draws_at_once, num_samples)
  shape = (*task.test_targets.shape, size)

  def block(key):
    noise = jnp.sqrt(variance) * jax.random.normal(key, shape)
    options = {"lengthscale": lengthscale, "jitter": config.jitter}
    drawn = samplers.kernel_interpolants_from_noise(*task[:3], noise, **options)
    return metrics.hypothesis_errors(drawn, task.test_targets)

  return jax.lax.map(block, jax.random.split(key, num_samples // size)).ravel()


def sphere_errors(config, key, tasks: Task) -> dict[str, jax.Array]:
  """Errors of all dimensions `[dims, s]`; how often those at few test points are small."""

  def one(inputs):
    key, task = inputs
    errors = draw_errors(config, key, task, 1.0, 1.0, config.num_samples)
    few = Task(*task[:2], *(x[: config.few_points] for x in task[2:]))
    few = draw_errors(config, jax.random.fold_in(key, 1), few, 1.0, 1.0, config.few_samples)
    return {"errors": errors, "few": jnp.mean(few <= config.few_error)}

  return jax.lax.map(one, (jax.random.split(key, len(config.dims)), tasks))


def image_errors(config, key, task: Task) -> dict[str, jax.Array]:
  """Errors of the kernel spaces `[rows, s]`, and the settings of each, `[rows, 2]`.

  Length and amplitude are those of the largest marginal likelihood; all rows share their noise.
  """
  task = task.flat
  settings = jnp.array([*itertools.product(config.lengthscales, config.variances)])

  def log_evidence(setting):
    lengthscale, variance = setting
    options = {"outputscale": variance, "noise": config.jitter * variance}
    of_output = functools.partial(
      uncertainty.gp_log_marginal_likelihood, task.inputs, lengthscale=lengthscale, **options
    )
    return jnp.sum(jax.vmap(of_output)(task.targets.T))

  best = settings[jnp.argmax(jax.lax.map(log_evidence, settings))]
  scales = jnp.array([[1.0, 0.25], [1.0, 4.0]])
  rows = jnp.concatenate([best[None], jnp.ones((1, 2)), best * scales])
  draw = lambda row: draw_errors(config, key, task, *row, config.num_samples)  # noqa: E731
  return {"errors": jax.lax.map(draw, rows), "settings": rows}


class ErrorLaw(NamedTuple):
  """The error as a sum of (sqrt(variance) z + gap)², `[q]`, with normal z; gaps are squared."""

  variances: np.ndarray
  gaps: np.ndarray

  @property
  def mean(self) -> float:
    """The expected error."""
    return float(np.sum(self.variances + self.gaps))


def exact_law(task: Task, lengthscale: float, variance: float, jitter: float) -> ErrorLaw:
  """The law of what `draw_errors` draws, in float64."""
  x, y, test_x, test_y = (np.asarray(part, np.float64) for part in task.flat)
  factor = cho_factor(_correlations(x, x, lengthscale) + jitter * np.eye(len(x)))
  cross = _correlations(x, test_x, lengthscale)
  solved = cho_solve(factor, cross)
  covariance = variance * (_correlations(test_x, test_x, lengthscale) - cross.T @ solved)
  values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
  gaps = np.square(vectors.T @ (solved.T @ y - test_y))
  values = np.repeat(np.maximum(values, 0.0), gaps.shape[1])
  return ErrorLaw(values / gaps.size, gaps.ravel() / gaps.size)


def exact_surprisal(law: ErrorLaw, error: float) -> float:
  """-log probability of such an error or a smaller one, by Barndorff-Nielsen's saddlepoint formula.

  Not for the mean itself, where the formula is 0 / 0.
  """
  variances, gaps = law

  def slope(t):  # Of the cumulant generating function.
    rest = 1 - 2 * t * variances
    return np.sum(variances / rest + gaps / rest**2)

  if error < law.mean:
    if error <= np.sum(gaps[variances == 0]):
      return np.inf
    low, high = -1 / law.mean, 0.0
    while slope(low) > error:
      low, high = 2 * low, low
  else:
    low, high = 0.0, (1 - 1e-9) / (2 * variances.max())
  t = brentq(lambda t: slope(t) - error, low, high)
  rest = 1 - 2 * t * variances
  generating = np.sum(t * gaps / rest - np.log(rest) / 2)
  curvature = np.sum(2 * (variances / rest) ** 2 + 4 * variances * gaps / rest**3)
  root = np.sign(t) * np.sqrt(2 * (t * error - generating))
  scaled = t * np.sqrt(curvature)
  return float(-log_ndtr(root + np.log(scaled / root) / root))


def _correlations(a: np.ndarray, b: np.ndarray, lengthscale: float) -> np.ndarray:
  return np.exp(-cdist(a, b, "sqeuclidean") / (2 * lengthscale**2))
