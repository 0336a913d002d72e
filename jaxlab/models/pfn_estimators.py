"""Prior-data fitted networks as scikit-learn estimators."""

import dataclasses
import functools
import os
import pathlib
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxlab._checks import check_at_least
from jaxlab.losses.bar import bar_nll
from jaxlab.models.pfn_checkpoint import TrainedPFN, load_pfn
from jaxlab.uncertainty.bar import bar_mean, bar_quantile, bar_variance


class _PFNEstimator(BaseEstimator):
  """The parts that both estimators share: scaling, padding, and the forward passes."""

  def __init__(self, pfn=None, *, max_queries=1024, transductive=False):
    self.pfn = pfn
    self.max_queries = max_queries
    self.transductive = transductive

  def __sklearn_is_fitted__(self):
    return hasattr(self, "network_")

  def _set_context(self, x, network):
    """Keeps the inputs of the context, after checking them against the network."""
    num_context, num_features = x.shape
    task = network.task
    if num_features > task.num_features:
      raise ValueError(
        f"the network takes at most {task.num_features} features, but X has {num_features}"
      )
    check_at_least(1, max_queries=self.max_queries)
    if task.max_context is not None and num_context > task.max_context:
      warnings.warn(
        f"the context has {num_context} points, but the network was trained on at most "
        f"{task.max_context}; its predictions may be poor",
        UserWarning,
        stacklevel=3,
      )
    self.context_x_ = x
    # Moved to the device once: NumPy parameters would be transferred for every prediction.
    self.network_ = dataclasses.replace(
      network,
      params=jax.device_put(network.params),
      borders=jax.device_put(network.borders),
    )

  def _outputs(self, x):
    """Yields `(rows, outputs, own)`: outputs of a padded chunk, and which of them answer `rows`.

    The layout is [context, queries, padding]. Queries never see one another, so padding needs no
    mask, and a chunk's total length is a power of two, as is the part of it that attention takes
    keys from, so data sets of similar sizes share a program.
    """
    task = self.network_.task
    reference = np.concatenate([self.context_x_, x]) if self.transductive else self.context_x_
    shift, scale = _shift_and_scale(reference, task.input_scaling)
    if task.rescale_features:
      scale = scale * (x.shape[1] / task.num_features)

    num_context = self.context_x_.shape[0]
    start = 0
    while start < x.shape[0]:
      length = _bucket(num_context + min(x.shape[0] - start, self.max_queries), least=64)
      rows = slice(start, min(start + length - num_context, x.shape[0]))
      own = slice(num_context, num_context + rows.stop - rows.start)
      inputs = np.zeros((length, task.num_features), np.float32)
      inputs[:num_context, : x.shape[1]] = _scaled(self.context_x_, shift, scale, "X")
      inputs[own, : x.shape[1]] = _scaled(x[rows], shift, scale, "X")
      targets = np.zeros(length, np.float32)
      targets[:num_context] = self.context_y_
      outputs = _forward(
        self.network_.module,
        self.network_.params,
        inputs,
        targets,
        np.int32(num_context),
        _bucket(num_context, least=32),
      )
      yield rows, outputs, own
      start = rows.stop


class PFNRegressor(RegressorMixin, _PFNEstimator):
  """Regression by a prior-data fitted network: `fit` stores the data, `predict` reads them.

  The prediction at a point is a density, the approximate posterior predictive under the prior
  that the network was trained on, from one forward pass and without any fitting.

  Args:
    pfn: a `TrainedPFN` with borders, or the directory of one. None is a small network that comes
      with jaxlab, for tables of at most 10 inputs and about 100 rows; its prior and accuracy are
      described in `jaxlab/models/networks/README.md`.
    max_queries: most queries per forward pass, up to rounding to a power of two; bounds memory.
    transductive: scale inputs by the statistics of the context and the queries together, as in
      the paper; the prediction of a row then depends on the rows beside it.

  Attributes:
    network_: the `TrainedPFN`.
    context_x_: inputs of the context, `[n, n_features_in_]`.
    context_y_: targets of the context in the unit of the network, `[n]`.
    target_shift_: subtracted from targets.
    target_scale_: targets are divided by this after the shift.
    n_features_in_: number of features.

  Example::

    model = PFNRegressor().fit(X, y)
    mean, std = model.predict(X_new, return_std=True)

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """

  def fit(self, X, y):
    """Takes the training data as context.

    Args:
      X: inputs, `[n, features]`.
      y: targets, `[n]`.

    Returns:
      The estimator.

    Raises:
      ValueError: for data that are empty, not finite, or have more features than the network
        takes, or a network that does not predict densities.
    """
    X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
    network = _resolve(self.pfn, default="regressor")
    if network.task.num_classes is not None or network.borders is None:
      raise ValueError("PFNRegressor needs a network for regression, with borders")
    shift, scale = _shift_and_scale(y[:, None], network.task.target_scaling)
    self.target_shift_, self.target_scale_ = shift[0], scale[0]
    self.context_y_ = _scaled(y, self.target_shift_, self.target_scale_, "y")
    self._set_context(X, network)
    return self

  def predict(self, X, return_std=False):
    """Predicts the mean, which is best under squared error.

    Args:
      X: inputs, `[m, features]`.
      return_std: whether to return the standard deviation too.

    Returns:
      Mean `[m]`, or the pair of mean and standard deviation of y, `[m]` each.
    """
    moments = self._summarize(X, _mean_and_std, 2)
    mean = self.target_shift_ + self.target_scale_ * moments[:, 0]
    return (mean, self.target_scale_ * moments[:, 1]) if return_std else mean

  def predict_quantiles(self, X, quantiles=(0.05, 0.5, 0.95)):
    """Predicts quantiles of y.

    Args:
      X: inputs, `[m, features]`.
      quantiles: probabilities in [0, 1], `[q]`.

    Returns:
      Quantiles, `[m, q]`.

    Raises:
      ValueError: if `quantiles` is not a vector of probabilities.
    """
    quantiles = np.asarray(quantiles, np.float32)
    if quantiles.ndim != 1 or not ((quantiles >= 0) & (quantiles <= 1)).all():
      raise ValueError(f"quantiles must be a vector of numbers in [0, 1], got {quantiles}")
    values = self._summarize(X, functools.partial(_quantiles, quantiles), quantiles.size)
    return self.target_shift_ + self.target_scale_ * values

  def log_prob(self, X, y):
    """Evaluates the log of the predictive density, point by point.

    Args:
      X: inputs, `[m, features]`.
      y: targets, `[m]`.

    Returns:
      Log-density of each target in nats, in the unit of `y`, `[m]`.
    """
    check_is_fitted(self)
    X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
    targets = _scaled(y, self.target_shift_, self.target_scale_, "y")
    log_prob = np.empty(y.shape[0])
    for rows, outputs, own in self._outputs(X):
      padded = np.zeros(outputs.shape[0], np.float32)
      padded[own] = targets[rows]
      nll = _nll(outputs, padded, self.network_.borders, self.network_.task.full_support)
      log_prob[rows] = -np.asarray(nll)[own]
    return log_prob - np.log(self.target_scale_)

  def _summarize(self, X, summary_fn, width):
    """Applies `summary_fn(logits, borders, full_support) -> [T, width]` to all queries."""
    check_is_fitted(self)
    X = validate_data(self, X, dtype=np.float64, reset=False)
    summary = np.empty((X.shape[0], width))
    for rows, outputs, own in self._outputs(X):
      values = summary_fn(outputs, self.network_.borders, self.network_.task.full_support)
      summary[rows] = np.asarray(values)[own]
    return summary


class PFNClassifier(ClassifierMixin, _PFNEstimator):
  """Classification by a prior-data fitted network: `fit` stores the data, `predict` reads them.

  Probabilities are those of the approximate posterior predictive under the prior that the network
  was trained on, restricted to the classes in the context. If the context has a single class, its
  probability is 1.

  Args:
    pfn: a `TrainedPFN` of a classifier, or the directory of one. It has one output per class, or
      a single one, the logit of the second of two classes. None is a small network that comes with
      jaxlab, for tables of at most 16 inputs, 10 classes and about 100 rows; its prior and its
      accuracy are described in `jaxlab/models/networks/README.md`.
    max_queries: most queries per forward pass, up to rounding to a power of two; bounds memory.
    transductive: scale inputs by the statistics of the context and the queries together, as in
      the paper; the prediction of a row then depends on the rows beside it.

  Attributes:
    network_: the `TrainedPFN`.
    classes_: the classes, sorted.
    context_x_: inputs of the context, `[n, n_features_in_]`.
    context_y_: index of each context point's class, float32 `[n]`.
    n_features_in_: number of features.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022, section 6,
  https://arxiv.org/abs/2112.10510.
  """

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    network = getattr(self, "network_", self.pfn)
    if isinstance(network, TrainedPFN):
      tags.classifier_tags.multi_class = network.task.num_classes != 2
    return tags

  def fit(self, X, y):
    """Takes the training data as context.

    Args:
      X: inputs, `[n, features]`.
      y: class labels, `[n]`.

    Returns:
      The estimator.

    Raises:
      ValueError: for data that are empty, not finite, or have more features or classes than the
        network takes, or a network that is not a classifier.
    """
    X, y = validate_data(self, X, y, dtype=np.float64)
    check_classification_targets(y)
    network = _resolve(self.pfn, default="classifier")
    num_classes, num_outputs = network.task.num_classes, network.module.num_outputs
    if num_classes is None or (num_outputs != num_classes and (num_outputs, num_classes) != (1, 2)):
      raise ValueError(
        "PFNClassifier needs a network with an output per class, or one output for two classes; "
        f"got {num_outputs} outputs for num_classes={num_classes}"
      )
    classes, labels = np.unique(y, return_inverse=True)
    if classes.size > num_classes:
      kind = "Only binary classification is supported: " if num_classes == 2 else ""
      raise ValueError(
        f"{kind}the network distinguishes at most {num_classes} classes, but y has {classes.size}"
      )
    self.classes_ = classes
    self.context_y_ = labels.astype(np.float32)
    self._set_context(X, network)
    return self

  def predict_proba(self, X):
    """Predicts the probability of each class.

    Args:
      X: inputs, `[m, features]`.

    Returns:
      Probabilities, `[m, classes]`, in the order of `classes_`.
    """
    check_is_fitted(self)
    X = validate_data(self, X, dtype=np.float64, reset=False)
    num_outputs = self.network_.module.num_outputs
    logits = np.empty((X.shape[0], num_outputs))
    for rows, outputs, own in self._outputs(X):
      logits[rows] = np.asarray(outputs)[own]
    if num_outputs == 1:
      logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return special.softmax(logits[:, : self.classes_.size], axis=1)

  def predict(self, X):
    """Predicts the most probable class.

    Args:
      X: inputs, `[m, features]`.

    Returns:
      Class labels, `[m]`.
    """
    probabilities = self.predict_proba(X)
    return self.classes_[np.argmax(probabilities, axis=1)]


def _resolve(pfn, *, default):
  if pfn is None:
    return _default_network(default)
  if isinstance(pfn, TrainedPFN):
    return pfn
  if isinstance(pfn, str | os.PathLike):
    return load_pfn(pfn)
  raise ValueError(
    f"pfn must be a TrainedPFN, the directory of one, or None, got {type(pfn).__name__}"
  )


@functools.cache
def _default_network(kind):
  """A network that comes with the package; its float16 parameters in float32."""
  network = load_pfn(pathlib.Path(__file__).with_name("networks") / kind)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params)
  return dataclasses.replace(network, params=params)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _forward(module, params, x, y, num_context, max_context):
  outputs = module.apply(
    {"params": params}, x[None], y[None], num_context, max_context=max_context
  )[0]
  return outputs.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _mean_and_std(logits, borders, full_support):
  mean = bar_mean(logits, borders, full_support=full_support)
  variance = bar_variance(logits, borders, full_support=full_support)
  return jnp.stack([mean, jnp.sqrt(variance)], axis=-1)


@functools.partial(jax.jit, static_argnums=3)
def _quantiles(quantiles, logits, borders, full_support):
  quantile = functools.partial(bar_quantile, logits, borders, full_support=full_support)
  return jax.vmap(quantile, out_axes=-1)(quantiles)


@functools.partial(jax.jit, static_argnums=3)
def _nll(logits, targets, borders, full_support):
  return bar_nll(logits, targets, borders, full_support=full_support)


def _bucket(size, *, least):
  """The next power of two, from `least` on."""
  return max(least, 1 << (size - 1).bit_length())


def _shift_and_scale(values: chex.ArrayNumpy, scaling: str):
  """Shift and scale of each column; a constant column is only shifted."""
  lowest, highest = values.min(axis=0), values.max(axis=0)
  if scaling == "none":
    return np.zeros_like(lowest), np.ones_like(lowest)
  if scaling == "unit":
    shift, scale = lowest, highest - lowest
  else:
    shift, scale = values.mean(axis=0), values.std(axis=0, ddof=min(1, values.shape[0] - 1))
  return shift, np.where(highest > lowest, scale, 1.0)


def _scaled(values, shift, scale, name):
  with np.errstate(over="ignore", invalid="ignore"):
    scaled = ((values - shift) / scale).astype(np.float32)
  if not np.isfinite(scaled).all():
    raise ValueError(f"{name} holds numbers too large to be scaled to the network's range")
  return scaled
