"""The parametric learning-curve model in NumPy, for all walkers at once, and emcee on it."""

import functools
import math

import numpy as np

from jaxlab import uncertainty
from jaxlab.uncertainty.learning_curves import CURVE_COMPONENTS, LOG_NOISE_PRIOR, WEIGHT_PRIOR


def last_step_by_emcee(
  seed: int,
  values: np.ndarray,
  walkers: np.ndarray,
  *,
  num_observed: int,
  num_steps: int,
  burn_in: int,
  thin: int,
) -> float:
  """Samples the parameters of one curve; returns the log predictive density of its last value."""
  import emcee

  length = len(values)
  values, walkers = values.astype(np.float64), walkers.astype(np.float64)
  sampler = emcee.EnsembleSampler(
    *walkers.shape, log_density, args=(values[:num_observed], length), vectorize=True
  )
  sampler.random_state = np.random.RandomState(seed).get_state()
  sampler.run_mcmc(walkers, num_steps)
  samples = sampler.get_chain(discard=burn_in, thin=thin, flat=True)
  z = (values[-1] - _curves(samples, length)[:, -1]) * np.exp(-samples[:, -1])
  log_probs = -0.5 * (z**2 + math.log(2 * math.pi)) - samples[:, -1]
  return np.logaddexp.reduce(log_probs) - math.log(len(log_probs))


def log_density(params: np.ndarray, seen: np.ndarray, length: int) -> np.ndarray:
  """`uncertainty.learning_curve_log_density` of many walkers `[w, 13]`, as emcee expects it."""
  log_std = params[:, -1]
  with np.errstate(all="ignore"):
    curves = _curves(params, length)
    z = (seen - curves[:, : len(seen)]) * np.exp(-log_std)[:, None]
    log_prob = -0.5 * (z**2).sum(1) - len(seen) * (log_std + 0.5 * math.log(2 * math.pi))
    log_prob += _log_prior(params)
  inside = ((curves >= 0) & (curves <= 1)).all(1) & (curves[:, -1] > curves[:, 0])
  return np.where(inside & ~np.isnan(log_prob), log_prob, -np.inf)


def _curves(params: np.ndarray, length: int) -> np.ndarray:
  x = np.arange(1, length + 1)
  c, a, alpha, c2, a2, end, begin, k, delta, *weights, _ = params.T[..., None]
  pow3 = c - a * np.exp(-alpha * np.log(x))
  ilog2 = c2 - a2 / np.log1p(x)
  janoschek = end - (end - begin) * np.exp(-k * np.exp(delta * np.log(x)))
  return weights[0] * pow3 + weights[1] * ilog2 + weights[2] * janoschek


@functools.cache
def _priors() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """kind -> columns of the parameters and the two constants of their priors."""
  families = [p for name in CURVE_COMPONENTS for p in uncertainty.curve_priors(name)]
  priors = [*families, *[WEIGHT_PRIOR] * len(CURVE_COMPONENTS), LOG_NOISE_PRIOR]
  columns = {kind: [i for i, p in enumerate(priors) if p.kind == kind] for kind, *_ in priors}
  return {
    kind: (
      np.array(indices),
      np.array([priors[i].first for i in indices]),
      np.array([priors[i].second for i in indices]),
    )
    for kind, indices in columns.items()
  }


def _log_prior(params: np.ndarray) -> np.ndarray:
  columns, low, high = _priors()["uniform"]
  values = params[:, columns]
  inside = ((values >= low) & (values <= high)).all(1)
  total = np.where(inside, -np.log(high - low).sum(), -np.inf)
  for kind, logs in (("normal", 0.0), ("log_normal", 1.0)):
    columns, mean, std = _priors()[kind]
    values = params[:, columns]
    log_values = np.log(values) if logs else values
    z = (log_values - mean) / std
    constant = np.log(std).sum() + 0.5 * len(columns) * math.log(2 * math.pi)
    total = total - 0.5 * (z**2).sum(1) - constant - logs * log_values.sum(1)
  return total
