"""Learning curves: LC-PFN's last step of a partial curve beside MCMC by emcee on the same model.

The first run trains the network as the experiment's laptop preset does (some minutes); later ones
load it from .cache.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.context import Context

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.peers.curves import last_step_by_emcee, log_density
from benchmarks.scores import compare_scores, record
from experiments.bayes import lc_pfn, lc_pfn_prior
from experiments.bayes import lc_pfn_rivals as baselines
from jaxlab import data, losses, samplers, uncertainty

PACKAGES = ("emcee",)
_LENGTH, _OBSERVED, _BATCH = 30, 12, 1000
_NUM_WALKERS, _CHAIN = 100, dict(num_steps=2000, burn_in=500, thin=15)
_GROUP = f"{_OBSERVED} of {_LENGTH} steps seen, density of the last"
_ONE, _MANY = "LC-PFN, one curve", f"LC-PFN, {_BATCH:,} curves at once"
_EMCEE = f"emcee, {_NUM_WALKERS} walkers x {_CHAIN['num_steps']:,}"
_OWN = "affine_invariant_mcmc, the same"
ROWS = (
  Row(_GROUP, _ONE, _EMCEE, goal=1000.0, unit="curve"),
  Row(_GROUP, _MANY, _EMCEE, goal=1000.0, unit="curve"),
  Row(_GROUP, _OWN, _EMCEE, unit="curve"),
  Row(_GROUP, _ONE, _OWN, unit="curve"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  mesh = measure.start(divides=64)
  preset = "smoke" if quick else "laptop"
  config = dataclasses.replace(lc_pfn.PRESETS[preset], length=_LENGTH)
  context = Context(measure.CACHE / f"curves-{preset}", jax.random.key(0), mesh=mesh)
  log_prob = _network(config, context)
  num_curves = 2 if quick else 30
  chain = dict(num_steps=20, burn_in=5, thin=1) if quick else _CHAIN
  draw = functools.partial(data.sample_learning_curves, length=_LENGTH)
  curves = np.asarray(draw(jax.random.key(1), batch_size=num_curves).y)
  many = np.asarray(draw(jax.random.key(2), batch_size=10 if quick else _BATCH).y)
  problems = [(seed, *arrays) for seed, arrays in enumerate(zip(curves, _starts(curves)))]
  methods = {
    _ONE: lambda problem: log_prob(problem[1][None]),
    _EMCEE: lambda problem: last_step_by_emcee(*problem, num_observed=_OBSERVED, **chain),
    _OWN: _own_sampler(chain),
  }
  scores, functions = record(methods, problems)
  functions[_MANY] = Timed(lambda: log_prob(many), len(many))
  times = measure.interleave(functions, quick=quick, repetitions=num_curves, min_seconds=0.05)
  scores[_MANY] = log_prob(curves)
  largest = max(_density_difference(values, walkers) for _, values, walkers in problems)
  same = {"the densities of both samplers agree to 1e-3": largest < 1e-3}
  for row in ROWS:
    comparison = compare_scores(row, scores)
    yield measure.result(row, times, checks=comparison["checks"] | same, notes=comparison["notes"])


def _network(config: lc_pfn.Config, context: Context) -> Callable[[np.ndarray], np.ndarray]:
  """`values [b, 30] -> log density [b]` of the last one given the first, by a trained network."""
  borders = lc_pfn_prior.curve_borders(config, context.key)
  trainer = lc_pfn_prior.curve_trainer(config, borders, context.mesh)
  params = jax.tree.map(jnp.asarray, trainer.train(context, "train", 0))
  predictor = lc_pfn_prior.Predictor(trainer.module, params, borders)

  @jax.jit
  def log_prob(values):
    logits = predictor.logits(values, jnp.int32(_OBSERVED))
    return -losses.bar_nll(logits[:, -1], values[:, -1], borders)

  return lambda values: np.asarray(log_prob(values))


def _starts(curves: np.ndarray) -> np.ndarray:
  """Walkers for every curve, `[curves, walkers, 13]`: prior draws resampled by likelihood."""
  pool = baselines.starts(lc_pfn.Config(length=_LENGTH), jax.random.key(3))
  likelihood = functools.partial(uncertainty.learning_curve_log_likelihood, length=_LENGTH)

  @jax.jit
  def start(key, values):
    weights = jax.vmap(likelihood, (0, None))(pool, values[:_OBSERVED])
    return samplers.initial_walkers(key, pool, weights, num_walkers=_NUM_WALKERS)

  keys = jax.random.split(jax.random.key(4), len(curves))
  return np.stack([start(key, values) for key, values in zip(keys, curves)])


def _own_sampler(chain: dict[str, int]):
  """The same by our sampler, compiled."""

  @jax.jit
  def log_prob(key, values, walkers):
    density = functools.partial(
      uncertainty.learning_curve_log_density, values=values[:_OBSERVED], length=_LENGTH
    )
    samples = samplers.affine_invariant_mcmc(key, density, walkers, **chain).samples
    return uncertainty.curve_predictive_log_prob(samples, values, length=_LENGTH)[-1]

  return lambda problem: np.asarray(log_prob(jax.random.key(problem[0]), *problem[1:]))


def _density_difference(values: np.ndarray, walkers: np.ndarray) -> float:
  """Largest relative difference between our density and emcee's at a curve's starting points."""
  seen = values[:_OBSERVED]
  ours = jax.vmap(
    lambda params: uncertainty.learning_curve_log_density(params, seen, length=_LENGTH)
  )(walkers)
  peers = log_density(walkers.astype(np.float64), seen.astype(np.float64), _LENGTH)
  return float(np.max(np.abs(np.asarray(ours) - peers) / np.maximum(1.0, np.abs(peers))))


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
