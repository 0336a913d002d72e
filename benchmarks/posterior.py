"""GP posterior of a new data set: one forward pass beside NUTS and a GP fitted with restarts.

The first run trains the network on contexts of the sizes that are timed, until its likelihood is
that of the peers (about a quarter of an hour); later ones load it from .cache.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.peers import gp
from benchmarks.prior_fitting import trained
from benchmarks.scores import compare_scores, record
from jaxlab import algorithms, losses, models, samplers

PACKAGES = ("blackjax", "scikit-learn")
_GROUP = "30 to 39 points, unknown hyper-parameters, 10 queries"
_OURS, _ESTIMATOR = "PFN, one forward pass", "PFNRegressor, fit and log_prob"
_NUTS, _SKLEARN = "NUTS, 4 chains x (500 + 500)", "scikit-learn GP, 5 restarts"
_UNIT = "data set"
ROWS = (
  Row(_GROUP, _OURS, _NUTS, goal=200.0, unit=_UNIT),
  Row(_GROUP, _OURS, _SKLEARN, unit=_UNIT),
  Row(_GROUP, _ESTIMATOR, _NUTS, unit=_UNIT),
  Row(_GROUP, _ESTIMATOR, _SKLEARN, unit=_UNIT),
)
_NUM_QUERIES, _MIN_CONTEXT, _MAX_CONTEXT, _BUCKET = 10, 30, 39, 64
_GAMMAS = dict(lengthscale_gamma=(3.0, 12.0), outputscale_gamma=(3.0, 3.0), noise_gamma=(1.1, 20.0))


def run(quick: bool) -> Iterator[dict[str, Any]]:
  mesh = measure.start(divides=64)
  network = _network(mesh, quick=quick)
  data_sets = _data_sets(count=2 if quick else 40)
  methods = {
    _OURS: _forward(network),
    _ESTIMATOR: lambda d: models.PFNRegressor(network).fit(d.x, d.y).log_prob(d.x_query, d.y_query),
    _NUTS: gp.nuts(list(_GAMMAS.values()), num_steps=10 if quick else 500, max_points=_MAX_CONTEXT),
    _SKLEARN: gp.maximum_likelihood,
  }
  scores, functions = record(methods, data_sets)
  times = measure.interleave(functions, quick=quick, repetitions=len(data_sets), min_seconds=0.05)
  for row in ROWS:
    yield measure.result(row, times, **compare_scores(row, scores))


def _prior(num_points: int) -> Callable[..., samplers.PriorBatch]:
  return functools.partial(samplers.gp_hyper_prior, batch_size=1, num_points=num_points, **_GAMMAS)


def _network(mesh: jax.sharding.Mesh, *, quick: bool) -> models.TrainedPFN:
  """A network fitted to the prior, trained once and kept."""
  prior_fn = _prior(_BUCKET)
  # The noise may have a hundredth of the prior's spread: bars must be narrow and reach far.
  num_bars = 10 if quick else 500
  borders = functools.partial(algorithms.prior_bar_borders, prior_fn=prior_fn, num_bars=num_bars)
  borders = 2 * jax.jit(borders)(jax.random.key(0))
  size = (
    dict(embed_dim=16, num_layers=1, num_heads=2) if quick else dict(embed_dim=64, num_layers=3)
  )
  module = models.PFN(num_bars, **size)
  params = trained(
    f"gp_hyper_near-{'quick' if quick else 'full'}",
    module,
    prior_fn,
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=4 if quick else 8000,
    warmup_fraction=0.1,
    min_context=_MIN_CONTEXT,
    max_context=_MAX_CONTEXT + 1,
    mesh=mesh,
  )
  task = models.PFNTask(num_features=1, input_scaling="none", target_scaling="none")
  return models.TrainedPFN(module, jax.tree.map(jnp.asarray, params), task, borders)


def _data_sets(count: int) -> list[gp.DataSet]:
  """Draws of the prior; their sizes differ, as those of real data do."""
  prior_fn = _prior(_MAX_CONTEXT + _NUM_QUERIES)
  keys = jax.random.split(jax.random.key(1), count)
  draws = jax.jit(lambda keys: samplers.draw_data_sets(keys, prior_fn, one_by_one=True))(keys)
  sizes = _MIN_CONTEXT + np.arange(count) % (_MAX_CONTEXT + 1 - _MIN_CONTEXT)
  return [
    gp.DataSet(x[:n], y[:n], x[n : n + _NUM_QUERIES], y[n : n + _NUM_QUERIES])
    for x, y, n in zip(np.asarray(draws.x), np.asarray(draws.y), sizes)
  ]


def _forward(network: models.TrainedPFN) -> Callable[[gp.DataSet], np.ndarray]:
  """One compiled program for all data sets of up to 64 points."""

  @jax.jit
  def log_probs(x, y, num_context):
    logits = network.module.apply({"params": network.params}, x[None], y[None], num_context)[0]
    return -losses.bar_nll(logits, y, network.borders)

  def method(data):
    x = gp.padded(np.concatenate([data.x, data.x_query]), _BUCKET)
    y = gp.padded(np.concatenate([data.y, data.y_query]), _BUCKET)
    n = len(data.y)
    return np.asarray(log_probs(x, y, np.int32(n)))[n : n + _NUM_QUERIES]

  return method


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
