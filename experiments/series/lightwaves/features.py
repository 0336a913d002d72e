"""Features of fixed and of random kernels, selections among them, and the classifier on top."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.series.lightwaves.problems import Problem
from jaxlab import algorithms, models
from jaxlab._extras import import_extra

LIGHT, LEVEL_1, ANOVA = "LightWaveS", "LightWaveS, level 1", "largest F alone"
OF_POOL, RANDOM = "random features of the pool", "random features"
ROCKET, MINI, ORACLE = "ROCKET", "MiniRocket", "ROCKET on informative channels"
ROCKET_F, ROCKET_MRMR = "ROCKET, largest F", "ROCKET, selected as LightWaveS"
MOMENTS = "means and variances"
ACCURACY, EDGE = "accuracy", "penalty at an end of its grid"
READ, PRODUCTS, SHARE = "channels read", "multiplications", "share in informative channels"
_WIDTH = 8  # Features of a fixed kernel, half of them of level 1.


class Chosen(NamedTuple):
  """Columns of features: those of largest F three times over, of largest F, and by mRMR."""

  pool: np.ndarray
  anova: np.ndarray
  mrmr: np.ndarray


def sizes_of(config, method: str, num_channels: int) -> list[int]:
  """Numbers of features with which a method is evaluated."""
  small = sorted({config.num_features, *config.other_sizes})
  sizes = {
    LIGHT: small,
    RANDOM: small,
    ORACLE: small,
    ROCKET: [*small, 2 * config.num_kernels],
    MINI: [84 * max(config.num_kernels // 84, 1)],
    MOMENTS: [2 * num_channels],
  }
  return sizes.get(method, [config.num_features])


def score(config, problem: Problem, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Evaluates all methods on a problem.

  Args:
    config: of the experiment.
    problem: of the seed.
    seed: of random kernels and features.

  Returns:
    method -> quantity -> one number for each of `sizes_of`.
  """
  rows = random_kernel_rows(config, problem, seed) | fixed_kernel_rows(config, problem, seed)
  mini = _aeon().MiniRocket(config.num_kernels, random_state=seed).fit(problem.train.inputs)
  both = [mini.transform(x.inputs) for x in problem[:2]]
  channels = len(np.unique(mini.parameters[1]))
  rows[MINI] = [evaluate(problem, *both) | {READ: channels}]
  moments = [np.hstack([x.inputs.mean(2), x.inputs.var(2)]) for x in problem[:2]]
  rows[MOMENTS] = [evaluate(problem, *moments)]
  return {
    method: {name: np.array([row[name] for row in found], np.float64) for name in found[0]}
    for method, found in rows.items()
  }


def evaluate(problem: Problem, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
  """Accuracy of a ridge classifier on features, whose penalty cross-validation chooses."""
  penalties = len(train) * np.logspace(-3, 3, 10)
  model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=penalties))
  model.fit(train.astype(np.float64), problem.train.labels)
  right = model.predict(test.astype(np.float64)) == problem.test.labels
  chosen = model[-1].alpha_
  return {ACCURACY: np.mean(right), EDGE: float(chosen in (penalties[0], penalties[-1]))}


def fixed_kernel_rows(config, problem: Problem, seed: int) -> dict[str, list[dict[str, float]]]:
  """LightWaveS, and other choices from the features of all of its kernels."""
  rng, wanted = np.random.default_rng([seed, 1]), config.num_features
  (_, num_channels, length), num_train = problem.train.inputs.shape, len(problem.train.labels)
  transform = functools.partial(
    models.scatter_all_features, max_dilation_log2=config.max_dilation_log2
  )
  train = np.asarray(transform(problem.train.inputs)).reshape(num_train, -1)
  varying = np.flatnonzero(train.max(0) > train.min(0))
  columns = {method: [] for method in (LIGHT, RANDOM)}
  for size in sizes_of(config, LIGHT, num_channels):
    chosen = select(train, problem.train.labels, size)
    columns[LIGHT].append(chosen.mrmr)
    columns[RANDOM].append(_some(rng, varying, size))
    if size == wanted:
      columns[ANOVA], columns[OF_POOL] = [chosen.anova], [_some(rng, chosen.pool, size)]
  level_1 = np.flatnonzero(np.arange(train.shape[1]) % _WIDTH < _WIDTH // 2)
  columns[LEVEL_1] = [level_1[select(train[:, level_1], problem.train.labels, wanted).mrmr]]

  used = np.unique(np.concatenate([x for many in columns.values() for x in many]))
  test = in_parts(transform, problem.test.inputs, num_train, used)
  kernels = models.scattering_kernels(
    num_channels=num_channels, max_dilation_log2=config.max_dilation_log2
  )

  def row(of: np.ndarray) -> dict[str, float]:
    scores = evaluate(problem, train[:, of], test[:, np.searchsorted(used, of)])
    own = kernels[of // _WIDTH, 0]
    scores |= {READ: len(np.unique(own)), PRODUCTS: fixed_products(of, length)}
    if problem.informative is not None:
      scores[SHARE] = np.mean(np.isin(own, problem.informative))
    return scores

  return {method: [row(of) for of in many] for method, many in columns.items()}


def in_parts(transform, series: np.ndarray, size: int, columns: np.ndarray) -> np.ndarray:
  """Some columns of the features of series: not all of all series are in memory at a time."""
  found = []
  for start in range(0, len(series), size):
    part = series[start : start + size]
    # Parts of one size share a program.
    padded = np.pad(part, [(0, size - len(part)), (0, 0), (0, 0)])
    found.append(np.asarray(transform(padded)).reshape(size, -1)[: len(part), columns])
  return np.concatenate(found)


def fixed_products(columns: np.ndarray, length: int) -> int:
  """Multiplications for features of a series; level 2 is computed where it is used."""
  kernels = np.unique(columns // _WIDTH)
  deep = np.unique(columns[columns % _WIDTH >= _WIDTH // 2] // _WIDTH)
  return 9 * (len(kernels) * length + len(deep) * (length // 2))


def random_kernel_rows(config, problem: Problem, seed: int) -> dict[str, list[dict[str, float]]]:
  """ROCKET: with fewer kernels, on informative channels, and with features that are selected."""
  num_channels = problem.train.inputs.shape[1]
  train, test, kernels = rocket(problem, config.num_kernels, seed)

  def row(problem, train, test, kernels, columns):
    used = np.unique(columns // 2)
    products, channels = kernel_costs(kernels, problem.train.inputs.shape[2])
    costs = {READ: len(set().union(*(channels[k] for k in used))), PRODUCTS: products[used].sum()}
    return evaluate(problem, train[:, columns], test[:, columns]) | costs

  # The first of many independent kernels are a draw of so many.
  whole = functools.partial(row, problem, train, test, kernels)
  rows = {ROCKET: [whole(np.arange(size)) for size in sizes_of(config, ROCKET, num_channels)]}
  chosen = select(train, problem.train.labels, config.num_features)
  rows |= {ROCKET_F: [whole(chosen.anova)], ROCKET_MRMR: [whole(chosen.mrmr)]}
  if problem.informative is not None and len(problem.informative) < num_channels:
    sizes = sizes_of(config, ORACLE, num_channels)
    parts = (x._replace(inputs=x.inputs[:, problem.informative]) for x in problem[:2])
    known = Problem(*parts)
    drawn = rocket(known, max(sizes) // 2, seed)
    rows[ORACLE] = [row(known, *drawn, np.arange(size)) for size in sizes]
  return rows


def rocket(problem: Problem, num_kernels: int, seed: int):
  """Features of random kernels of training and test series, `[n, 2 k]`, and the kernels."""
  model = _aeon().Rocket(num_kernels, random_state=seed).fit(problem.train.inputs)
  return *(model.transform(x.inputs) for x in problem[:2]), model.kernels


def kernel_costs(kernels, length: int) -> tuple[np.ndarray, list[set[int]]]:
  """Multiplications of each random kernel with a series, and the channels that it reads."""
  _, lengths, _, dilations, paddings, counts, channels = kernels
  num_outputs = length + 2 * paddings - (lengths - 1) * dilations
  products = lengths.astype(np.int64) * counts * num_outputs
  return products, [set(x.tolist()) for x in np.split(channels, np.cumsum(counts)[:-1])]


def select(features: np.ndarray, labels: np.ndarray, num_features: int) -> Chosen:
  """Selects columns that vary, fewer than wanted if there are no more."""
  options = {"num_features": num_features, "num_classes": int(labels.max()) + 1}
  return Chosen(*(x[x >= 0] for x in jax.device_get(_select(features, labels, **options))))


@functools.partial(jax.jit, static_argnames=("num_features", "num_classes"))
def _select(features, labels, *, num_features, num_classes):
  pool, anova = (
    algorithms.anova_select(features, labels, num_features=size, num_classes=num_classes)
    for size in (3 * num_features, num_features)
  )
  held = jnp.where(pool >= 0, features[:, pool], 0.0)  # What is constant is never selected.
  chosen = algorithms.mrmr_select(
    held, labels, num_features=num_features, num_classes=num_classes
  ).indices
  return pool, anova, jnp.where(chosen >= 0, pool[chosen], -1)


def _some(rng, columns: np.ndarray, size: int) -> np.ndarray:
  return np.sort(rng.choice(columns, min(size, len(columns)), replace=False))


def _aeon():
  return import_extra("aeon.transformations.collection.convolution_based", extra="series")
