"""Tasks tabular and regression: networks fitted to a prior, evaluated on real tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import pipeline, preprocessing

from experiments.bayes.pfn.networks import PFN, bar_nll, network, prior_borders, trainer
from experiments.kit import tables
from experiments.kit.prior_fitting import score_seeds
from jaxlab import data, models, samplers, uncertainty
from jaxlab.experiment import Context, Results

NUM_FEATURES = 10  # Of the regression table.
_GROUP = 8  # Data sets of the tabular prior that share a random network.
# Context sizes of any number of points; the configuration's are those of the GP priors.
_CONTEXTS = dict(max_context=None, scheme="uniform", accumulate=1)


def run_tabular(config, context: Context, results: Results) -> None:
  """A network fitted to labels by random networks classifies real tables from few points."""
  module = network(config, 1, dropout_rate=config.tabular_dropout, input_shift=0.0, input_scale=1.0)
  prior_fn = functools.partial(
    samplers.bnn_prior,
    batch_size=_GROUP,
    group_size=_GROUP,
    num_points=config.tabular_points,
    num_features=config.tabular_features,
  )

  def loss(logits, labels):
    return optax.sigmoid_binary_cross_entropy(logits[..., 0], labels)

  changes = dict(num_steps=config.tabular_steps, **_CONTEXTS)
  params = trainer(config, module, prior_fn, loss, context.mesh, **changes).train(
    context, "tabular"
  )
  task = models.PFNTask(
    num_features=config.tabular_features, num_classes=2, max_context=config.tabular_points - 1
  )

  def score_seed(seed, table):
    trained = models.TrainedPFN(module, params[seed], task)
    return score_table(config, seed, table, models.PFNClassifier(trained, transductive=True))

  for table in config.tables:
    score = functools.partial(score_seed, table=table)
    results.add(score_seeds(context, f"tabular/scores/{table}", score), task="tabular", table=table)


def score_table(config, seed: int, table: str, classifier) -> dict[str, dict[str, float]]:
  """Method -> quantity -> the mean over splits of a table."""
  x, y = tables.binary_table(table)
  rng = np.random.default_rng([seed, 3])
  methods = {PFN: classifier} | tables.classifiers(seed)
  scores: dict[str, list] = {method: [] for method in methods}
  for _ in range(config.num_splits):
    train, test = tables.balanced_split(y, num_train=config.num_train, rng=rng)
    for method, estimator in methods.items():
      score = tables.score_classifier(estimator, (x[train], y[train]), (x[test], y[test]))
      scores[method].append(score)
  return tables.mean_scores(scores)


def run_regression(config, context: Context, results: Results) -> None:
  """A network fitted to ten-dimensional Gaussian processes predicts the table `diabetes`."""
  prior_fn = functools.partial(standardized_gp, num_points=config.regression_points)
  borders = prior_borders(config, jax.random.fold_in(context.key, 4), prior_fn)
  module = network(config, config.num_bars)
  changes = dict(num_steps=config.regression_steps, batch_size=config.batch_size // 2, **_CONTEXTS)
  fit = trainer(config, module, prior_fn, bar_nll(borders), context.mesh, **changes)
  params = fit.train(context, "regression")
  task = models.PFNTask(
    num_features=NUM_FEATURES, max_context=config.regression_points - 1, input_scaling="none"
  )

  def score_seed(seed):
    regressor = models.PFNRegressor(models.TrainedPFN(module, params[seed], task, borders))
    # The prior's inputs are uniform on the unit cube, and so are ranks.
    ranks = preprocessing.QuantileTransformer(n_quantiles=config.regression_train)
    return score_regression(config, seed, pipeline.make_pipeline(ranks, regressor))

  results.add(score_seeds(context, "regression/scores", score_seed), task="regression")


def standardized_gp(key, *, num_points: int) -> samplers.PriorBatch:
  """Smooth functions of one to ten inputs, noisy by any share, standardized as real targets are.

  Data sets of few inputs are learned first and teach the network to read a context at all.
  """
  used_key, x_key, scale_key, hyper_key, y_key = jax.random.split(key, 5)
  used = jnp.arange(NUM_FEATURES) < jax.random.randint(used_key, (), 1, NUM_FEATURES + 1)
  x = jnp.where(used, jax.random.uniform(x_key, (num_points, NUM_FEATURES)), 0.5)
  lengthscales = jax.random.gamma(scale_key, 3.0, (NUM_FEATURES,)) / 1.5
  signal, noise = jax.random.gamma(hyper_key, 2.0, (2,)) / jnp.array([0.2, 2.0])
  covariance = uncertainty.kernel_matrix(
    x, x, lengthscale=lengthscales, outputscale=signal, kernel="matern52"
  )
  root = jnp.linalg.cholesky(covariance + (noise + 1e-3) * jnp.eye(num_points))
  y = root @ jax.random.normal(y_key, (num_points,))
  y = (y - y.mean()) / (y.std() + 1e-6)
  return samplers.PriorBatch(x[None], y[None], y[None])


def score_regression(config, seed: int, ranked_pfn) -> dict[str, dict[str, float]]:
  """Method -> quantity -> the mean over splits of the table."""
  arrays = data.as_arrays(data.load_source("diabetes", split="all"))
  x, y = arrays["features"].astype(np.float64), arrays["target"].astype(np.float64)
  rng = np.random.default_rng([seed, 4])
  others = tables.regressors(seed, num_features=NUM_FEATURES)
  scores: dict[str, list] = {method: [] for method in (PFN, *others)}
  for _ in range(config.regression_splits):
    order = rng.permutation(len(y))
    train, test = order[: config.regression_train], order[config.regression_train :]
    mean = ranked_pfn.fit(x[train], y[train]).predict(x[test])
    inputs, regressor = ranked_pfn[0].transform(x[test]), ranked_pfn[1]
    low, high = regressor.predict_quantiles(inputs, (0.05, 0.95)).T
    nll = -regressor.log_prob(inputs, y[test])
    scores[PFN].append(tables.score_regressor(nll, mean, low, high, y[test]))
    for method, estimator in others.items():
      predicted = tables.gaussian_prediction(estimator, (x[train], y[train]), x[test], seed=seed)
      scores[method].append(tables.score_gaussian(*predicted, y[test]))
  return tables.mean_scores(scores)
