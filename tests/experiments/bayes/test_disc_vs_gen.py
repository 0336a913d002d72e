import dataclasses
import math

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from experiments.bayes.disc_vs_gen import features, simulation
from experiments.bayes.disc_vs_gen import methods as by
from experiments.bayes.disc_vs_gen.__main__ import PRESETS, validate
from experiments.kit.datasets import Split
from jaxlab import algorithms

CONFIG = PRESETS["smoke"]
LAPTOP = PRESETS["laptop"]
RNG = np.random.default_rng(0)


def test_sizes_grow_up_to_the_limit():
  two, _, many = simulation.problems(LAPTOP)
  sizes = simulation.sizes_to_try(two, 50)
  assert sizes[:4].tolist() == [4, 6, 8, 10] and sizes[-1] <= 700 < 1.1 * sizes[-1] + 2
  for before, after in zip(sizes, sizes[1:]):
    assert after == math.ceil(1.1 * before) + 1
  assert simulation.sizes_to_try(many, 50)[0] == 10


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_bayes_error_is_that_of_naive_bayes_with_true_parameters(which):
  """Halved means, many classes and their scaling included: 4 standard errors of 60,000 rows."""
  config = dataclasses.replace(CONFIG, num_classes=4)
  problem, dimension = simulation.problems(config)[which], 4
  rows = simulation.draw(problem, dimension, jax.random.key(0), which, 60_000)
  shift, scale = (2.0, 2.0) if which == 2 else (0.0, 1.0)
  levels = problem.shrinkage * np.array([-1, 1, 2, 4])[: problem.num_classes, None]
  means = (np.repeat(levels, dimension, axis=1) - shift) / scale
  variances = np.broadcast_to(np.array([4.0, 4.0, 1.0, 1.0]) / scale**2, means.shape)
  for c in range(problem.num_classes):
    own = rows.inputs[rows.labels == c]
    np.testing.assert_allclose(own.mean(0), means[c], atol=0.1)
    np.testing.assert_allclose(own.var(0), variances[c], rtol=0.1)
  linear = jax.jit(algorithms.gaussian_nb_linear)(np.ones(len(means)), means, variances)
  scores = rows.inputs @ np.asarray(linear.weights).T + np.asarray(linear.bias)
  measured = np.mean(np.argmax(scores, 1) != rows.labels)
  error = simulation.bayes_error(problem, dimension)
  assert 0.02 < error < 0.4
  assert abs(measured - error) < 4 * math.sqrt(error * (1 - error) / 60_000)
  if which == 0:
    assert simulation.bayes_error(problem, 50) < 3e-7  # Phi(-sqrt(2 n + 2) / 2).


def test_small_draws_have_all_classes():
  problem, key = simulation.problems(CONFIG)[2], jax.random.key(0)
  for i in range(10):
    rows = simulation.draw(problem, 4, key, i, 4)
    assert rows.inputs.shape == (4, 4) and set(rows.labels.tolist()) == {0, 1, 2}


def nb_error(rows, test, epsilon=1e-9):
  """By loops, with one variance for all classes."""
  classes, num = np.unique(rows.labels), len(rows.labels)
  own = [rows.inputs[rows.labels == c] for c in classes]
  variance = sum(len(x) / num * (x.var(0) + epsilon) for x in own)
  wrong = 0
  for x, label in zip(*test):
    scores = [np.log(len(r) / num) - ((x - r.mean(0)) ** 2 / variance).sum() / 2 for r in own]
    wrong += classes[np.argmax(scores)] != label
  return wrong / len(test.labels)


def some_rows(num):
  labels = np.concatenate([np.arange(3), RNG.integers(0, 3, num - 3)])
  return Split(RNG.normal(size=(num, 4)) + 0.7 * RNG.normal(size=(3, 4))[labels], labels)


def test_naive_bayes_ignores_padding_and_matches_loops():
  test, sets = some_rows(50), [some_rows(12) for _ in range(2)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *(by.padded(rows, 16) for rows in sets))
  found = by.naive_bayes_errors(stacked, test, num_classes=3)
  np.testing.assert_allclose(found, [nb_error(rows, test) for rows in sets], atol=1e-6)


def test_added_variances_are_validated_on_folds():
  rows, test, epsilons = some_rows(30), some_rows(50), np.array([1e-9, 5.0], np.float32)
  cv = features.folds(dataclasses.replace(CONFIG, num_folds=2), rows.labels, 0)
  assert len(cv) == 2
  held = np.zeros((2, 36), bool)
  for fold, (_, validation) in zip(held, cv):
    fold[validation] = True
  padded = by.padded(rows, 36)
  validation, errors = by.naive_bayes_grid(padded, held, test, epsilons, num_classes=3)
  part = lambda index: Split(*(x[index] for x in rows))  # noqa: E731
  for i, epsilon in enumerate(epsilons):
    expected = np.mean([nb_error(part(fit), part(other), epsilon) for fit, other in cv])
    np.testing.assert_allclose(validation[i], expected, atol=1e-6)
    np.testing.assert_allclose(errors[i], nb_error(rows, test, epsilon), atol=1e-6)


def test_few_rows_of_a_class_are_left_out_one_by_one():
  labels = np.repeat(np.arange(10), 2)
  left_out = [validation.tolist() for _, validation in features.folds(LAPTOP, labels, 0)]
  assert left_out == [[row] for row in range(20)]
  labels = np.repeat(labels, 3)
  cv = features.folds(LAPTOP, labels, 0)
  assert len(cv) == 5
  for fit, validation in cv:
    assert set(labels[fit]) == set(labels[validation]) == set(range(10))


def test_beginnings_of_an_order_are_balanced():
  labels = RNG.integers(0, 4, 200)
  order = features.stratified_order(labels, RNG)
  assert sorted(order) == list(range(200))
  for size in (4, 8, 40):
    assert set(np.bincount(labels[order[:size]])) == {size // 4}


def test_only_fits_without_an_optimum_in_sight_are_unfinished():
  rows, labels = some_rows(60), np.arange(60) % 2
  noise, easy = rows._replace(labels=labels), rows._replace(inputs=labels[:, None], labels=labels)
  fit = lambda rows, steps: by.fit(LogisticRegression(C=1e6, max_iter=steps), rows)  # noqa: E731
  assert by.is_unfinished(fit(noise, 1), noise)
  assert not by.is_unfinished(fit(noise, 500), noise)
  assert not by.is_unfinished(fit(easy, 1), easy)


def test_strength_is_chosen_on_validation_rows():
  rows, validation, test = (some_rows(num) for num in (20, 40, 60))
  fits = [LogisticRegression(C=c).fit(*rows) for c in CONFIG.strengths]
  errors = [[np.mean(f.predict(x.inputs) != x.labels) for f in fits] for x in (validation, test)]
  expected = errors[1][int(np.argmin(errors[0]))]
  assert by.error_by_strength(CONFIG, rows, validation, test) == expected


def test_standardized_weakly_fitted_logistic_regression_is_nearly_naive_bayes():
  """The row that explains the simulation: both need a handful of rows at any dimension."""
  problem = simulation.problems(LAPTOP)[0]._replace(methods=(by.NAIVE, by.STANDARDIZED))
  config = dataclasses.replace(LAPTOP, num_validation=10, num_test=1000, sets=3)
  with threadpool_limits(1):
    scores = simulation.score(config, problem, 60, jax.random.key(0))
  sizes = simulation.sizes_to_try(problem, 60)
  for method in problem.methods:
    assert sizes[np.nanargmin(scores[method]["errors"])] <= 20


@pytest.mark.parametrize(
  "change", [{"num_examples": (10, 700)}, {"num_pool": 699}, {"dimensions": (50,)}]
)
def test_impossible_sizes_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    validate(dataclasses.replace(LAPTOP, **change))
