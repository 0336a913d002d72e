"""What the learning-curve network is set against: MCMC, last value, a fitted power law."""

import functools
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from jaxlab import data, samplers, training, uncertainty

_SHARE = 16  # Real curves of one device in one compiled chain.


def starts(config, key) -> tuple[jax.Array, jax.Array]:
  """Accepted prior draws, `[m, 13]`, among which the walkers of every curve find their start."""
  draw = functools.partial(
    data.sample_accepted_curves, batch_size=config.num_starts, length=config.length
  )
  return jax.jit(draw)(key).params


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
      # A hundred steps of the ensemble say as much as all: neighbours are nearly the same.
      thin=max(1, kept // 100),
    )
    return result.samples

  return jax.jit(jax.vmap(one, (0, 0, None)))


def last_step_log_prob(samples: jax.Array, values: jax.Array) -> jax.Array:
  """Log predictive density of the last value of one curve."""
  return uncertainty.curve_predictive_log_prob(samples, values, length=values.shape[-1])[-1]


def timed(fn, *arguments):
  """The result of a compiled call, and its seconds without the compilation."""
  jax.block_until_ready(fn(*arguments))
  start = time.perf_counter()
  result = jax.block_until_ready(fn(*arguments))
  return result, time.perf_counter() - start


def scores(last, *, nll, median, low, high, seconds) -> dict[str, float]:
  """The row of one method on real curves."""
  return {
    "NLL": float(np.mean(nll)),
    "absolute error": float(np.mean(np.abs(median - last))),
    "80% coverage": float(np.mean((low <= last) & (last <= high))),
    "seconds": seconds,
  }


def mcmc_on_real(config, context, values, lengths, observed, key) -> dict:
  """The longest chain on real curves, which are grouped by the number of seen steps."""
  num_steps = max(config.mcmc_steps)
  candidates = starts(config, key)
  last = values[np.arange(len(values)), lengths - 1]
  nll, bands = np.zeros(len(values)), np.zeros((3, len(values)))
  seconds = 0.0

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
    share = _SHARE * context.mesh.shape["data"]
    padded = np.resize(rows, -(-len(rows) // share) * share)
    keys = jax.random.split(jax.random.fold_in(key, int(count)), len(padded))
    sampler = mcmc_sampler(config, int(count), num_steps)
    inputs = training.shard_batch((keys, values[padded, :count]), context.mesh)
    compiled = sampler.lower(*inputs, candidates).compile()
    start = time.perf_counter()
    samples = jax.block_until_ready(compiled(*inputs, candidates))
    seconds += time.perf_counter() - start
    found = summary(keys, samples, jnp.asarray(last[padded]), jnp.asarray(lengths[padded]))
    nll[rows] = np.asarray(found[0])[: len(rows)]
    bands[:, rows] = np.asarray(found[1]).T[:, : len(rows)]
  low, median, high = bands
  return {
    f"MCMC {num_steps}": scores(
      last, nll=nll, median=median, low=low, high=high, seconds=seconds / len(values)
    )
  }


def gaussian_rivals(values, lengths, observed, *, test, rest) -> dict:
  """Last value and least-squares power law, with Gaussian errors measured on other data sets."""
  last = values[np.arange(len(values)), lengths - 1]
  rows = {}
  for name, predict in (("last value", _last_seen), ("power law", _power_law)):
    start = time.perf_counter()
    guess = np.array([predict(values[i, : observed[i]], lengths[i]) for i in test])
    seconds = (time.perf_counter() - start) / len(test)
    # A tenth of the other curves fixes the error's spread to two digits; all would cost minutes.
    known = rest if name == "last value" else rest[:: max(1, len(rest) // 300)]
    errors = last[known] - np.array([predict(values[i, : observed[i]], lengths[i]) for i in known])
    for suffix, bias in (("", 0.0), (", bias removed", errors.mean())):
      std = np.sqrt(np.mean((errors - bias) ** 2))
      mean = guess + bias
      rows[name + suffix] = scores(
        last[test],
        nll=-stats.norm.logpdf(last[test], mean, std),
        median=mean,
        low=mean + stats.norm.ppf(0.1) * std,
        high=mean + stats.norm.ppf(0.9) * std,
        seconds=seconds,
      )
  return rows


def _last_seen(seen: np.ndarray, length: int) -> float:
  return seen[-1]


def _power_law(seen: np.ndarray, length: int) -> float:
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
