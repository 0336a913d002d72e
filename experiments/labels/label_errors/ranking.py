"""Models of different capacity, learned and tested with wrong labels."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.kit.train import (
  accuracy,
  adamw_cosine,
  agrees,
  classification_loss,
  predict,
  train,
)
from experiments.labels.label_errors.noise import Noisy, draw
from jaxlab import models

LINEAR, SVM, FOREST, MLP = "linear", "RBF-SVM", "random forest", "MLP"
GIVEN, CLEAN, MISLABELED = "given labels", "rightly labeled rows", "mislabeled rows"


def problem(config, noise: str, seed: int) -> tuple[Noisy, Noisy, np.ndarray]:
  """Training rows, test rows, and folds of the training rows that are alike in given labels."""
  train_rows, test = draw(config, noise, (config.num_train, config.num_test), seed)
  order = np.random.default_rng([seed, 1]).permutation(config.num_train)
  order = order[np.argsort(train_rows.given[order], kind="stable")]
  return train_rows, test, order.reshape(-1, config.num_folds).T


def network(config) -> models.MLP:
  """The network among the models."""
  return models.MLP(datasets.describe(config.dataset).num_classes, config.widths)


def fit_network(config, key, rows: tuple[Noisy, Noisy, jax.Array]) -> dict[str, jax.Array]:
  """Trains the network at the learning rate that cross-validation on given labels prefers.

  Args:
    config: of the experiment.
    key: of initial parameters and order.
    rows: a `problem`.

  Returns:
    Whether the test rows `[n]` are predicted to be of their true class (`right`) and of the given
    one (`given`), and what was chosen.
  """
  train_rows, test, folds = rows
  module = network(config)
  labeled = Split(train_rows.inputs, train_rows.given)
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}

  def fit(rate, split):
    optimizer = adamw_cosine(rate, config.num_steps)
    return train(key, module, classification_loss(module), optimizer, split, **sizes)

  def score(inputs):
    rate, fold = inputs
    held, kept = jnp.split(jnp.roll(folds, -fold, axis=0), [1])
    part = lambda rows: jax.tree.map(lambda x: x[rows.reshape(-1)], labeled)  # noqa: E731
    return accuracy(module, fit(rate, part(kept)).variables, part(held))

  rates, numbers = jnp.array(config.learning_rates), jnp.arange(config.num_folds)
  grid = jnp.repeat(rates, config.num_folds), jnp.tile(numbers, len(rates))
  scores = jax.lax.map(score, grid).reshape(len(rates), -1).mean(axis=1)
  rate = rates[jnp.argmax(jnp.where(jnp.isnan(scores), -1.0, scores))]
  trained = fit(rate, labeled)
  logits = predict(module, trained.variables, test.inputs).logits
  found = {"right": agrees(logits, test.labels), "given": agrees(logits, test.given)}
  return found | {"chosen/learning rate": rate, "bad_step": trained.bad_step[None]}


def fit_others(config, rows: tuple[Noisy, Noisy, np.ndarray], seed: int) -> dict[str, dict]:
  """The same of the models of scikit-learn: method -> what `fit_network` gives."""
  train_rows, test, folds = rows
  cv = [(np.setdiff1d(np.arange(config.num_train), fold), fold) for fold in folds]
  found = {}
  for method, (estimator, grid) in _estimators(config, seed).items():
    search = GridSearchCV(estimator, grid, cv=cv).fit(train_rows.inputs, train_rows.given)
    predicted = search.predict(test.inputs)
    labels = {"right": test.labels, "given": test.given}
    found[method] = {name: (predicted == x).astype(np.float32) for name, x in labels.items()}
    chosen = {name: search.best_params_[name] for name in grid if len(grid[name]) > 1}
    found[method] |= {f"chosen/{name}": np.float64(value) for name, value in chosen.items()}
  return found


def _estimators(config, seed: int) -> dict[str, tuple[object, dict[str, list]]]:
  """Models and their settings, weaker ones first: of two that are equally good the first counts."""
  forest = RandomForestClassifier(config.num_trees, random_state=seed)
  return {
    LINEAR: (LogisticRegression(max_iter=2000), {"C": [*config.linear_strengths]}),
    SVM: (SVC(), {"C": [*config.svm_strengths], "gamma": [*config.svm_gammas]}),
    FOREST: (forest, {"min_samples_leaf": [*config.leaf_sizes]}),
  }


def accuracies(test: Noisy, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Accuracy on given labels; and that on true ones, of rows with a right and a wrong label."""
  wrong = test.labels != test.given
  right = found["right"]
  return {
    GIVEN: found["given"].mean(),
    CLEAN: right[~wrong].mean(),
    MISLABELED: right[wrong].mean() if wrong.any() else np.float32(np.nan),
  }
