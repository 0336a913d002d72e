"""Series with missing values, and Gaussian laws of them: drawn, fitted, or known exactly."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments.kit.train import scores
from jaxlab import augment, models, uncertainty

# Simple completions, and what shows how much they are worth.
ZERO, FORWARD, DECAY, MASKED = "zeros", "last value", "decayed last value", "zeros and mask"
MASK, COMPLETE, GIVEN = "mask alone", "complete series", "given completion"
SHOWN = ZERO, FORWARD, DECAY, MASKED, MASK, COMPLETE, GIVEN


class Rows(NamedTuple):
  """Series and their classes.

  Attributes:
    values: also the missing ones, `[n, T, C]`.
    mask: which values are observed, bool `[n, T, C]`.
    labels: `[n]`.
  """

  values: chex.Array
  mask: chex.Array
  labels: chex.Array


class Law(NamedTuple):
  """Gaussian classes of one covariance: means `[classes, T * C]` and `[T * C, T * C]`."""

  means: chex.Array
  covariance: chex.Array


def each_row(function, rows: Any, *, batch_size: int = 100) -> Any:
  """`function` of one row at a time, on as many as fit the processor's cache; traceable."""
  return jax.lax.map(function, rows, batch_size=min(batch_size, len(jax.tree.leaves(rows)[0])))


def mean_error(completed: chex.Array, rows: Rows) -> jax.Array:
  """Mean absolute error of completed series `[n, T, C]` at their missing values."""
  missing = ~rows.mask
  return jnp.sum(jnp.abs(completed - rows.values) * missing) / jnp.sum(missing)


def times_of(values: chex.Array) -> jax.Array:
  """Times `[b, T]` of series `[..., b, T, C]`, from 0 to 1."""
  return jnp.broadcast_to(jnp.linspace(0.0, 1.0, values.shape[-2]), values.shape[-3:-1])


def initial_decay(num_channels: int, bias: chex.Numeric) -> dict[str, jax.Array]:
  """Rate 0 and a bias for every channel."""
  return {"rate": jnp.zeros(num_channels), "bias": jnp.full(num_channels, bias)}


def shown(method: chex.Numeric, decay, rows: Rows, kept: chex.Array, given: chex.Array):
  """What a classifier sees of series whose kept values may be known: `[..., b, T, 2 C]`.

  Args:
    method: its place in `SHOWN`; traced ones share a program.
    decay: the `rate` and `bias` of `initial_decay`, and perhaps more.
    rows: series `[b, T, C]`.
    kept: bool `[b, T, C]`.
    given: completed series `[..., b, T, C]`, of whose shape all completions are.

  Returns:
    Completed series, and the mask as further channels; 0 if it is not shown.
  """
  zeros = jnp.where(kept, rows.values, 0.0)
  last, faded = augment.forward_fill(zeros, kept), fill(decay, rows._replace(mask=kept), 0 * zeros)
  fills = zeros, last, faded, zeros, 0 * zeros, rows.values, given
  chosen = jnp.stack([jnp.broadcast_to(x, given.shape) for x in fills])[method]
  is_known = (method == SHOWN.index(MASKED)) | (method == SHOWN.index(MASK))
  return jnp.concatenate([chosen, jnp.broadcast_to(kept & is_known, given.shape)], axis=-1)


def fill(decay, rows: Rows, imputed: chex.Array) -> jax.Array:
  """Series `[..., b, T, C]` completed by what is imputed, into which observed values fade."""
  times = jnp.broadcast_to(times_of(rows.values), imputed.shape[:-1])
  values, mask = (jnp.broadcast_to(x, imputed.shape) for x in rows[:2])
  decay = {name: decay[name] for name in ("rate", "bias")}
  return augment.decay_impute(values, imputed, mask, times, **decay)


def mixture(log_p_y: chex.Array, log_w: chex.Array) -> jax.Array:
  """Logarithms of averaged probabilities, `[b, classes]`."""
  return jnp.log(jnp.maximum(uncertainty.mixture_predictive(log_p_y, log_w), 1e-30))


def gaussian_series(
  rng: np.random.Generator, waves: np.ndarray, labels: np.ndarray, *, num_channels: int,
  lengthscale: float, noise: float,
) -> tuple[np.ndarray, Law]:  # fmt: skip
  """Latent Gaussian processes around a mean of the class, seen in channels with noise.

  Args:
    rng: of loadings and series.
    waves: means of the latent series, `[classes, T, d]`.
    labels: classes, `[n]`.
    num_channels: C, whose loadings have variance 1 / d.
    lengthscale: of the Cauchy kernel, in steps.
    noise: deviation in every channel.

  Returns:
    Series `[n, T, C]`, and their law given the class.
  """
  num_classes, length, dim = waves.shape
  loadings = rng.normal(scale=dim**-0.5, size=(num_channels, dim))
  kernel = np.asarray(_kernel(length, np.float32(lengthscale)), np.float64)
  white, rest = (rng.normal(size=(len(labels), length, k)) for k in (dim, num_channels))
  latent = np.linalg.cholesky(kernel) @ white + waves[labels]
  covariance = np.kron(kernel, loadings @ loadings.T)
  covariance += noise**2 * np.eye(len(covariance))
  law = Law((waves @ loadings.T).reshape(num_classes, -1), covariance)
  return latent @ loadings.T + noise * rest, law


_kernel = jax.jit(
  lambda length, lengthscale: models.cauchy_kernel(length, lengthscale=lengthscale),
  static_argnums=0,
)


def observed(covariance: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Inverses of the observed blocks of rows, zeros elsewhere, `[n, D, D]`; their log-determinants.

  By LAPACK on the host: XLA solves batches of triangular systems a thousand times slower on CPUs.
  """
  both = mask[:, :, None] & mask[:, None]
  blocks = np.where(both, covariance, np.eye(len(covariance)))
  return np.where(both, np.linalg.inv(blocks), 0.0), -np.linalg.slogdet(blocks)[1]


def flat(rows: Rows) -> Rows:
  """The same with values, 0 where they are missing, and mask `[n, T * C]`."""
  values, mask = (np.reshape(x, (len(x), -1)) for x in rows[:2])
  return Rows(np.where(mask, values, 0.0).astype(np.float64), mask, rows.labels)


def gains(means: np.ndarray, precision: np.ndarray, rows: Rows) -> np.ndarray:
  """Observed values less means `[k, D]`, times their precision `[n, D, D]`: `[n, k, D]`."""
  return np.where(rows.mask[:, None], rows.values[:, None] - means, 0.0) @ precision


def log_densities(law: Law, rows: Rows) -> np.ndarray:
  """Of the observed values in each class, `[n, k]`; rows are flat."""
  precision, log_det = observed(law.covariance, rows.mask)
  gain = gains(law.means, precision, rows)
  squares = np.einsum("nkd,nkd->nk", gain, rows.values[:, None] - law.means)
  constant = log_det - rows.mask.sum(axis=1) * np.log(2 * np.pi)
  return (constant[:, None] - squares) / 2


def fit_law(train: Rows, validation: Rows, *, strengths: tuple[float, ...], num_steps: int) -> Law:
  """The law of one class, by expectation maximization on incomplete series.

  Args:
    train: series to be fitted.
    validation: those whose observed values choose the prior.
    strengths: of priors to choose from: as many further series of independent channels and steps.
    num_steps: number of iterations.
  """
  train, validation = flat(train), flat(validation)
  size, dim = train.values.shape

  def at_strength(strength):
    mean, covariance = np.zeros((1, dim)), np.eye(dim)
    for _ in range(num_steps):
      precision, _ = observed(covariance, train.mask)
      filled = mean + gains(mean, precision, train)[:, 0] @ covariance
      mean = filled.mean(axis=0, keepdims=True)
      left = covariance - covariance @ precision.mean(axis=0) @ covariance
      total = (filled - mean).T @ (filled - mean) + size * left + strength * np.eye(dim)
      covariance = total / (size + strength)
    return Law(mean, covariance)

  laws = [at_strength(strength) for strength in strengths]
  return max(laws, key=lambda law: log_densities(law, validation).mean())


def completions(
  rng: np.random.Generator, law: Law, rows: Rows, num_draws: int
) -> tuple[np.ndarray, np.ndarray]:
  """By one class: expected series `[n, 1, T, C]`, and draws given what is observed."""
  shape, rows = rows.values.shape, flat(rows)
  precision, _ = observed(law.covariance, rows.mask)
  white = rng.normal(size=(shape[0], num_draws, len(law.covariance)))
  # Draws that nothing is known of, corrected by what is observed.
  free = law.means + white @ np.linalg.cholesky(law.covariance).T
  completed = (x + gains(x, precision, rows) @ law.covariance for x in (law.means, free))
  mean, draws = (x.reshape(shape[0], -1, *shape[1:]).astype(np.float32) for x in completed)
  return mean, draws


def exact_answers(law: Law, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
  """Log-probabilities of the classes `[n, classes]`, and expected series `[n, T, C]`."""
  shape, rows = rows.values.shape, flat(rows)
  log_probs = special.log_softmax(log_densities(law, rows), axis=1)
  gain = gains(law.means, observed(law.covariance, rows.mask)[0], rows)
  expected = law.means + gain @ law.covariance
  return log_probs, np.einsum("nk,nkd->nd", np.exp(log_probs), expected).reshape(shape)


def exact_scores(law: Law, rows: Rows) -> dict[str, np.ndarray]:
  """What is measured of exact answers."""
  log_probs, expected = exact_answers(law, rows)
  found = jax.device_get(_scores(log_probs, rows.labels))
  return found | {"MAE": np.abs(expected - rows.values)[~rows.mask].mean()}


_scores = jax.jit(scores)
