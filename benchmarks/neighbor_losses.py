"""Losses of neighbors of a large batch, in parts: beside all pairs at once, in time and memory."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import losses

PACKAGES = ()
_ROWS, _DIM, _CLASSES, _NEIGHBORS, _TEMPERATURE = 8192, 64, 10, 20, 0.1
_GROUP = f"{_ROWS:,} features of {_DIM}, loss and gradient"
_KNN, _CONTRASTIVE = f"leave_one_out_knn_loss, k {_NEIGHBORS}", "supervised_contrastive_loss"
_PEERS = {_KNN: "the same of all pairs at once", _CONTRASTIVE: "its pairs at once"}
# Parts may take some time, but no memory that grows with the pairs.
ROWS = tuple(Row(_GROUP, ours, peer, goal=0.5, unit="row") for ours, peer in _PEERS.items())


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  num_rows = 2048 if quick else _ROWS
  rng = np.random.default_rng(0)
  labels = rng.integers(0, _CLASSES, num_rows, np.int32)
  features = rng.standard_normal((_CLASSES, _DIM), np.float32)[labels]
  features += 2 * rng.standard_normal(features.shape, np.float32)
  arguments = jax.device_put((features, labels))
  programs = {name: jax.jit(_with_gradient(loss)) for name, loss in _LOSSES.items()}
  functions = {name: functools.partial(f, *arguments) for name, f in programs.items()}
  times = measure.interleave(
    {name: Timed(call, num_rows) for name, call in functions.items()}, quick=quick, repetitions=5
  )
  for row in ROWS:
    held = {name: _bytes(programs[name], num_rows) for name in (row.ours, row.peer)}
    growth = _bytes(programs[row.ours], 2 * num_rows) / held[row.ours]
    results = [jax.device_get(functions[name]()) for name in held]
    same = jax.tree.map(functools.partial(np.allclose, rtol=1e-3, atol=1e-5), *results)
    checks = {
      "values and gradients of all pairs, to 1e-3": all(jax.tree.leaves(same)),
      "twice the rows take at most twice the memory": growth <= 2,
    }
    notes = {f"bytes a row, {name}": value / num_rows for name, value in held.items()}
    notes["memory of twice the rows over that of these"] = growth
    yield measure.result(row, times, checks=checks, notes=notes)


def _bytes(program, num_rows: int) -> int:
  """What a program holds beside its arguments and results, by the compiler's plan."""
  shapes = ((num_rows, _DIM), np.float32), ((num_rows,), np.int32)
  arguments = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
  return program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def _with_gradient(loss):
  def both(features, labels):
    def total(features):
      values = loss(features, labels)
      return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(features)
    return values, gradient

  return both


def _similarities(features):
  units = features / jnp.linalg.norm(features, axis=1, keepdims=True)
  similarity = jnp.dot(units, units.T, precision="highest") / _TEMPERATURE
  return jnp.where(jnp.eye(len(features), dtype=bool), -jnp.inf, similarity)


def _knn_of_all_pairs(features, labels):
  similarity = _similarities(features)
  _, voters = jax.lax.top_k(jax.lax.stop_gradient(similarity), _NEIGHBORS)
  votes = jnp.take_along_axis(similarity, voters, axis=1)
  right = labels[voters] == labels[:, None]
  same = labels[:, None] == labels[None]
  nearest = jnp.max(jnp.where(same, similarity, -jnp.inf), axis=1)
  added = ~jnp.any(right, axis=1)
  votes = jnp.column_stack([votes, jnp.where(added, nearest, -jnp.inf)])
  right = jnp.column_stack([right, added])
  positive = jax.nn.logsumexp(jnp.where(right, votes, -jnp.inf), axis=1)
  return jax.nn.logsumexp(votes, axis=1) - positive


def _contrastive_of_all_pairs(features, labels):
  similarity = _similarities(features)
  others = labels[:, None] == labels[None]
  others &= ~jnp.eye(len(labels), dtype=bool)
  total = jnp.sum(jnp.where(others, similarity, 0.0), axis=1)
  return jax.nn.logsumexp(similarity, axis=1) - total / jnp.sum(others, axis=1)


_LOSSES = {
  _KNN: functools.partial(
    losses.leave_one_out_knn_loss, num_neighbors=_NEIGHBORS, temperature=_TEMPERATURE
  ),
  _CONTRASTIVE: functools.partial(losses.supervised_contrastive_loss, temperature=_TEMPERATURE),
  _PEERS[_KNN]: _knn_of_all_pairs,
  _PEERS[_CONTRASTIVE]: _contrastive_of_all_pairs,
}


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
