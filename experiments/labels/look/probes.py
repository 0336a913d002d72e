"""Linear probes of frozen features."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits


@threadpool_limits.wrap(limits=1)  # On arrays as small as these, threads wait for each other.
def probe_accuracy(
  penalties: Sequence[float], features: np.ndarray, probe: np.ndarray, test: np.ndarray
) -> float:
  """Test accuracy of logistic regression on frozen features.

  Args:
    penalties: to choose from, by cross-validation in 5 parts, or as many as rows of a class allow.
    features: of probe rows and, behind them, of test rows, `[p + t, d]`; NaN gives NaN.
    probe: labels of the probe rows, `[p]`.
    test: labels of the test rows, `[t]`.
  """
  if not np.isfinite(features).all():
    return np.nan
  own, others = np.split(features, [len(probe)])
  parts = min(5, np.bincount(probe).min())
  model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
  if parts > 1:
    values = {"logisticregression__C": [1 / penalty for penalty in penalties]}
    model = GridSearchCV(model, values, cv=parts)
  return model.fit(own, probe).score(others, test)
