"""The linear classifiers that are compared."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.kit.datasets import Split
from jaxlab import algorithms

NAIVE, RELEASED = "naive Bayes", "naive Bayes, smallest added variance"
KNOWN = "naive Bayes, true parameters"
UNPENALIZED, DEFAULT, TUNED = "logistic, unpenalized", "logistic, C = 1", "logistic, C tuned"
STANDARDIZED, LDA, NEAREST = "logistic, standardized, C = .01", "shrunken LDA", "nearest mean"
NUM_ITERATIONS = 1000  # Of penalized fits, as the release has it.


def estimators(config) -> dict[str, BaseEstimator]:
  """Method -> its estimator, of methods of scikit-learn that choose no setting."""
  steps = {"tol": config.gradient_tolerance, "max_iter": config.max_iterations}
  weak = LogisticRegression(C=0.01, max_iter=NUM_ITERATIONS)
  return {
    UNPENALIZED: LogisticRegression(C=1e6, **steps),
    DEFAULT: LogisticRegression(max_iter=NUM_ITERATIONS),
    STANDARDIZED: make_pipeline(StandardScaler(), weak),
    LDA: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    NEAREST: make_pipeline(StandardScaler(), NearestCentroid()),
  }


def fit(estimator: BaseEstimator, rows: Split) -> BaseEstimator:
  """Fits; `is_unfinished` says whether the optimizer came to an end."""
  with warnings.catch_warnings():
    # Of iterations that ran out, and of classes with one row.
    warnings.simplefilter("ignore", UserWarning)
    return estimator.fit(rows.inputs, rows.labels)


def error_of(fitted: BaseEstimator, rows: Split) -> float:
  """Share of rows that are classified wrong."""
  return float(np.mean(fitted.predict(rows.inputs) != rows.labels))


def is_unfinished(fitted: LogisticRegression, rows: Split) -> bool:
  """Whether iterations ran out; separated rows, which have no optimum, are excepted."""
  return bool(np.max(fitted.n_iter_) >= fitted.max_iter and error_of(fitted, rows) > 0)


def error_by_strength(config, rows: Split, validation: Split, test: Split) -> float:
  """Test error of the logistic regression whose C the validation rows prefer."""
  models = (LogisticRegression(C=c, max_iter=NUM_ITERATIONS) for c in config.strengths)
  fits = [fit(model, rows) for model in models]
  best = np.argmin([error_of(fitted, validation) for fitted in fits])
  return error_of(fits[best], test)


def padded(rows: Split, num_rows: int) -> Split:
  """The rows, and others of the label -1: one program fits training sets of many sizes."""
  missing = num_rows - len(rows.labels)
  inputs = np.pad(rows.inputs, ((0, missing), (0, 0))).astype(np.float32)
  return Split(inputs, np.pad(rows.labels, (0, missing), constant_values=-1))


def _error(state: algorithms.GaussianNBState, features: chex.Array, labels: chex.Array):
  return jnp.mean(algorithms.gaussian_nb_predict(*state, features) != labels)


@functools.partial(jax.jit, static_argnames="num_classes")
def naive_bayes_errors(rows: Split, test: Split, *, num_classes: int) -> jax.Array:
  """Test errors of naive Bayes by training set: padded rows `[s, n, d]`, labels `[s, n]`."""

  fit = functools.partial(algorithms.gaussian_nb_fit, num_classes=num_classes)
  return jax.lax.map(lambda rows: _error(fit(*rows), *test), rows)


@functools.partial(jax.jit, static_argnames="num_classes")
def naive_bayes_grid(
  rows: Split, held: chex.Array, test: Split, var_epsilons: chex.Array, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
  """Errors of naive Bayes by the added variance: on what folds `[f, n]` leave out, and on test."""

  def one(var_epsilon):
    options = {"num_classes": num_classes, "var_epsilon": var_epsilon}

    def of_fold(held):
      kept = jnp.where(held, -1, rows.labels)
      state = algorithms.gaussian_nb_fit(rows.inputs, kept, **options)
      wrong = algorithms.gaussian_nb_predict(*state, rows.inputs) != rows.labels
      return jnp.sum(wrong & held) / jnp.sum(held)

    state = algorithms.gaussian_nb_fit(*rows, **options)
    return jnp.mean(jax.lax.map(of_fold, held)), _error(state, *test)

  return jax.lax.map(one, var_epsilons)
