"""Where a curve ends: the network, MCMC on the same prior, and what needs neither."""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from experiments.kit.prior_fitting import Fitted, PriorTrainer
from jaxlab import data, losses, models, samplers, training, uncertainty
from jaxlab.experiment import Context

QUANTILES = (0.1, 0.5, 0.9)
OBSERVED_SHARE = 0.4  # Share of the steps of a real curve that is seen.
TEST_SHARE = 0.25  # Share of the real data sets that is tested on.
NUM_STARTS = 5000  # Prior draws that the start of a chain is resampled from.
_SHARE = 16  # Real curves of one device in one compiled chain.


class Curves(NamedTuple):
  """Curves `[n, T]`, NaN past the end of each; lengths, seen steps and data sets `[n]`."""

  values: np.ndarray
  lengths: np.ndarray
  observed: np.ndarray
  dataset_ids: np.ndarray | None = None

  def rows(self, rows) -> "Curves":
    """Some of the curves."""
    return Curves(*(None if field is None else field[rows] for field in self))

  @property
  def last(self) -> np.ndarray:
    """The values to predict."""
    return self.values[np.arange(len(self.values)), self.lengths - 1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def prior_curves(key, number: int, length: int) -> jax.Array:
  """Noisy curves of the prior, `[number, length]`."""
  return data.sample_learning_curves(key, batch_size=number, length=length).y


def real_curves(config) -> Curves:
  """LCDB accuracy curves with 10 to `length` anchors; the index of an anchor is the step."""
  curves = data.load_lcdb(metric="accuracy")
  kept = curves.lengths <= config.length
  values = np.full((kept.sum(), config.length), np.nan, np.float32)
  width = min(config.length, curves.values.shape[1])
  values[:, :width] = curves.values[kept, :width]
  lengths = curves.lengths[kept]
  observed = np.maximum(2, np.floor(OBSERVED_SHARE * lengths)).astype(int)
  return Curves(values, lengths, observed, curves.dataset_ids[kept])


def split_data_sets(dataset_ids: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the test curves and of the others; no data set is in both."""
  ids = np.unique(dataset_ids)
  test_ids = rng.choice(ids, max(1, round(TEST_SHARE * len(ids))), replace=False)
  is_test = np.isin(dataset_ids, test_ids)
  return np.flatnonzero(is_test), np.flatnonzero(~is_test)


# ---------------------------------------------------------------------------------------- network


def trainer(config, borders, mesh) -> PriorTrainer:
  """The network and its training on prior curves; step t and value y come standardized."""
  group, middle, width = config.batch_size // 4, 0.5 * (config.length + 1), np.sqrt(12.0)
  module = models.PFN(
    config.num_bars,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    dropout_rate=config.dropout,
    input_shift=middle,
    input_scale=2 * middle / width,
    target_shift=0.5,
    target_scale=1 / width,
  )
  return PriorTrainer(
    module,
    functools.partial(data.sample_learning_curves, batch_size=group, length=config.length),
    functools.partial(losses.bar_nll, borders=borders),
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    min_context=1,
    steps_per_call=min(100, config.num_steps),
    mesh=mesh,
  )


def fit(config, context: Context) -> Fitted:
  """Trains the network on every seed, with bars that hold equal shares of the prior's values."""

  @jax.jit
  def borders(key):
    return uncertainty.bar_borders(prior_curves(key, 10_000, config.length), config.num_bars)

  fitting = trainer(config, borders(context.key), context.mesh)
  return Fitted(fitting.module, fitting.train(context, "PFN"), fitting.loss_fn.keywords["borders"])


def logits_of(module, params, values, observed) -> jax.Array:
  """Bar logits `[b, T, K]` of every step, given the first `observed` values of `[b, T]`."""
  steps = jnp.arange(1, values.shape[-1] + 1, dtype=jnp.float32)
  x = jnp.broadcast_to(steps[:, None], (*values.shape, 1))
  return module.apply({"params": params}, x, values, observed)


@functools.partial(jax.jit, static_argnums=0)
def network_prediction(module, borders, params, values, lengths, observed):
  """NLL of the last values, `[n]`, and quantiles of all values, `[3, n, T]`."""
  one = jax.vmap(lambda row, c: logits_of(module, params, row[None], c)[0])
  logits = one(jnp.nan_to_num(values), observed)
  nll = losses.bar_nll(logits, values, borders)[jnp.arange(len(values)), lengths - 1]
  return nll, jnp.stack([uncertainty.bar_quantile(logits, borders, q) for q in QUANTILES])


def predict(network: Fitted, seed: int, curves: Curves) -> tuple[np.ndarray, np.ndarray]:
  """`network_prediction` of a seed."""
  count = len(curves.values)
  # Sizes that repeat, so that they share a program; the repeated curves are dropped again.
  padded = curves.rows(np.resize(np.arange(count), -(-count // 32) * 32))
  arrays = padded.values, padded.lengths, padded.observed
  nll, quantiles = jax.device_get(network_prediction(*network.of(seed), *arrays))
  return nll[:count], quantiles[:, :count]


# ------------------------------------------------------------------------------------------- MCMC


@functools.partial(jax.jit, static_argnums=1)
def starts(key, length: int) -> jax.Array:
  """Accepted prior draws, `[m, 13]`, among which the walkers of every curve find their start."""
  return data.sample_accepted_curves(key, batch_size=NUM_STARTS, length=length).params


@functools.partial(jax.jit, static_argnums=(0, 1))
def mcmc(config, num_steps: int, keys, seen, candidates) -> jax.Array:
  """Posterior samples `[n, s, 13]` of n curves at once, given `seen[n, observed]`."""
  length, kept = config.length, num_steps - num_steps // 2

  def one(key, seen):
    start_key, chain_key = jax.random.split(key)
    likelihood = functools.partial(uncertainty.learning_curve_log_likelihood, length=length)
    weights = jax.vmap(likelihood, (0, None))(candidates, seen)
    walkers = samplers.initial_walkers(
      start_key, candidates, weights, num_walkers=config.num_walkers
    )
    return samplers.affine_invariant_mcmc(
      chain_key,
      lambda theta: uncertainty.learning_curve_log_density(theta, seen, length=length),
      walkers,
      num_steps=num_steps,
      burn_in=num_steps // 2,
      # A hundred steps of the ensemble say as much as all: neighbors are nearly the same.
      thin=max(1, kept // 100),
    ).samples

  return jax.vmap(one)(keys, seen)


@jax.jit
@jax.vmap
def mcmc_prediction(key, samples, values, length) -> tuple[jax.Array, jax.Array]:
  """NLL of the last value of every curve, `[n]`, and its quantiles, `[n, 3]`."""
  log_probs = uncertainty.curve_predictive_log_prob(samples, values, length=len(values))
  means = uncertainty.combined_curve(samples, length=len(values))[:, length - 1]
  noisy = means + jnp.exp(samples[:, -1]) * jax.random.normal(key, means.shape)
  return -log_probs[length - 1], jnp.quantile(noisy, jnp.array(QUANTILES))


def predict_by_mcmc(config, mesh, num_steps: int, curves: Curves, keys, candidates):
  """`mcmc_prediction` of curves of which the same number of steps is seen."""
  seen = curves.values[:, : curves.observed[0]]
  samples = mcmc(config, num_steps, *training.shard_batch((keys, seen), mesh), candidates)
  return jax.device_get(mcmc_prediction(keys, samples, curves.values, curves.lengths))


def score_mcmc(config, mesh, curves: Curves, key) -> dict[str, float]:
  """The longest chain on real curves, which are grouped by the number of seen steps."""
  candidates = starts(key, config.length)
  nll, bands = np.zeros(len(curves.values)), np.zeros((len(curves.values), 3))
  for count in np.unique(curves.observed):
    rows = np.flatnonzero(curves.observed == count)
    # Whole shares for every device, and sizes that repeat; the repeated curves are dropped again.
    share = _SHARE * mesh.shape["data"]
    padded = np.resize(rows, -(-len(rows) // share) * share)
    keys = jax.random.split(jax.random.fold_in(key, int(count)), len(padded))
    group = curves.rows(padded)
    found = predict_by_mcmc(config, mesh, max(config.mcmc_steps), group, keys, candidates)
    nll[rows], bands[rows] = (array[: len(rows)] for array in found)
  return scores(curves.last, nll, *bands.T)


# --------------------------------------------------------------------------------- simple baselines


def scores(last, nll, low, median, high) -> dict[str, float]:
  """The scores of one method on the last values of curves."""
  return {
    "NLL": np.mean(nll),
    "absolute error": np.mean(np.abs(median - last)),
    "80% coverage": np.mean((low <= last) & (last <= high)),
  }


def gaussian_baselines(test: Curves, rest: Curves) -> dict[str, dict[str, float]]:
  """Last value and least-squares power law, with Gaussian errors measured on other data sets."""
  rows = {}
  # A tenth of the other curves fixes the spread of a fit's errors to two digits; all of them would
  # take minutes.
  few = rest.rows(slice(None, None, max(1, len(rest.lengths) // 300)))

  def guesses(predict, curves):
    seen = zip(curves.values, curves.observed, curves.lengths)
    return np.array([predict(values[:count], length) for values, count, length in seen])

  for name, predict, known in (
    ("last value", lambda seen, length: seen[-1], rest),
    ("power law", power_law, few),
  ):
    guess, errors = guesses(predict, test), known.last - guesses(predict, known)
    for method, bias in ((name, 0.0), (f"{name}, bias removed", errors.mean())):
      mean, std = guess + bias, np.sqrt(np.mean((errors - bias) ** 2))
      low, high = stats.norm.interval(0.8, mean, std)
      rows[method] = scores(test.last, -stats.norm.logpdf(test.last, mean, std), low, mean, high)
  return rows


def power_law(seen: np.ndarray, length: int) -> float:
  """c - a t^-alpha by bounded least squares from several starts; accuracies end within [0, 1]."""
  steps = np.arange(1, len(seen) + 1)

  def residual(theta):
    c, a, alpha = theta
    return c - a * steps**-alpha - seen

  bounds = ([0.0, -1.0, 0.0], [1.0, 1.0, 10.0])
  fits = []
  for alpha in (0.3, 1.0, 3.0):
    # For a fixed exponent the other two are linear.
    design = np.stack([np.ones_like(steps, float), -(steps**-alpha)], 1)
    c, a = np.linalg.lstsq(design, seen, rcond=None)[0]
    guess = np.clip([c, a, alpha], np.add(bounds[0], 1e-6), np.subtract(bounds[1], 1e-6))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
      fits.append(optimize.least_squares(residual, guess, bounds=bounds, max_nfev=200))
  c, a, alpha = min(fits, key=lambda fit: fit.cost).x
  return c - a * length**-alpha
