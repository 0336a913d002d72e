"""What the learning-curve network is compared with: MCMC, last value, a fitted power law."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from jaxlab import data, samplers, training, uncertainty

_SHARE = 16  # Real curves of one device in one compiled chain.


def starts(config, key) -> jax.Array:
  """Accepted prior draws, `[m, 13]`, among which the walkers of every curve find their start."""
  draw = functools.partial(
    data.sample_accepted_curves, batch_size=config.num_starts, length=config.length
  )
  return jax.jit(draw)(key).params


@functools.cache
def mcmc_sampler(config, observed: int, num_steps: int):
  """A compiled `(keys[n], seen[n, observed], starts) -> samples[n, s, 13]` for n curves at once."""

  def one(key, seen, candidates):
    start_key, chain_key = jax.random.split(key)
    likelihood = functools.partial(uncertainty.learning_curve_log_likelihood, length=config.length)
    weights = jax.vmap(likelihood, (0, None))(candidates, seen)
    walkers = samplers.initial_walkers(
      start_key, candidates, weights, num_walkers=config.num_walkers
    )
    kept = num_steps - num_steps // 2
    result = samplers.affine_invariant_mcmc(
      chain_key,
      lambda theta: uncertainty.learning_curve_log_density(theta, seen, length=config.length),
      walkers,
      num_steps=num_steps,
      burn_in=num_steps // 2,
      # A hundred steps of the ensemble say as much as all: neighbors are nearly the same.
      thin=max(1, kept // 100),
    )
    return result.samples

  return jax.jit(jax.vmap(one, (0, 0, None)))


@jax.jit
@jax.vmap
def last_step_log_probs(samples: jax.Array, values: jax.Array) -> jax.Array:
  """Log predictive density of the last value of every curve."""
  return uncertainty.curve_predictive_log_prob(samples, values, length=values.shape[-1])[-1]


def scores(last, *, nll, low, median, high) -> dict[str, float]:
  """The scores of one method on the last values of real curves."""
  return {
    "NLL": float(np.mean(nll)),
    "absolute error": float(np.mean(np.abs(median - last))),
    "80% coverage": float(np.mean((low <= last) & (last <= high))),
  }


def mcmc_on_real(config, mesh, values, lengths, observed, key) -> dict[str, float]:
  """The longest chain on real curves, which are grouped by the number of seen steps."""
  candidates = starts(config, key)
  last = values[np.arange(len(values)), lengths - 1]
  nll, bands = np.zeros(len(values)), np.zeros((3, len(values)))

  @jax.jit
  @jax.vmap
  def summary(key, samples, last, length):
    means = uncertainty.combined_curve(samples, length=config.length)[:, length - 1]
    std = jnp.exp(samples[:, -1])
    log_probs = jax.scipy.stats.norm.logpdf(last, means, std)
    noisy = means + std * jax.random.normal(key, means.shape)
    nll = jnp.log(len(samples)) - jax.nn.logsumexp(log_probs)
    return nll, jnp.quantile(noisy, jnp.array([0.1, 0.5, 0.9]))

  for count in np.unique(observed):
    rows = np.flatnonzero(observed == count)
    # Whole shares for every device, and sizes that repeat; the repeated curves are dropped again.
    share = _SHARE * mesh.shape["data"]
    padded = np.resize(rows, -(-len(rows) // share) * share)
    keys = jax.random.split(jax.random.fold_in(key, int(count)), len(padded))
    inputs = training.shard_batch((keys, values[padded, :count]), mesh)
    samples = mcmc_sampler(config, int(count), max(config.mcmc_steps))(*inputs, candidates)
    group = summary(keys, samples, jnp.asarray(last[padded]), jnp.asarray(lengths[padded]))
    nll[rows] = np.asarray(group[0])[: len(rows)]
    bands[:, rows] = np.asarray(group[1]).T[:, : len(rows)]
  low, median, high = bands
  return scores(last, nll=nll, low=low, median=median, high=high)


def gaussian_baselines(values, lengths, observed, *, test, rest) -> dict[str, dict[str, float]]:
  """Last value and least-squares power law, with Gaussian errors measured on other data sets."""
  last = values[np.arange(len(values)), lengths - 1]
  rows = {}
  # A tenth of the other curves fixes the spread of a fit's errors to two digits; all of them would
  # take minutes.
  few = rest[:: max(1, len(rest) // 300)]
  for name, predict, known in (("last value", _last_seen, rest), ("power law", power_law, few)):
    guess = np.array([predict(values[i, : observed[i]], lengths[i]) for i in test])
    errors = last[known] - np.array([predict(values[i, : observed[i]], lengths[i]) for i in known])
    for method, bias in ((name, 0.0), (f"{name}, bias removed", errors.mean())):
      mean, std = guess + bias, np.sqrt(np.mean((errors - bias) ** 2))
      low, high = stats.norm.interval(0.8, mean, std)
      nll = -stats.norm.logpdf(last[test], mean, std)
      rows[method] = scores(last[test], nll=nll, low=low, median=mean, high=high)
  return rows


def _last_seen(seen: np.ndarray, length: int) -> float:
  return seen[-1]


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
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", RuntimeWarning)
      fits.append(optimize.least_squares(residual, guess, bounds=bounds, max_nfev=200))
  c, a, alpha = min(fits, key=lambda fit: fit.cost).x
  return c - a * length**-alpha


def increment_spread(values: np.ndarray, lengths: np.ndarray) -> dict[str, jax.Array]:
  """Mean and std of y[t + d] - y[t] over real curves, by distance d; what last value assumes."""
  length = values.shape[1]
  bias, std = np.zeros(length), np.ones(length)
  for ahead in range(1, length):
    steps = values[:, ahead:] - values[:, :-ahead]
    inside = np.arange(length - ahead)[None] + ahead < lengths[:, None]
    if inside.sum() > 1:
      bias[ahead], std[ahead] = steps[inside].mean(), steps[inside].std() + 1e-6
  return {"bias": jnp.asarray(bias, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
