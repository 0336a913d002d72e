"""Displacement scores of 10,000 pairs: one pass beside its bytes, NumPy, and all inner products."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.roofline import least_work
from jaxlab import metrics

PACKAGES = ()
_NUM_PAIRS, _LENGTH, _DIM = 10_000, 32, 64
# Beside its arguments a pass may hold a few sums of states of each pair, in float32, and masks.
_BYTES_PER_PAIR = 4 * 4 * _DIM + 4 * _LENGTH
_GROUP = f"{_NUM_PAIRS:,} pairs of {_LENGTH} states of {_DIM}"
_OURS, _ALL = "centered_hidden_similarity, jitted", "with edit distance and last states"
_LEAST, _PRODUCTS, _PEER = "the bytes alone", "inner products of all states", "NumPy"
ROWS = (
  Row(_GROUP, _OURS, _LEAST, goal=0.5, unit="pair"),
  Row(_GROUP, _OURS, _PEER, goal=1.0, unit="pair"),
  Row(_GROUP, _OURS, _PRODUCTS, unit="pair"),
  Row(_GROUP, _ALL, _LEAST, unit="pair"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  num_pairs = 100 if quick else _NUM_PAIRS
  states, tokens = _arrays(num_pairs)
  programs = {
    _OURS: jax.jit(functools.partial(metrics.centered_hidden_similarity, normalize_length=True)),
    _ALL: jax.jit(_all_scores),
    _PRODUCTS: jax.jit(_by_products),
  }
  arguments = {_OURS: states, _ALL: (*states, *tokens), _PRODUCTS: states}
  moved = sum(x.nbytes for x in states)
  functions = {name: functools.partial(f, *arguments[name]) for name, f in programs.items()}
  functions[_LEAST] = least_work(programs[_OURS], *states, moved=moved)
  functions[_PEER] = _numpy(states)
  times = measure.interleave(
    {name: Timed(call, num_pairs) for name, call in functions.items()}, quick=quick
  )
  held = {
    name: f.lower(*arguments[name]).compile().memory_analysis().temp_size_in_bytes / num_pairs
    for name, f in programs.items()
  }
  expected = functions[_PEER]()
  agree = {
    name: np.allclose(np.asarray(functions[name]()), expected, rtol=1e-3, atol=1e-3)
    for name in (_OURS, _PRODUCTS)
  }
  checks = {
    "the scores of NumPy and of all inner products to 1e-3": all(agree.values()),
    f"at most {_BYTES_PER_PAIR} bytes a pair beside the arguments": held[_OURS] <= _BYTES_PER_PAIR,
  }
  for row in ROWS:
    notes = {f"bytes a pair, {name}": held[name] for name in (row.ours, row.peer) if name in held}
    yield measure.result(row, times, checks=checks if row.ours == _OURS else None, notes=notes)


def _arrays(num_pairs: int):
  """Hidden states and masks of both responses; their tokens and lengths."""
  rng = np.random.default_rng(0)
  shape = (num_pairs, _LENGTH)
  hidden = [rng.standard_normal((*shape, _DIM), np.float32) for _ in range(2)]
  lengths = [rng.integers(1, _LENGTH - 8, num_pairs, np.int32) for _ in range(2)]
  places = np.arange(_LENGTH)[None]
  masks = [(places >= 8) & (places < 8 + n[:, None]) for n in lengths]
  tokens = [rng.integers(0, 50, shape, np.int32) for _ in range(2)]
  return jax.device_put(((*hidden, *masks), (tokens[0], lengths[0], tokens[1], lengths[1])))


def _all_scores(chosen, rejected, chosen_mask, rejected_mask, *tokens):
  states = chosen, rejected, chosen_mask, rejected_mask
  return (
    metrics.centered_hidden_similarity(*states),
    metrics.centered_hidden_similarity(*states, normalize_length=True),
    metrics.last_hidden_similarity(*states),
    metrics.normalized_edit_distance(*tokens),
  )


def _by_products(chosen, rejected, chosen_mask, rejected_mask):
  """The same score as a masked mean of the inner products of all pairs of states."""

  def mean(left, right, left_mask, right_mask):
    products = jnp.einsum("ntd,nud->ntu", left[:, :-1], right[:, :-1])
    used = left_mask[:, 1:, None] & right_mask[:, None, 1:]
    return jnp.sum(jnp.where(used, products, 0.0), axis=(1, 2)) / jnp.sum(used, axis=(1, 2))

  across = mean(chosen, rejected, chosen_mask, rejected_mask)
  return across - mean(chosen, chosen, chosen_mask, chosen_mask)


def _numpy(states):
  chosen, rejected, chosen_mask, rejected_mask = map(np.asarray, states)

  def mean(hidden, mask):
    used = mask[:, 1:].astype(np.float32)
    return (used[:, None] @ hidden[:, :-1])[:, 0] / used.sum(1, keepdims=True)

  def call():
    ours, others = mean(chosen, chosen_mask), mean(rejected, rejected_mask)
    return (ours * (others - ours)).sum(1)

  return call


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
