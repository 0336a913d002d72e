"""Distributions of a curve's last value, their calibration on other data sets, and baselines."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes.lc_pfn.networks import Curves
from jaxlab import data, losses, samplers, training, uncertainty

_KEPT = 100  # Steps that are kept of a chain; neighbors are nearly the same.
_SMALLEST_STD = 0.03  # Of a baseline's own spread, which a few smooth values would make 0.
# What calibration chooses among.
_BIASES = np.arange(-4, 13) / 100
_SCALES = 2.0 ** np.arange(-1.5, 2.5, 0.5)
_FLOORS = (0.003, 0.03, 0.1)


class Predictive(NamedTuple):
  """Distributions of n values: `values [n] -> log density [n]`, and their centers `[n]`."""

  log_prob: Callable[[np.ndarray], jax.Array]
  center: np.ndarray


def bars(logits, borders) -> Predictive:
  """The distributions of a network, `[n, K]`."""
  center = np.asarray(_medians(logits, borders))
  return Predictive(functools.partial(_bars_log_prob, logits, borders), center)


_medians = jax.jit(functools.partial(uncertainty.bar_quantile, q=0.5))


@jax.jit
def _bars_log_prob(logits, borders, values):
  return -losses.bar_nll(logits, values, borders)


def gaussians(means, stds) -> Predictive:
  """Equal mixtures of Gaussians, `[n, s]`."""
  return Predictive(functools.partial(_gaussians_log_prob, means, stds), np.median(means, axis=1))


@jax.jit
def _gaussians_log_prob(means, stds, values):
  log_probs = jax.scipy.stats.norm.logpdf(values[:, None], means, stds)
  return jax.nn.logsumexp(log_probs, axis=1) - jnp.log(means.shape[1])


def scores(methods: Mapping[str, Sequence[Predictive]], curves: Curves) -> dict[str, dict]:
  """NLL of the last values by method: "zero-shot NLL" and "calibrated NLL".

  The zero-shot score is that of a method's first variant. Calibration chooses a variant, and the
  bias, scale and floor of its densities, for each data set on the curves of all others.
  """
  last, groups, rows = curves.values[:, -1], curves.groups, {}
  for name, variants in methods.items():
    nll = np.concatenate([_adjusted(variant, last) for variant in variants])
    calibrated = np.zeros(len(last))
    for group in np.unique(groups):
      test = groups == group
      calibrated[test] = nll[nll[:, ~test].mean(1).argmin(), test]
    zero_shot = -np.asarray(variants[0].log_prob(last))
    rows[name] = {"zero-shot NLL": zero_shot.mean(), "calibrated NLL": calibrated.mean()}
  return rows


def _adjusted(predictive: Predictive, last: np.ndarray) -> np.ndarray:
  """NLL `[settings, n]` with every bias and scale, and a uniform density of every weight."""
  rows = []
  for bias, scale in itertools.product(_BIASES, _SCALES):
    values = predictive.center + (last - predictive.center - bias) / scale
    log_prob = np.asarray(predictive.log_prob(values.astype(np.float32))) - np.log(scale)
    rows += [-np.logaddexp(np.log1p(-w) + log_prob, np.log(w)) for w in _FLOORS]
  return np.stack(rows)


def baselines(curves: Curves) -> dict[str, list[Predictive]]:
  """The predictors that need no prior."""
  return {"last value": last_value(curves), "power law": power_law(curves)}


def last_value(curves: Curves) -> list[Predictive]:
  """The last seen value: a random walk with the seen increments, or a spread all curves share."""
  n, x = np.arange(len(curves.values)), curves.positions
  is_seen = np.arange(1, x.shape[1]) < curves.observed[:, None]
  squares = np.where(is_seen, np.diff(curves.values, axis=1), 0.0) ** 2
  ahead = (x[:, -1] - x[n, curves.observed - 1]) / (x[:, 1] - x[:, 0])
  rms = np.sqrt(squares.sum(1) / np.maximum(curves.observed - 1, 1) * ahead)
  return _with_spreads(curves.values[n, curves.observed - 1], rms)


def power_law(curves: Curves) -> list[Predictive]:
  """c - a t^-alpha by least squares: with the spread of its residuals, or one that all share."""
  is_seen = np.arange(curves.values.shape[1]) < curves.observed[:, None]

  def mean(array):
    return np.where(is_seen, array, 0.0).sum(-1, keepdims=True) / curves.observed[:, None]

  # For a fixed exponent the other two are linear.
  power = np.exp(-np.geomspace(0.05, 5.0, 60)[:, None, None] * curves.log_steps)
  power -= mean(power)
  center = mean(curves.values)
  y = curves.values - center
  a = np.clip(mean(power * y) / np.maximum(mean(power**2), 1e-12), -1.0, 1.0)
  errors, guesses = mean((y - a * power) ** 2)[..., 0], (center + a * power[..., -1:])[..., 0]
  best = errors.argmin(0), np.arange(len(y))
  return _with_spreads(np.clip(guesses[best], 0.0, 1.0), np.sqrt(errors[best]))


def _with_spreads(means, own) -> list[Predictive]:
  spreads = np.maximum(own, _SMALLEST_STD), np.full(len(means), 0.1)
  return [gaussians(means[:, None], spread[:, None]) for spread in spreads]


def mcmc(config, mesh, key, curves: Curves) -> dict[str, Predictive]:
  """A chain on the paper's prior per curve, and its first quarter; half of each is burnt.

  The walkers of a curve start at those of 5,000 accepted prior draws that suit what is seen of it.
  """
  seen = training.shard_batch(curves.values[:, : curves.observed[0]], mesh)
  means, stds = map(np.asarray, _chains(config, key, seen))
  return {
    name: gaussians(*(x[:, end // 2 : end].reshape(len(x), -1) for x in (means, stds)))
    for name, end in {"MCMC": _KEPT, "MCMC, a quarter": _KEPT // 4}.items()
  }


@functools.partial(jax.jit, static_argnums=0)
def _chains(config, key, seen) -> tuple[jax.Array, jax.Array]:
  """Means and stds of the last value of n curves, `[n, steps kept, walkers]`."""
  length, shape = config.length, (_KEPT, config.num_walkers)
  # Fresh curves are drawn by the key itself: a chain must not begin at their true parameters.
  prior_key, chains_key = jax.random.split(jax.random.fold_in(key, 2))
  candidates = data.sample_accepted_curves(prior_key, batch_size=5000, length=length).params

  def one(key, seen):
    start_key, chain_key = jax.random.split(key)
    likelihood = functools.partial(uncertainty.learning_curve_log_likelihood, length=length)
    weights = jax.vmap(likelihood, (0, None))(candidates, seen)
    samples = samplers.affine_invariant_mcmc(
      chain_key,
      lambda theta: uncertainty.learning_curve_log_density(theta, seen, length=length),
      samplers.initial_walkers(start_key, candidates, weights, num_walkers=config.num_walkers),
      num_steps=config.mcmc_steps,
      thin=config.mcmc_steps // _KEPT,
    ).samples
    last = uncertainty.combined_curve(samples, length=1, steps=(length,))
    return last.reshape(shape), jnp.exp(samples[:, -1]).reshape(shape)

  return jax.vmap(one)(jax.random.split(chains_key, len(seen)), seen)
