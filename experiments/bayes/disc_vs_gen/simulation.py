"""Gaussian classes: how many examples bring a classifier near the Bayes error?"""

import functools
import itertools
import math
from typing import NamedTuple

import chex
import jax
import numpy as np
from scipy import special

from experiments.bayes.disc_vs_gen import methods as by
from experiments.kit.datasets import Split
from jaxlab import data

TWO, NEAR, MANY = "two classes", "two classes, means halved", "many classes"


class Problem(NamedTuple):
  """Gaussian classes in several dimensions, and the training set sizes that are tried."""

  name: str
  num_classes: int
  shrinkage: float  # Factor of the means.
  dimensions: tuple[int, ...]  # Numbers n of features.
  growth: float  # Of the sizes.
  limit: tuple[int, int]  # a and b of the largest size a n + b.
  methods: tuple[str, ...]


def problems(config) -> list[Problem]:
  """All problems of the experiment."""
  two = config.dimensions, config.growth, config.limit
  everything = by.NAIVE, by.UNPENALIZED, by.DEFAULT, by.TUNED, by.STANDARDIZED, by.LDA, by.NEAREST
  many = config.many_dimensions, config.many_growth, config.many_limit
  some = by.NAIVE, by.UNPENALIZED, by.DEFAULT, by.STANDARDIZED
  return [
    Problem(TWO, 2, 1.0, *two, everything),
    Problem(NEAR, 2, 0.5, *two, (by.NAIVE, by.STANDARDIZED)),
    Problem(MANY, config.num_classes, 1.0, *many, some),
  ]


def sizes_to_try(problem: Problem, dimension: int) -> np.ndarray:
  """Training set sizes, from two examples per class on."""
  factor, constant = problem.limit
  sizes = [2 * problem.num_classes]
  while (following := math.ceil(problem.growth * sizes[-1]) + 1) <= factor * dimension + constant:
    sizes.append(following)
  return np.array(sizes, np.int32)


@functools.cache
def _levels(problem: Problem) -> np.ndarray:
  """The value of the means, which is the same in all features, of every class."""
  sizes = {"num_features": 2, "num_classes": problem.num_classes}
  means = jax.jit(lambda: data.gaussian_class_means(**sizes))()
  return problem.shrinkage * np.asarray(means, np.float64)[:, 0]


def bayes_error(problem: Problem, dimension: int) -> float:
  """Error of the best classifier: on the line of the means, classes meet halfway to the next."""
  wide = dimension // 2  # Features of variance n; the others have variance 1.
  gaps = np.diff(np.sort(_levels(problem))) * math.sqrt(wide / dimension + dimension - wide)
  return float(2 * np.sum(special.ndtr(-gaps / 2)) / problem.num_classes)


def draw(problem: Problem, dimension: int, key: chex.PRNGKey, number: int, num_rows: int) -> Split:
  """Draws rows in which no class is missing, scaled as in the release; others for every number."""
  for attempt in itertools.count():
    # In a few sizes, or every number of rows would be a program of its own.
    drawn = _sample(key, (number, attempt), _rounded(num_rows), dimension, problem.num_classes)
    labels = np.asarray(drawn.labels)[:num_rows]
    if len(np.unique(labels)) == problem.num_classes:
      break
  excess = (1 / problem.shrinkage - 1) * _levels(problem)
  features = np.asarray(drawn.features, np.float64)[:num_rows] - excess[labels][:, None]
  if problem.num_classes > 2:
    features = features / 2.0 ** (problem.num_classes - 3) - 1
  return Split(features, labels)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _sample(key, numbers, num_rows, dimension, num_classes) -> data.GaussianClasses:
  key = functools.reduce(jax.random.fold_in, numbers, key)
  sizes = {"num_samples": num_rows, "num_features": dimension, "num_classes": num_classes}
  return data.sample_gaussian_classes(key, **sizes)


def _rounded(num_rows: int) -> int:
  """The next power of 4, at least 16."""
  return 4 ** max(2, math.ceil(math.log(num_rows, 4) - 1e-9))


def score(config, problem: Problem, dimension: int, key: chex.PRNGKey) -> dict[str, dict]:
  """Mean errors over fresh training sets of growing size, until each method is near enough.

  Returns method -> "errors" of the sizes, NaN where none was measured; of the unpenalized one also
  how many fits were "unfinished".
  """
  draw_rows = functools.partial(draw, problem, dimension, key)
  validation, test = draw_rows(0, config.num_validation), draw_rows(1, config.num_test)
  sizes, estimators, unfinished = sizes_to_try(problem, dimension), by.estimators(config), 0
  # In the precision of `samples_to_reach`.
  enough = np.float32(bayes_error(problem, dimension)) + np.float32(config.tolerance)
  errors = {method: np.full(len(sizes), np.nan, np.float32) for method in problem.methods}
  for i, size in enumerate(sizes.tolist()):
    searching = [method for method, row in errors.items() if not np.any(row <= enough)]
    if not searching:
      break
    sets = [draw_rows(config.sets * size + j, size) for j in range(config.sets)]
    for method in searching:
      if method == by.NAIVE:
        padded = (by.padded(rows, _rounded(size)) for rows in sets)
        stacked = jax.tree.map(lambda *x: np.stack(x), *padded)
        found = by.naive_bayes_errors(stacked, test, num_classes=problem.num_classes)
      elif method == by.TUNED:
        found = [by.error_by_strength(config, rows, validation, test) for rows in sets]
      else:
        found = []
        for rows in sets:
          fitted = by.fit(estimators[method], rows)
          found.append(by.error_of(fitted, test))
          unfinished += method == by.UNPENALIZED and by.is_unfinished(fitted, rows)
      errors[method][i] = np.mean(np.asarray(found, np.float64))
  scores = {method: {"errors": row} for method, row in errors.items()}
  if by.UNPENALIZED in scores:
    scores[by.UNPENALIZED]["unfinished"] = unfinished
  return scores
