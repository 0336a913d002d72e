"""The half of the PFN experiment that is judged on real tables, beside scikit-learn."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import pipeline, preprocessing

from experiments.bayes import pfn_tables
from experiments.bayes.prior_training import bar_trainer, prior_borders, prior_trainer
from jaxlab import models, samplers, uncertainty

_GROUP = 8  # Data sets of the tabular prior that share a random network.


def run_tabular(config, context) -> tuple[dict, dict]:
  """A network trained on random-network labels classifies real tables from few points."""
  module = models.PFN(
    1,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    dropout_rate=config.tabular_dropout,
    input_shift=0.0,
    input_scale=1.0,
  )
  trainer = prior_trainer(
    module,
    functools.partial(
      samplers.bnn_prior,
      batch_size=_GROUP,
      group_size=_GROUP,
      num_points=config.tabular_points,
      num_features=config.tabular_features,
    ),
    lambda logits, labels: optax.sigmoid_binary_cross_entropy(logits[..., 0], labels),
    num_steps=config.tabular_steps,
    batch_size=config.batch_size,
    group_size=_GROUP,
    num_points=config.tabular_points,
    num_features=config.tabular_features,
    max_context=config.tabular_points,
    learning_rate=config.learning_rate,
    warmup_fraction=config.warmup_fraction,
    steps_per_call=config.steps_per_call,
    mesh=context.mesh,
  )
  task = models.PFNTask(
    num_features=config.tabular_features, num_classes=2, max_context=config.tabular_points - 1
  )

  def score(seed, params):
    network = models.TrainedPFN(module, params, task)
    return _score_tables(config, seed, models.PFNClassifier(network, transductive=True))

  return trainer.train_and_score(context, "tabular", score, save_every=config.save_every), {}


def _score_tables(config, seed, network) -> dict[str, dict[str, float]]:
  """Per method the mean of every score over tables and splits, and the AUC of every table."""
  found: dict[str, dict[str, list]] = {}
  for table in config.tables:
    x, y = pfn_tables.classification_table(table)
    rng = np.random.default_rng([seed, 3])
    for split in range(config.num_splits):
      train, test = pfn_tables.balanced_split(y, num_train=config.num_train, rng=rng)
      methods = {"PFN": network} | pfn_tables.classifiers(seed)
      if split == 0:
        network.fit(x[train], y[train]).predict_proba(x[test])  # Compiles this size, once.
      for method, estimator in methods.items():
        scores = pfn_tables.score_classifier(estimator, (x[train], y[train]), (x[test], y[test]))
        scores[f"AUC {table}"] = scores["AUC"]
        for name, value in scores.items():
          found.setdefault(method, {}).setdefault(name, []).append(value)
  return {
    method: {name: float(np.mean(values)) for name, values in row.items()}
    for method, row in found.items()
  }


def run_regression(config, context) -> tuple[dict, dict]:
  """A network trained on ten-dimensional Gaussian processes regresses `diabetes`."""
  prior_fn = functools.partial(standardised_gp, num_points=config.regression_points)
  borders = prior_borders(jax.random.fold_in(context.key, 4), prior_fn, config.num_bars)
  trainer = bar_trainer(
    config,
    prior_fn,
    borders,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_steps=config.regression_steps,
    batch_size=config.batch_size // 2,
    num_points=config.regression_points,
    num_features=pfn_tables.NUM_REGRESSION_FEATURES,
    max_context=config.regression_points,
    mesh=context.mesh,
  )
  task = models.PFNTask(
    num_features=pfn_tables.NUM_REGRESSION_FEATURES,
    max_context=config.regression_points - 1,
    input_scaling="none",
  )

  def score(seed, params):
    network = models.TrainedPFN(trainer.module, params, task, borders)
    # The prior's inputs are uniform on the unit cube, and so are ranks.
    ranks = preprocessing.QuantileTransformer(n_quantiles=config.regression_train)
    return _score_regression(
      config, seed, pipeline.make_pipeline(ranks, models.PFNRegressor(network))
    )

  return trainer.train_and_score(context, "regression", score, save_every=config.save_every), {}


def standardised_gp(key, *, num_points: int) -> samplers.PriorBatch:
  """Smooth functions of one to ten inputs, noisy by any share, standardised as real targets are.

  Data sets of few inputs are learned first and teach the network to read a context at all.
  """
  used_key, x_key, scale_key, hyper_key, y_key = jax.random.split(key, 5)
  num_features = pfn_tables.NUM_REGRESSION_FEATURES
  used = jnp.arange(num_features) < jax.random.randint(used_key, (), 1, num_features + 1)
  x = jnp.where(used, jax.random.uniform(x_key, (num_points, num_features)), 0.5)
  lengthscales = jax.random.gamma(scale_key, 3.0, (num_features,)) / 1.5
  signal, noise = jax.random.gamma(hyper_key, 2.0, (2,)) / jnp.array([0.2, 2.0])
  covariance = uncertainty.kernel_matrix(
    x, x, lengthscale=lengthscales, outputscale=signal, kernel="matern52"
  )
  root = jnp.linalg.cholesky(covariance + (noise + 1e-3) * jnp.eye(num_points))
  y = root @ jax.random.normal(y_key, (num_points,))
  y = (y - y.mean()) / (y.std() + 1e-6)
  return samplers.PriorBatch(x[None], y[None], y[None])


def _score_regression(config, seed, network) -> dict[str, dict[str, float]]:
  """Per method NLL, error, coverage and seconds on `diabetes`, the mean over splits."""
  x, y = pfn_tables.regression_table()
  rng = np.random.default_rng([seed, 4])
  found: dict[str, dict[str, list]] = {}

  def keep(method, scores):
    for name, value in scores.items():
      found.setdefault(method, {}).setdefault(name, []).append(value)

  for split in range(config.regression_splits):
    order = rng.permutation(len(y))
    train, test = order[: config.regression_train], order[config.regression_train :]
    if split == 0:
      network.fit(x[train], y[train]).predict(x[test])  # Compiles this size, once.
    start = time.perf_counter()
    mean = network.fit(x[train], y[train]).predict(x[test])
    seconds = time.perf_counter() - start
    inputs = network[0].transform(x[test])
    low, high = network[1].predict_quantiles(inputs, (0.05, 0.95)).T
    keep(
      "PFN",
      {
        "NLL": -network[1].log_prob(inputs, y[test]).mean(),
        "RMSE": np.sqrt(np.mean((mean - y[test]) ** 2)),
        "90% coverage": np.mean((low <= y[test]) & (y[test] <= high)),
        "seconds": seconds,
      },
    )
    for method, estimator in pfn_tables.regressors(seed).items():
      start = time.perf_counter()
      mean, std = pfn_tables.gaussian_prediction(
        estimator, (x[train], y[train]), x[test], seed=seed
      )
      seconds = time.perf_counter() - start
      keep(method, pfn_tables.score_gaussian(mean, std, y[test], seconds))
  return {
    method: {name: float(np.mean(values)) for name, values in row.items()}
    for method, row in found.items()
  }
