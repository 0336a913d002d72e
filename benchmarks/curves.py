"""Learning curves: LC-PFN's last step of a partial curve beside MCMC by emcee on the same model.

The first run trains the network as the laptop preset of experiments.bayes.lc_pfn does (some
minutes); later ones load it from .cache.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.peers.curves import last_step_by_emcee, log_density
from benchmarks.prior_fitting import trained
from benchmarks.scores import compare_scores, record
from jaxlab import data, losses, models, samplers, uncertainty

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
  log_prob = _network(mesh, quick=quick)
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


def _network(mesh: jax.sharding.Mesh, *, quick: bool) -> Callable[[np.ndarray], np.ndarray]:
  """`values [b, 30] -> log density [b]` of the last one given the first, by a trained network."""
  draw = functools.partial(data.sample_learning_curves, length=_LENGTH)
  values = jax.jit(functools.partial(draw, batch_size=10_000))(jax.random.key(0)).y
  num_bars = 10 if quick else 200
  borders = uncertainty.bar_borders(values, num_bars)
  size = (
    dict(embed_dim=16, num_layers=1, num_heads=2) if quick else dict(embed_dim=64, num_layers=3)
  )
  module = models.PFN(
    num_bars,
    **size,
    input_shift=0.5 * (_LENGTH + 1),
    input_scale=(_LENGTH + 1) / np.sqrt(12.0),
    target_shift=0.5,
    target_scale=1 / np.sqrt(12.0),
  )
  params = trained(
    f"curves-{'quick' if quick else 'full'}",
    module,
    functools.partial(draw, batch_size=16),
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=4 if quick else 8000,
    warmup_fraction=0.25,
    min_context=1,
    mesh=mesh,
  )
  steps = jnp.arange(1, _LENGTH + 1, dtype=jnp.float32)[:, None]

  @jax.jit
  def log_prob(values):
    x = jnp.broadcast_to(steps, (*values.shape, 1))
    logits = module.apply({"params": params}, x, values, _OBSERVED)
    return -losses.bar_nll(logits[:, -1], values[:, -1], borders)

  return lambda values: np.asarray(log_prob(values))


def _starts(curves: np.ndarray) -> np.ndarray:
  """Walkers for every curve, `[curves, walkers, 13]`: prior draws resampled by likelihood."""
  draw = functools.partial(data.sample_accepted_curves, batch_size=5000, length=_LENGTH)
  pool = jax.jit(draw)(jax.random.key(3)).params
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
