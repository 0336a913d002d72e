"""Imputation of missing values in series, as a scikit-learn estimator."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from jaxlab._checks import check_at_least, check_range
from jaxlab.algorithms.series_imputation import not_miwae_objective
from jaxlab.models.gp_vae import (
  MissingnessModel,
  SeriesDecoder,
  SeriesEncoder,
  cauchy_kernel,
  gp_prior_log_prob,
)

_ROWS = 256  # That are completed together.
# Of the prior: a posterior of independent steps would have to be as narrow as a smaller one.
_JITTER = 0.1


class SeriesImputer(TransformerMixin, BaseEstimator):
  """Completes series with missing values by draws from a deep generative model.

  The model is a variational autoencoder whose latent series is a Gaussian process over time, with a
  model of what is missing, which may depend on the missing values themselves. It is trained on
  incomplete series; observed values are never changed.

  Args:
    latent_dim: dimensions of the latent series.
    width: width of the networks.
    num_layers: transformer blocks of encoder and decoder.
    num_heads: attention heads; they divide `width`.
    lengthscale: of the Gaussian process, in steps.
    not_at_random: whether what is missing is modeled by the values; if not, it is taken to depend
      on what is observed alone.
    num_latents: draws of the importance-weighted bound in training.
    num_draws: latent draws that imputations average over or choose from.
    num_steps: updates of Adam.
    batch_size: series of an update.
    learning_rate: of Adam.
    random_state: of training, and of draws that get no seed of their own.

  Attributes:
    params_: parameters of encoder, decoder and the model of the mask.
    shift_: mean of the observed values of each channel at each step, and one more of the channel's
      mean, `[channels, time steps]`.
    scale_: standard deviation of the observed values of each channel around this, `[channels]`; 1
      if they do not vary.
    losses_: loss of each update in nats a value, missing ones included, `[num_steps]`.
    n_features_in_: number of channels, or of time steps if `X` has two axes.

  Example::

    imputer = SeriesImputer().fit(X)  # X: [n, channels, time steps], NaN where a value is missing.
    means = imputer.transform(X)
    draws = imputer.sample(X, 20)  # [20, n, channels, time steps]

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, https://arxiv.org/abs/2308.06738; without its classifier, and so without its dropout.
  """

  def __init__(
    self,
    latent_dim=8,
    *,
    width=32,
    num_layers=1,
    num_heads=2,
    lengthscale=7.0,
    not_at_random=True,
    num_latents=5,
    num_draws=20,
    num_steps=1000,
    batch_size=64,
    learning_rate=3e-3,
    random_state=0,
  ):
    self.latent_dim = latent_dim
    self.width = width
    self.num_layers = num_layers
    self.num_heads = num_heads
    self.lengthscale = lengthscale
    self.not_at_random = not_at_random
    self.num_latents = num_latents
    self.num_draws = num_draws
    self.num_steps = num_steps
    self.batch_size = batch_size
    self.learning_rate = learning_rate
    self.random_state = random_state

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.input_tags.three_d_array = True
    tags.input_tags.allow_nan = True
    return tags

  def fit(self, X, y=None):
    """Trains the model.

    Args:
      X: series, `[n, channels, time steps]`, or `[n, time steps]` with one channel; NaN where a
        value is missing.
      y: ignored.

    Returns:
      The estimator.

    Raises:
      ValueError: for data that are empty, infinite or missing altogether, a parameter that is out
        of range, or a training whose loss is not finite at the end.
    """
    check_at_least(1, num_steps=self.num_steps, batch_size=self.batch_size)
    check_at_least(1, num_latents=self.num_latents, num_draws=self.num_draws)
    check_range("learning_rate", self.learning_rate, "(0, inf)")
    X, _ = self._series(X, reset=True)
    observed = np.isfinite(X)
    if not observed.any():
      raise ValueError("X has no observed value")
    count, total = observed.sum(0), np.where(observed, X, 0).sum(0)
    mean = total.sum(1, keepdims=True) / np.maximum(count.sum(1, keepdims=True), 1)
    self.shift_ = (total + mean) / (count + 1)
    square = np.where(observed, np.square(X - self.shift_), 0).sum((0, 2))
    spread = np.sqrt(square / np.maximum(count.sum(1), 1))
    self.scale_ = np.where(spread > 0, spread, 1.0)
    self._model = _Model(
      *(self.latent_dim, X.shape[1], self.width, self.num_layers, self.num_heads),
      self.not_at_random,
    )
    self.params_, self.losses_ = jax.tree.map(
      np.asarray,
      _train(
        self._model,
        self._key(self.random_state),
        *self._scaled(X),
        np.float32(self.lengthscale),
        np.float32(self.learning_rate),
        num_latents=self.num_latents,
        num_steps=self.num_steps,
        batch_size=self.batch_size,
      ),
    )
    if not np.isfinite(self.losses_[-1]):
      raise ValueError(f"the loss is {self.losses_[-1]} at the end: lower learning_rate")
    return self

  def transform(self, X):
    """Replaces missing values by their posterior means.

    Args:
      X: series, as for `fit`.

    Returns:
      The completed series, in the shape of `X`.
    """
    X, shape, means, _ = self._completed(X, 1, self.random_state)
    return np.where(np.isnan(X), means, X).reshape(shape)

  def sample(self, X, num_samples=20, random_state=None):
    """Draws completions from the posterior.

    Args:
      X: series, as for `fit`.
      num_samples: how many.
      random_state: of the draws; None for that of the estimator.

    Returns:
      Completed series, `[num_samples, *X.shape]`.

    Raises:
      ValueError: if `num_samples` < 1.
    """
    check_at_least(1, num_samples=num_samples)
    seed = self.random_state if random_state is None else random_state
    X, shape, _, samples = self._completed(X, num_samples, seed)
    return np.where(np.isnan(X), samples, X).reshape(num_samples, *shape)

  def _series(self, X, *, reset):
    """The series with three axes, and their shape before."""
    X = validate_data(
      self, X, allow_nd=True, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset
    )
    shape = X.shape
    X = X[:, None] if X.ndim == 2 else X
    if X.ndim != 3:
      raise ValueError(f"X must have two or three axes, got shape {X.shape}")
    if reset:
      self._num_steps = X.shape[2]
    elif X.shape[2] != self._num_steps:
      raise ValueError(f"X has {X.shape[2]} time steps, but {self._num_steps} were fitted")
    return X, shape

  def _key(self, seed):
    return jax.random.key(check_random_state(seed).randint(2**31 - 1))

  def _scaled(self, X):
    """Standardized values with time before channels, and which are observed."""
    scaled = ((X - self.shift_) / self.scale_[:, None]).swapaxes(1, 2)
    return np.nan_to_num(scaled).astype(np.float32), np.isfinite(scaled)

  def _completed(self, X, num_samples, seed):
    """The series, their shape, their posterior means, and samples."""
    check_is_fitted(self)
    X, shape = self._series(X, reset=False)
    means, samples = np.empty(X.shape), np.empty((num_samples, *X.shape))
    keys = self._key(seed)
    for start in range(0, len(X), _ROWS):
      rows = slice(start, min(start + _ROWS, len(X)))
      count = rows.stop - start
      # Sizes that are powers of two: data of similar size share a program.
      size = max(16, 1 << (count - 1).bit_length())
      part = np.full((size, *X.shape[1:]), np.nan)
      part[:count] = X[rows]
      key = jax.random.fold_in(keys, start)
      scale = np.float32(self.lengthscale)
      results = _complete(
        self._model, self.params_, key, *self._scaled(part), scale, self.num_draws, num_samples
      )
      mean, sample = (
        self.shift_ + self.scale_[:, None] * np.asarray(x).swapaxes(-1, -2) for x in results
      )
      means[rows], samples[:, rows] = mean[:count], sample[:, :count]
    return X, shape, means, samples


@dataclasses.dataclass(frozen=True)
class _Model:
  """The networks and their calls."""

  latent_dim: int
  num_channels: int
  width: int
  num_layers: int
  num_heads: int
  not_at_random: bool

  @functools.cached_property
  def modules(self):
    sizes = self.width, self.num_layers, self.num_heads
    return {
      "encoder": SeriesEncoder(self.latent_dim, *sizes),
      "decoder": SeriesDecoder(self.num_channels, *sizes),
      "mask": MissingnessModel(self.width),
    }

  def init(self, key, values, times):
    latents = jnp.zeros((*values.shape[:2], self.latent_dim))
    arguments = {"encoder": (values, times), "decoder": (latents, times), "mask": (values,)}
    keys = jax.random.split(key, len(arguments))
    return {
      name: self.modules[name].init(key, *arguments[name])["params"]
      for key, name in zip(keys, arguments)
    }

  def objective(self, params, key, values, mask, lengthscale, **settings):
    times = jnp.broadcast_to(jnp.arange(values.shape[1], dtype=values.dtype), values.shape[:2])
    kernel = cauchy_kernel(values.shape[1], lengthscale=lengthscale, jitter=_JITTER)

    def call(name, *arguments):
      return self.modules[name].apply({"params": params[name]}, *arguments)

    return not_miwae_objective(
      key,
      functools.partial(call, "encoder"),
      functools.partial(call, "decoder"),
      functools.partial(call, "mask") if self.not_at_random else jnp.zeros_like,
      # A classifier of one class: all that is left is the generative model.
      lambda series, *_: jnp.zeros((*series.shape[:-2], 1)),
      lambda z: gp_prior_log_prob(z, kernel),
      values,
      mask,
      times,
      dropout_rate=0.0,
      rate=jnp.zeros(self.num_channels),
      bias=jnp.full(self.num_channels, jnp.inf),
      **settings,
    )


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("num_latents", "num_steps", "batch_size")
)
def _train(
  model, key, values, mask, lengthscale, learning_rate, *, num_latents, num_steps, batch_size
):
  init_key, key = jax.random.split(key)
  times = jnp.zeros((1, values.shape[1]))
  params = model.init(init_key, values[:1], times)
  optimizer = optax.chain(
    optax.clip_by_global_norm(float(values[0].size)), optax.adam(learning_rate)
  )
  labels = jnp.zeros(batch_size, jnp.int32)

  def loss_fn(params, key, rows):
    output = model.objective(
      params, key, values[rows], mask[rows], lengthscale, labels=labels, num_latents=num_latents
    )
    return jnp.mean(output.loss) / values[0].size

  def update(carry, key):
    params, state = carry
    row_key, key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch_size,), 0, values.shape[0])
    loss, gradients = jax.value_and_grad(loss_fn)(params, key, rows)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), loss

  start = params, optimizer.init(params)
  (params, _), losses = jax.lax.scan(update, start, jax.random.split(key, num_steps))
  return params, losses


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _complete(model, params, key, values, mask, lengthscale, num_draws, num_samples):
  """Posterior means `[b, T, C]` and samples `[num_samples, b, T, C]`."""
  draw_key, key = jax.random.split(key)
  output = model.objective(
    params,
    key,
    values,
    mask,
    lengthscale,
    labels=None,
    num_latents=num_draws,
    num_samples=num_samples,
  )
  weights = jnp.exp(output.log_w)[..., None, None]
  means = jnp.mean(jnp.sum(weights * output.imputed, axis=1), axis=0)
  chosen = jax.random.categorical(draw_key, output.log_w, axis=1)
  samples = jnp.take_along_axis(output.imputed, chosen[:, None, :, None, None], axis=1)[:, 0]
  return means, samples
