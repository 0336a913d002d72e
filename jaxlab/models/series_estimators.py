"""Classification of series by scattering features, as a scikit-learn estimator."""

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxlab._checks import check_at_least
from jaxlab.algorithms.feature_selection import select_kernel_features
from jaxlab.augment.series import channel_statistics, standardize_channels
from jaxlab.models.scattering import scatter_all_features, scatter_features, scattering_kernels

_CHANNELS = 8  # That are scored together.
_ROWS = 1024  # That are transformed together.
_measure, _standardize = map(jax.jit, (channel_statistics, standardize_channels))


class LightWaveSClassifier(ClassifierMixin, BaseEstimator):
  """Classifies series by a few hundred scattering features and a linear classifier.

  Training scores all features of all channels (504 kernels of 8 features each with the default
  dilations), keeps three times `num_features` that differ most between the classes, and of these
  the ones that say least about each other. Prediction computes the kept kernels alone, and reads
  the channels that they need.

  Args:
    num_features: how many features are kept.
    features: levels that they may be from, "l1", "l2" or "l1l2".
    max_dilation_log2: kernels are dilated by 1, 2, ... up to 2 to this power.
    max_examples: series that features are selected on, drawn without replacement if there are more;
      the linear classifier is trained on all.
    random_state: of this draw.

  Attributes:
    classes_: the classes, sorted.
    kernels_: the kept kernels (channel, kernel, exponent of the dilation), `[m, 3]`.
    feature_mask_: which of their features are used, `[m, 8]`.
    channels_: channels that prediction reads.
    statistics_: mean and standard deviation of each channel.
    head_: scikit-learn's pipeline of a scaler and a ridge classifier, whose penalty generalized
      cross-validation chooses.
    n_features_in_: number of channels, or of time steps if `X` has two axes.

  Example::

    model = LightWaveSClassifier().fit(X, y)  # X: [n, channels, time steps], as aeon has them.
    labels = model.predict(X_new)

  Reference: Leontiou et al., LightWaveS, DCOSS 2022, https://arxiv.org/abs/2204.01379.
  """

  def __init__(
    self,
    num_features=500,
    *,
    features="l1l2",
    max_dilation_log2=5,
    max_examples=1500,
    random_state=0,
  ):
    self.num_features = num_features
    self.features = features
    self.max_dilation_log2 = max_dilation_log2
    self.max_examples = max_examples
    self.random_state = random_state

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.input_tags.three_d_array = True
    return tags

  def fit(self, X, y):
    """Selects the features and trains the linear classifier.

    Args:
      X: series, `[n, channels, time steps]`, or `[n, time steps]` with one channel.
      y: class labels, `[n]`.

    Returns:
      The estimator.

    Raises:
      ValueError: for data that are empty, not finite, of one class, of fewer than two time steps,
        or that do not vary, or a parameter that is out of range.
    """
    X, y = validate_data(self, X, y, allow_nd=True, dtype=np.float32, ensure_min_features=1)
    check_classification_targets(y)
    check_at_least(1, max_examples=self.max_examples)
    X = self._series(X, reset=True)
    self.classes_, labels = np.unique(y, return_inverse=True)
    if len(self.classes_) < 2:
      raise ValueError(f"y has one class, {self.classes_[0]}; two are needed")
    self.statistics_ = jax.tree.map(np.asarray, _measure(X))
    rows = np.arange(len(X))
    if len(X) > self.max_examples:
      draw = check_random_state(self.random_state).choice
      rows = np.sort(draw(rows, self.max_examples, replace=False))
    scaled = np.asarray(_standardize(X[rows], statistics=self.statistics_))
    kernels = scattering_kernels(num_channels=X.shape[1], max_dilation_log2=self.max_dilation_log2)
    per_channel = len(kernels) // X.shape[1]

    def transform(block):
      channels = block[::per_channel, 0]
      return scatter_all_features(scaled[:, channels], max_dilation_log2=self.max_dilation_log2)

    selection = select_kernel_features(
      transform,
      kernels,
      labels[rows],
      num_classes=len(self.classes_),
      num_features=self.num_features,
      pool_size=3 * self.num_features,
      block_size=per_channel * min(_CHANNELS, X.shape[1]),
      features=self.features,
    )
    self.kernels_, self.feature_mask_ = selection
    if not len(self.kernels_):
      raise ValueError("X has no feature that varies: all series are equal")
    self.channels_ = np.unique(self.kernels_[:, 0])
    penalties = len(X) * np.logspace(-3, 3, 10)
    self.head_ = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=penalties))
    self.head_.fit(self._features(X), y)
    return self

  def decision_function(self, X):
    """Scores the classes.

    Args:
      X: series, as for `fit`.

    Returns:
      Scores, `[m, classes]`, or `[m]` for the second of two classes.
    """
    features = self.selected_features(X)
    return self.head_.decision_function(features)

  def predict(self, X):
    """Predicts the class with the largest score.

    Args:
      X: series, as for `fit`.

    Returns:
      Class labels, `[m]`.
    """
    features = self.selected_features(X)
    return self.head_.predict(features)

  def selected_features(self, X):
    """Computes the kept features, for a classifier of one's own.

    Args:
      X: series, as for `fit`.

    Returns:
      Features, float32 `[m, num_selected]`.
    """
    check_is_fitted(self)
    X = validate_data(self, X, allow_nd=True, dtype=np.float32, reset=False)
    return self._features(self._series(X, reset=False))

  def _series(self, X, *, reset):
    """The series with three axes, of as many steps as those that were fitted."""
    X = X[:, None] if X.ndim == 2 else X
    if X.ndim != 3:
      raise ValueError(f"X must have two or three axes, got shape {X.shape}")
    num_steps = X.shape[2]
    if reset:
      if num_steps < 2:
        # As scikit-learn words it, for X with two axes.
        raise ValueError(f"X has series of {num_steps} time steps, of n_features = {num_steps}")
      self._num_steps = num_steps
    elif num_steps != self._num_steps:
      raise ValueError(f"X has {num_steps} time steps, but {self._num_steps} were fitted")
    return X

  def _features(self, X):
    parts = [X[start : start + _ROWS] for start in range(0, len(X), _ROWS)]
    return np.concatenate([self._features_of_part(part) for part in parts])

  def _features_of_part(self, X):
    # Sizes that are powers of two: data of similar size share a program.
    size = max(16, 1 << (len(X) - 1).bit_length())
    padded = np.zeros((size, *X.shape[1:]), np.float32)
    padded[: len(X)] = X
    padded = np.asarray(_standardize(padded, statistics=self.statistics_))
    padded = padded[:, self.channels_]
    kernels = self.kernels_.copy()
    kernels[:, 0] = np.searchsorted(self.channels_, kernels[:, 0])
    features = np.zeros((len(X), *self.feature_mask_.shape), np.float32)
    is_deep = self.feature_mask_[:, 4:].any(axis=1)
    for rows, num_levels in ((~is_deep, 1), (is_deep, 2)):
      if rows.any():
        features[:, rows, : 4 * num_levels] = scatter_features(
          padded,
          kernels[rows],
          max_dilation_log2=self.max_dilation_log2,
          num_levels=num_levels,
        )[: len(X)]
    return features[:, self.feature_mask_]
