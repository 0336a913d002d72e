"""Real tables for the PFN experiment, and scikit-learn's answers to them."""

import time
import warnings

import numpy as np
import sklearn
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

NUM_REGRESSION_FEATURES = 10


def classification_table(name: str) -> tuple[np.ndarray, np.ndarray]:
  """A binary table `(x[n, f], y[n])` of at most 16 features, shipped by a package."""
  source = name if name in ("iris", "wine", "breast_cancer") else f"keel/{name}"
  arrays = data.as_arrays(data.load_source(source, split="all"))
  x, y = arrays["features"].astype(np.float64), arrays["label"]
  if name == "iris":  # Versicolor or virginica.
    return x[y > 0], y[y > 0] - 1
  if name == "wine":
    return x, (y == 0).astype(int)
  if name == "breast_cancer":  # The ten means.
    return x[:, :10], y
  return x, y


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
  """The rivals, each tuned by 3-fold cross-validation on the training part."""
  folds = model_selection.StratifiedKFold(3, shuffle=True, random_state=seed)

  def tuned(estimator, grid):
    search = model_selection.GridSearchCV(estimator, grid, cv=folds, scoring="neg_log_loss")
    return pipeline.make_pipeline(preprocessing.StandardScaler(), search)

  return {
    "logistic regression": tuned(
      linear_model.LogisticRegression(max_iter=1000), {"C": np.logspace(-3, 3, 7)}
    ),
    "5-NN": pipeline.make_pipeline(
      preprocessing.StandardScaler(), neighbors.KNeighborsClassifier(5)
    ),
    "boosted trees": tuned(
      ensemble.GradientBoostingClassifier(random_state=seed),
      {"n_estimators": [20, 100], "max_depth": [1, 3]},
    ),
    "GP classifier": tuned(
      gaussian_process.GaussianProcessClassifier(n_restarts_optimizer=1, random_state=seed),
      {
        "kernel": [
          kernels.ConstantKernel() * kernels.RBF(),
          kernels.ConstantKernel() * kernels.DotProduct(),
        ]
      },
    ),
  }


def score_classifier(estimator, train, test) -> dict[str, float]:
  """AUC, NLL (nats), calibration error and seconds (fit and predict) on one split."""
  start = time.perf_counter()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    probs = estimator.fit(*train).predict_proba(test[0])[:, 1]
  seconds = time.perf_counter() - start
  clipped = np.clip(probs, 1e-6, 1 - 1e-6)
  return {
    "AUC": metrics.roc_auc_score(test[1], probs),
    "accuracy": float(np.mean((probs > 0.5) == test[1])),
    "NLL": metrics.log_loss(test[1], clipped, labels=[0, 1]),
    "calibration error": calibration_error(probs, test[1]),
    "seconds": seconds,
  }


def calibration_error(probs: np.ndarray, labels: np.ndarray, *, num_bins: int = 10) -> float:
  """Expected calibration error of P(label = 1) over equally filled bins."""
  order = np.argsort(probs, kind="stable")
  gaps = [
    len(part) * abs(np.mean(probs[part]) - np.mean(labels[part]))
    for part in np.array_split(order, num_bins)
    if len(part)
  ]
  return float(np.sum(gaps) / len(probs))


def regression_table() -> tuple[np.ndarray, np.ndarray]:
  """The `diabetes` table: ten features, disease progression after a year."""
  arrays = data.as_arrays(data.load_source("diabetes", split="all"))
  return arrays["features"].astype(np.float64), arrays["target"].astype(np.float64)


def regressors(seed: int) -> dict[str, object]:
  """The rivals in regression; those without a predictive spread get a cross-validated one."""
  folds = model_selection.KFold(5, shuffle=True, random_state=seed)

  def tuned(estimator, grid):
    search = model_selection.GridSearchCV(
      estimator, grid, cv=folds, scoring="neg_mean_squared_error"
    )
    return pipeline.make_pipeline(preprocessing.StandardScaler(), search)

  kernel = kernels.ConstantKernel(1.0) * kernels.RBF(
    np.full(NUM_REGRESSION_FEATURES, 3.0), (0.1, 1e3)
  )
  return {
    "GP, 3 restarts": pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      gaussian_process.GaussianProcessRegressor(
        kernel + kernels.WhiteKernel(0.5, (1e-4, 10.0)),
        normalize_y=True,
        n_restarts_optimizer=3,
        random_state=seed,
      ),
    ),
    "ridge": tuned(linear_model.Ridge(), {"alpha": np.logspace(-1, 3, 9)}),
    "boosted trees": tuned(
      ensemble.GradientBoostingRegressor(random_state=seed, subsample=0.7),
      {"n_estimators": [30, 100], "max_depth": [1, 3], "learning_rate": [0.03, 0.1]},
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
    chosen = pipeline.make_pipeline(
      preprocessing.StandardScaler(), sklearn.clone(estimator[-1].best_estimator_)
    )
    held_out = model_selection.cross_val_predict(chosen, x, y, cv=folds)
  return estimator.predict(test_x), np.full(len(test_x), np.std(y - held_out))


def score_gaussian(mean, std, y, seconds) -> dict[str, float]:
  """NLL (nats, in the target's units), error and coverage of Gaussian predictions."""
  z = (y - mean) / std
  return {
    "NLL": float(np.mean(0.5 * z**2 + np.log(std) + 0.5 * np.log(2 * np.pi))),
    "RMSE": float(np.sqrt(np.mean((y - mean) ** 2))),
    "90% coverage": float(np.mean(np.abs(z) < 1.6448536)),
    "seconds": seconds,
  }
