"""Learning curves: LC-PFN's last step of a partial curve beside MCMC by emcee on the same model.

One curve is compared on one core, many curves on all cores: both samplers then work on one curve
per core, and the network on its share of the batch. The first run trains the network (some
minutes); later ones load it from .cache.
"""

import functools
import itertools
import multiprocessing
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
from jaxlab import data, losses, models, samplers, training, uncertainty

PACKAGES = ("emcee",)
_LENGTH, _OBSERVED, _BATCH = 30, 12, 1000
_NUM_WALKERS, _CHAIN = 100, dict(num_steps=2000, burn_in=500, thin=15)
_GROUP = f"{_OBSERVED} of {_LENGTH} steps seen, density of the last"
_ONE, _MANY = "LC-PFN, one curve", f"LC-PFN, {_BATCH:,} curves at once"
_EMCEE = f"emcee, {_NUM_WALKERS} walkers x {_CHAIN['num_steps']:,}"
_OWN = "affine_invariant_mcmc, the same"
_ALL = ", all cores"
ROWS = (
  Row(_GROUP, _ONE, _EMCEE, goal=1000.0, unit="curve"),
  Row(_GROUP, _MANY, _EMCEE + _ALL, goal=1000.0, unit="curve"),
  Row(_GROUP, _OWN, _EMCEE, unit="curve"),
  Row(_GROUP, _MANY, _OWN + _ALL, unit="curve"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  mesh = measure.start(divides=64)
  log_prob = _network(mesh, quick=quick)
  cores = mesh.size
  num_curves = cores if quick else 32
  chain = dict(num_steps=20, burn_in=5, thin=1) if quick else _CHAIN
  draw = functools.partial(data.sample_learning_curves, length=_LENGTH)
  curves = np.asarray(draw(jax.random.key(1), batch_size=num_curves).y)
  many = training.shard_batch(draw(jax.random.key(2), batch_size=_BATCH).y, mesh)
  problems = [(seed, *arrays) for seed, arrays in enumerate(zip(curves, _starts(curves)))]
  emcee = functools.partial(_last_step_by_emcee, chain)
  own = _own_sampler(chain)
  methods = {
    _ONE: lambda problem: log_prob(problem[1][None]),
    _EMCEE: emcee,
    _OWN: lambda problem: own(*(np.asarray(field)[None] for field in problem)),
  }
  scores, functions = record(methods, problems)
  turns = itertools.cycle(problems)
  arrays = (np.stack([problem[i] for problem in problems]) for i in range(3))
  sharded = training.shard_batch(tuple(arrays), mesh)
  with multiprocessing.get_context("spawn").Pool(cores) as pool:
    functions |= {
      _MANY: Timed(lambda: log_prob(many), _BATCH),
      _EMCEE + _ALL: Timed(lambda: pool.map(emcee, itertools.islice(turns, cores)), cores),
      _OWN + _ALL: Timed(lambda: own(*sharded), num_curves),
    }
    times = measure.interleave(functions, quick=quick, repetitions=num_curves, min_seconds=0.05)
  # The same curves with the same seeds, whether one or many at once.
  for name, alone in ((_MANY, _ONE), (_EMCEE + _ALL, _EMCEE), (_OWN + _ALL, _OWN)):
    scores[name] = scores[alone]
  largest = max(_density_difference(values, walkers) for _, values, walkers in problems)
  same = {"the densities of both samplers agree to 1e-3": largest < 1e-3}
  for row in ROWS:
    comparison = compare_scores(row, scores)
    yield measure.result(row, times, checks=comparison["checks"] | same, notes=comparison["notes"])


def _last_step_by_emcee(chain: dict[str, int], problem) -> float:
  """A function of the module, so that another process can import it."""
  return last_step_by_emcee(*problem, num_observed=_OBSERVED, **chain)


def _network(mesh: jax.sharding.Mesh, *, quick: bool) -> Callable[[np.ndarray], jax.Array]:
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
  # The seen steps and the last one: other queries would cost time and change nothing.
  columns = np.array([*range(_OBSERVED), _LENGTH - 1])
  steps = (columns + 1).astype(np.float32)[:, None]

  @jax.jit
  def log_prob(values):
    values = values[:, columns]
    x = jnp.broadcast_to(steps, (*values.shape, 1))
    logits = module.apply({"params": params}, x, values, _OBSERVED)
    return -losses.bar_nll(logits[:, -1], values[:, -1], borders)

  return log_prob


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
  """The same for curves `[n, 30]` at once by our sampler, compiled: `[n]`."""

  def log_prob(seed, values, walkers):
    density = functools.partial(
      uncertainty.learning_curve_log_density, values=values[:_OBSERVED], length=_LENGTH
    )
    key = jax.random.key(seed)
    samples = samplers.affine_invariant_mcmc(key, density, walkers, **chain).samples
    return uncertainty.curve_predictive_log_prob(samples, values, length=_LENGTH)[-1]

  return jax.jit(jax.vmap(log_prob))


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
