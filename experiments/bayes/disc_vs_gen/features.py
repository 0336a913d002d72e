"""Heads on the features of a network that was trained on other images, with few and many rows."""

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneOut, StratifiedKFold
from sklearn.preprocessing import MinMaxScaler

from experiments.bayes.disc_vs_gen import methods as by
from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.kit.train import adamw_cosine, classification_loss, predict, train
from jaxlab import models

FEATURES, PIXELS = "pretrained features", "pixels"


def draw(config, seed: int) -> tuple[Split, Split, Split]:
  """Images to train the network on, those that heads learn from, and those that test them."""
  dataset = datasets.describe(config.dataset)
  return dataset.splits(config.num_pretraining, config.num_pool, config.num_images, seed=seed)


def network(config) -> models.MLP:
  """The network whose last hidden layer are the features."""
  return models.MLP(datasets.describe(config.dataset).num_classes, config.widths)


def pretrain(config, key, parts: tuple[Split, Split, Split]) -> dict[str, jax.Array]:
  """Trains the network on the first part; its features of the other two."""
  rows, pool, test = parts
  module = network(config)
  optimizer = adamw_cosine(config.learning_rate, config.num_steps)
  sizes = {"num_steps": config.num_steps, "batch_size": config.batch_size}
  trained = train(key, module, classification_loss(module), optimizer, rows, **sizes)
  features = [predict(module, trained.variables, part.inputs).features for part in (pool, test)]
  return {"pool": features[0], "test": features[1], "bad_step": trained.bad_step}


def stratified_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A random order of rows whose beginnings have as many of every class as there are."""
  order = rng.permutation(len(labels))
  turn = np.empty(len(labels), int)
  for label in np.unique(labels):
    own = order[labels[order] == label]
    turn[own] = np.arange(len(own))
  return order[np.argsort(turn[order], kind="stable")]


def folds(config, labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Rows to fit and rows to validate on; one row is left out where a class has too few."""
  # From one row of a class naive Bayes has no variance, and all added ones are equally good.
  if np.bincount(labels).min() < config.num_folds:
    return list(LeaveOneOut().split(labels))
  split = StratifiedKFold(config.num_folds, shuffle=True, random_state=seed)
  return list(split.split(labels, labels))


def score(config, pool: Split, test: Split, seed: int, *, num_draws: int) -> dict[str, dict]:
  """method -> "error" `[sizes]` and the like of `evaluate`, means over draws from the pool."""
  rng, sizes = np.random.default_rng([seed, 1]), config.num_examples
  orders = [stratified_order(pool.labels, rng) for _ in range(num_draws)]
  found = []
  for size in sizes:
    # All draws of the whole pool are the same.
    chosen = [order[:size] for order in orders[: 1 if size == len(pool.labels) else num_draws]]
    sets = (Split(*(x[rows] for x in pool)) for rows in chosen)
    scored = [evaluate(config, rows, test, len(pool.labels), seed) for rows in sets]
    found.append(jax.tree.map(lambda *x: np.mean(x), *scored))
  return jax.tree.map(lambda *x: np.stack(x), *found)


def evaluate(config, rows: Split, test: Split, padded_size: int, seed: int) -> dict[str, dict]:
  """Test errors of all methods that learn from these rows, and what tuned ones chose.

  `padded_size` is the largest number of training rows, `seed` that of the folds.
  """
  scaler = MinMaxScaler().fit(rows.inputs)
  rows, test = (x._replace(inputs=scaler.transform(x.inputs)) for x in (rows, test))
  cv = folds(config, rows.labels, seed)
  fits = {name: by.fit(estimator, rows) for name, estimator in by.estimators(config).items()}
  model = LogisticRegression(max_iter=by.NUM_ITERATIONS)
  fits[by.TUNED] = by.fit(GridSearchCV(model, {"C": [*config.strengths]}, cv=cv), rows)
  found = {method: {"error": by.error_of(fitted, test)} for method, fitted in fits.items()}
  found[by.UNPENALIZED]["unfinished"] = float(by.is_unfinished(fits[by.UNPENALIZED], rows))
  found[by.TUNED]["log10 of C"] = np.log10(fits[by.TUNED].best_params_["C"])

  held = np.zeros((len(cv), padded_size), bool)
  for fold, (_, validation) in zip(held, cv):
    fold[validation] = True
  epsilons = np.array(config.var_epsilons, np.float32)
  num_classes = datasets.describe(config.dataset).num_classes
  inputs = by.padded(rows, padded_size), held, test, epsilons
  validation, errors = map(np.asarray, by.naive_bayes_grid(*inputs, num_classes=num_classes))
  best = np.argmin(validation)
  chosen = {"error": errors[best], "log10 of the added variance": np.log10(epsilons[best])}
  return found | {by.NAIVE: chosen, by.RELEASED: {"error": errors[0]}}
