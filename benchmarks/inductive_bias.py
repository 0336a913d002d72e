"""Inductive bias: 100,000 hypotheses in one program, beside the same steps in NumPy and SciPy.

Hypotheses are drawn from a Gaussian process that passes through the training points, a scaled
noncentral chi-square distribution is fitted to their errors by moments, and the surprisal of
smaller errors is read off.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import metrics, samplers

PACKAGES = ("scipy",)
_HYPOTHESES, _TRAIN, _TEST, _OUTPUTS, _DIM = 100_000, 64, 32, 2, 16
_JITTER = 1e-4
# Wanted errors, as shares of the mean.
_SHARES = np.linspace(0.2, 1.0, 9)
_GROUP = f"{_HYPOTHESES:,} hypotheses, {_TEST} points x {_OUTPUTS} outputs"
_GIVEN, _DRAWN = "one program, noise given", "one program, noise drawn"
_PEERS = {
  _GIVEN: "NumPy and SciPy, float64, noise given",
  _DRAWN: "NumPy and SciPy, float64, noise drawn",
}
ROWS = (
  Row(_GROUP, _GIVEN, _PEERS[_GIVEN], goal=1.0, unit="hypothesis"),
  Row(_GROUP, _DRAWN, _PEERS[_DRAWN], goal=1.0, unit="hypothesis"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  count = 2000 if quick else _HYPOTHESES
  rng = np.random.default_rng(0)
  task = _draw(rng)
  noise = rng.standard_normal((_TEST, _OUTPUTS, count))
  targets = _SHARES * np.mean(_errors_by_numpy(*task, noise))
  on_device = jax.device_put([x.astype(np.float32) for x in (*task, targets, noise)])
  programs = {_GIVEN: jax.jit(_surprisals), _DRAWN: jax.jit(_drawn_surprisals, static_argnums=6)}
  functions = {
    _GIVEN: functools.partial(programs[_GIVEN], *on_device),
    _DRAWN: functools.partial(programs[_DRAWN], *on_device[:-1], jax.random.key(0), count),
    _PEERS[_GIVEN]: functools.partial(_surprisals_by_scipy, *task, targets, noise),
    _PEERS[_DRAWN]: lambda: _surprisals_by_scipy(
      *task, targets, rng.standard_normal((_TEST, _OUTPUTS, count))
    ),
  }
  times = measure.interleave(
    {name: Timed(call, count) for name, call in functions.items()}, quick=quick, repetitions=9
  )
  expected = functions[_PEERS[_GIVEN]]()
  # Other draws have other moments; a third moment of few hypotheses is far from its mean.
  limits = {_GIVEN: 0.01, _DRAWN: 0.5 if quick else 0.1}
  for row in ROWS:
    found = np.asarray(functions[row.ours]())
    gap = np.max(np.abs(found - expected) / np.maximum(expected, 1.0))
    limit = limits[row.ours]
    noise_is = "other" if row.ours == _DRAWN else "the same"
    checks = {f"the peer's surprisals of {noise_is} noise, to {limit:.0%}": gap <= limit}
    notes = {
      "largest surprisal in nats, ours": found[0],
      "the peer's": expected[0],
      "largest relative difference": gap,
    }
    yield measure.result(row, times, checks=checks, notes=notes)


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
  """Training inputs and targets, test inputs and targets: a function of random points.

  Its values are larger than the prior expects, or the fit would have no noncentrality.
  """
  inputs = rng.uniform(-1, 1, (_TRAIN + _TEST, _DIM))
  outputs = 2 * np.sin(inputs @ rng.standard_normal((_DIM, _OUTPUTS)))
  return inputs[:_TRAIN], outputs[:_TRAIN], inputs[_TRAIN:], outputs[_TRAIN:]


def _surprisals(train_x, train_y, test_x, test_y, targets, noise):
  predictions = samplers.kernel_interpolants_from_noise(
    train_x, train_y, test_x, noise, jitter=_JITTER
  )
  return _tail(predictions, test_y, targets)


def _drawn_surprisals(train_x, train_y, test_x, test_y, targets, key, count):
  predictions = samplers.kernel_interpolants(
    key, train_x, train_y, test_x, num_samples=count, jitter=_JITTER
  )
  return _tail(predictions, test_y, targets)


def _tail(predictions, test_y, targets):
  law = metrics.noncentral_chi2_moments(metrics.hypothesis_errors(predictions, test_y))
  return metrics.noncentral_chi2_surprisal(targets, *(x[None] for x in law))


def _errors_by_numpy(train_x, train_y, test_x, test_y, noise):
  def kernel(a, b):
    return np.exp(-cdist(a, b, "sqeuclidean") / 2)

  gram = linalg.cho_factor(kernel(train_x, train_x) + _JITTER * np.eye(len(train_x)))
  cross = kernel(train_x, test_x)
  mean = cross.T @ linalg.cho_solve(gram, train_y)
  values, vectors = np.linalg.eigh(kernel(test_x, test_x) - cross.T @ linalg.cho_solve(gram, cross))
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  predictions = np.tensordot(root, noise, 1)
  predictions += (mean - test_y)[:, :, None]
  np.square(predictions, out=predictions)
  return predictions.mean(axis=(0, 1))


def _surprisals_by_scipy(train_x, train_y, test_x, test_y, targets, noise):
  errors = _errors_by_numpy(train_x, train_y, test_x, test_y, noise)
  mean, variance = errors.mean(), errors.var()
  # As ours, the third moment in units of variance² / mean: between 1.5 and 2 for such a law.
  third = np.clip(np.mean((errors - mean) ** 3) * mean / variance**2, 1.5 * 1.001, 2.0)
  root = np.sqrt(1 - third / 2)
  scale = variance / mean * (1 - root) / 2
  total = mean / scale
  nc = total * root / (1 - root)
  return -stats.ncx2.logcdf(targets, total - nc, nc, scale=scale)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
