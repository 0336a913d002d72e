"""Tasks tabular and regression: networks fitted to a prior, evaluated on real tables."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import sklearn
from jax.scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor, kernels
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from experiments.bayes.pfn.gaussian import PFN, RESTARTED, SAMPLED, fit, training
from experiments.kit.prior_fitting import PriorTrainer, score_seeds
from jaxlab import data, models, samplers
from jaxlab.experiment import Context, Results

# KEEL's tables of two classes, at most 16 inputs and 1,000 rows; crx is australian once more.
TABLES = ("australian", "breast", "bupa", "haberman", "heart", "housevotes", "mammographic")
TABLES += ("monk-2", "pima", "saheart", "tic-tac-toe", "wisconsin")
NUM_TRAIN, MAX_FEATURES = 30, 16  # Training points of a table, half of either class; most inputs.
NUM_QUERIES = 14  # Points of a data set of a prior beyond the largest context.
NUM_POINTS, NUM_FEATURES = 50, 10  # Training points and inputs of the regression table.


def contexts_near(num_points: int) -> dict:
  """A training whose contexts are half to all as large as those of the evaluation."""
  sizes = dict(min_context=num_points // 2, max_context=num_points + 1)
  return sizes | dict(scheme="uniform", accumulate=1)


def tabular_trainer(config, mesh) -> PriorTrainer:
  """A network that is fitted to labels by random networks."""
  module = models.PFN(1, config.embed_dim, config.num_layers, input_shift=0.0, input_scale=1.0)
  # Data sets that share a random network: whole groups on each of up to four devices.
  group, sizes = math.gcd(8, config.batch_size // 4), dict(num_features=MAX_FEATURES)
  sizes |= dict(batch_size=group, group_size=group, num_points=NUM_TRAIN + NUM_QUERIES)
  prior_fn = functools.partial(samplers.bnn_prior, **sizes)
  options = training(config, num_steps=config.tabular_steps, **contexts_near(NUM_TRAIN))
  loss_fn = optax.sigmoid_binary_cross_entropy
  return PriorTrainer(module, prior_fn, lambda z, y: loss_fn(z[..., 0], y), mesh=mesh, **options)


def run_tabular(config, context: Context, results: Results) -> None:
  """One network classifies real tables from few points, on other splits per seed."""
  trainer = tabular_trainer(config, context.mesh)
  (params,) = trainer.train(context, "tabular", seeds=1)
  task = models.PFNTask(num_features=MAX_FEATURES, num_classes=2)
  pfn = models.PFNClassifier(models.TrainedPFN(trainer.module, params, task))

  def score_seed(seed, table):
    x, y = table_of(f"keel/{table}", "label")
    rng = np.random.default_rng([context.seed_numbers[seed], 3])
    splits = [balanced_split(y, num_train=NUM_TRAIN, rng=rng) for _ in range(config.num_splits)]
    estimators = {PFN: pfn} | classifiers(seed)
    methods = {name: functools.partial(score_classifier, e) for name, e in estimators.items()}
    return mean_over_splits(methods, x, y, splits)

  for table in TABLES:
    score = functools.partial(score_seed, table=table)
    results.add(score_seeds(context, f"tabular/scores/{table}", score), task="tabular", table=table)


def table_of(source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
  """Inputs `[n, f]` and targets `[n]`."""
  arrays = data.as_arrays(data.load_source(source, split="all"))
  return arrays["features"].astype(np.float64), arrays[target]


def balanced_split(y: np.ndarray, *, num_train: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of a training part with as many examples of either class, and of the rest."""
  rows = (np.flatnonzero(y == label) for label in np.unique(y))
  train = np.concatenate([rng.choice(r, num_train // 2, replace=False) for r in rows])
  rng.shuffle(train)
  return train, np.setdiff1d(np.arange(len(y)), train)


def classifiers(seed: int) -> dict[str, object]:
  """Classifiers, tuned by 3-fold cross-validation on the training part or by evidence."""
  folds = StratifiedKFold(3, shuffle=True, random_state=seed)
  tuned = functools.partial(_tuned, folds, "neg_log_loss")
  kernel = kernels.ConstantKernel() * kernels.RBF() + kernels.DotProduct()
  return {
    "logistic regression": tuned(LogisticRegression(max_iter=1000), C=np.logspace(-3, 3, 7)),
    "k-NN": tuned(KNeighborsClassifier(), n_neighbors=[1, 3, 5, 7, 9, 12, 15]),
    "GP classifier": make_pipeline(StandardScaler(), GaussianProcessClassifier(kernel)),
  }


def _tuned(folds, scoring: str, estimator, **grid):
  return make_pipeline(StandardScaler(), GridSearchCV(estimator, grid, cv=folds, scoring=scoring))


def score_classifier(estimator, train, test) -> dict[str, float]:
  """AUC of one split."""
  return {"AUC": roc_auc_score(test[1], estimator.fit(*train).predict_proba(test[0])[:, 1])}


def run_regression(config, context: Context, results: Results) -> None:
  """One network, fitted to functions of ten inputs, predicts the table `diabetes`."""
  sizes = dict(num_points=NUM_POINTS + NUM_QUERIES, num_features=NUM_FEATURES)
  prior_fn = functools.partial(samplers.standardized_gp_prior, **sizes)
  options = dict(num_steps=config.regression_steps, **contexts_near(NUM_POINTS))
  fitted = fit(config, context, "regression", prior_fn, seeds=1, **options)
  task = models.PFNTask(num_features=NUM_FEATURES, input_scaling="none")
  pfn = models.TrainedPFN(fitted.module, fitted.params[0], task, fitted.borders)
  keys = jax.random.split(context.key, config.num_draws)
  x, y = table_of("diabetes", "target")

  def score_pfn(train, test):
    return {"NLL": -models.PFNRegressor(pfn).fit(*train).log_prob(*test).mean()}

  def score_posterior(train, test):
    shift, scale = train[1].mean(), train[1].std()
    targets = ((values - shift) / scale for values in (train[1], test[1]))
    log_probs = sampled_posterior(keys, train[0], test[0], *targets, NUM_FEATURES)
    return {"NLL": np.log(scale) - np.mean(log_probs)}

  def on_ranks(method, train, test):
    # The prior's inputs are uniform on the unit cube, and so are ranks.
    ranks = QuantileTransformer(n_quantiles=NUM_POINTS).fit(train[0]).transform
    return method((ranks(train[0]), train[1]), (ranks(test[0]), test[1]))

  def score_seed(seed):
    rng = np.random.default_rng([context.seed_numbers[seed], 4])
    orders = (rng.permutation(len(y)) for _ in range(config.num_splits))
    splits = [(order[:NUM_POINTS], order[NUM_POINTS:]) for order in orders]
    methods = {n: functools.partial(score_gaussian, e) for n, e in regressors(seed).items()}
    for name, method in ((PFN, score_pfn), (SAMPLED, score_posterior)):
      methods[name] = functools.partial(on_ranks, method)
    return mean_over_splits(methods, x, y, splits)

  results.add(score_seeds(context, "regression/scores", score_seed), task="regression")


@jax.jit
def sampled_posterior(keys, x, x_query, y, y_query, num_used) -> jax.Array:
  """Log-density of queries `[m]` under the prior of the task, by importance sampling.

  Mean and scale of standardized targets say nothing: both are integrated out, which leaves a
  Student distribution per draw of the other hyper-parameters. The first `num_used` inputs vary.
  """
  n = len(y)

  def component(key):
    kernel = functools.partial(samplers.standardized_gp_kernel, key, num_used=num_used)
    (within, noise), (cross, _) = kernel(x, x), kernel(x, x_query)
    prior_variance = jax.vmap(lambda row: kernel(row[None], row[None])[0][0, 0])(x_query) + noise
    root = jnp.linalg.cholesky(within + noise * jnp.eye(n))
    ones, targets, cross = (
      solve_triangular(root, array, lower=True) for array in (jnp.ones(n), y, cross)
    )
    precision = ones @ ones
    mean = ones @ targets / precision
    errors = targets - mean * ones
    variance = errors @ errors / (n - 1)
    log_evidence = -jnp.log(jnp.diagonal(root)).sum() - jnp.log(precision) / 2
    log_evidence -= (n - 1) / 2 * jnp.log(variance)
    spread = prior_variance - jnp.square(cross).sum(0) + (1 - ones @ cross) ** 2 / precision
    scale = jnp.sqrt(variance * spread)
    return log_evidence, jax.scipy.stats.t.logpdf(y_query, n - 1, mean + errors @ cross, scale)

  log_evidence, log_probs = jax.lax.map(component, keys, batch_size=50)
  return jax.nn.logsumexp(jax.nn.log_softmax(log_evidence)[:, None] + log_probs, axis=0)


def regressors(seed: int) -> dict[str, object]:
  """Regressors, tuned by 5-fold cross-validation or by evidence."""
  folds = KFold(5, shuffle=True, random_state=seed)
  kernel = kernels.ConstantKernel() * kernels.Matern(np.full(NUM_FEATURES, 3.0), (0.1, 1e3), nu=2.5)
  kernel += kernels.ConstantKernel() * kernels.DotProduct() + kernels.WhiteKernel(0.5, (1e-4, 10))
  options = dict(normalize_y=True, n_restarts_optimizer=3, random_state=seed)
  return {
    RESTARTED: make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, **options)),
    "ridge": _tuned(folds, "neg_mean_squared_error", Ridge(), alpha=np.logspace(-1, 3, 9)),
  }


def score_gaussian(estimator, train, test) -> dict[str, float]:
  """NLL (nats) of a Gaussian around a prediction; its spread that of held-out rows if need be."""
  model = estimator.fit(*train)[-1]
  if isinstance(model, GaussianProcessRegressor):
    mean, std = estimator.predict(test[0], return_std=True)
  else:
    chosen = make_pipeline(StandardScaler(), sklearn.clone(model.best_estimator_))
    errors = train[1] - cross_val_predict(chosen, *train, cv=model.cv)
    mean, std = estimator.predict(test[0]), np.std(errors)
  return {"NLL": -scipy.stats.norm.logpdf(test[1], mean, std).mean()}


def mean_over_splits(methods, x, y, splits) -> dict[str, dict[str, float]]:
  """Method -> quantity -> mean; a method is `(train, test) -> {quantity: value}`."""
  means = {}
  for name, method in methods.items():
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
      rows = [method((x[train], y[train]), (x[test], y[test])) for train, test in splits]
    means[name] = {quantity: np.mean([row[quantity] for row in rows]) for quantity in rows[0]}
  return means
