"""GP posterior of a new data set: one forward pass beside NUTS and a GP fitted with restarts.

The first run trains the network as the experiment's laptop preset does (some minutes); later ones
load it from .cache.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.context import Context

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.peers import gp
from benchmarks.scores import compare_scores, record
from experiments.bayes import pfn, pfn_hyper
from experiments.bayes.prior_training import draw_data_sets
from jaxlab import losses, models

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
_NUM_QUERIES, _MAX_CONTEXT, _BUCKET = 10, 39, 64


def run(quick: bool) -> Iterator[dict[str, Any]]:
  mesh = measure.start(divides=64)
  preset = "smoke" if quick else "laptop"
  config = pfn.PRESETS[preset]
  context = Context(measure.CACHE / f"gp_hyper-{preset}", jax.random.key(0), mesh=mesh)
  network = _trained(config, context)
  data_sets = _data_sets(config, count=2 if quick else 40)
  methods = {
    _OURS: _forward(network),
    _ESTIMATOR: lambda d: models.PFNRegressor(network).fit(d.x, d.y).log_prob(d.x_query, d.y_query),
    _NUTS: gp.nuts(config, num_steps=10 if quick else 500, max_points=_MAX_CONTEXT),
    _SKLEARN: gp.maximum_likelihood,
  }
  scores, functions = record(methods, data_sets)
  times = measure.interleave(functions, quick=quick, repetitions=len(data_sets), min_seconds=0.05)
  for row in ROWS:
    yield measure.result(row, times, **compare_scores(row, scores))


def _trained(config: pfn.Config, context: Context) -> models.TrainedPFN:
  """The network of the task gp_hyper, trained once and kept."""
  trainer, borders = pfn_hyper.hyper_trainer(config, context.key, context.mesh)
  params = jax.tree.map(jnp.asarray, trainer.train(context, "train", 0))
  task = models.PFNTask(num_features=1, input_scaling="none", target_scaling="none")
  return models.TrainedPFN(trainer.module, params, task, borders)


def _data_sets(config: pfn.Config, count: int) -> list[gp.DataSet]:
  """Draws of the prior, of different sizes, as real data have."""
  longer = dataclasses.replace(config, num_points=_MAX_CONTEXT + _NUM_QUERIES)
  draws = draw_data_sets(pfn_hyper.gp_hyper_prior(longer), jax.random.key(1), count)
  sizes = 30 + np.arange(count) % (_MAX_CONTEXT - 29)
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
