"""Losses: bytes per second of the bar distribution's loss beside those of a plain copy."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import losses, training

PACKAGES = ()
_NUM_TARGETS, _NUM_BARS = 1_000_000, 100
_GROUPS = ("one device", "one device per core")
ROWS = tuple(
  Row(f"bar_nll of 1e6 x 100 logits, {group}", ours, peer, goal=0.5, unit="byte")
  for group in _GROUPS
  for ours in ("forward", "gradient")
  for peer in ("jitted copy", "np.copyto")
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  num_targets = 10_000 if quick else _NUM_TARGETS
  mesh = measure.start(divides=num_targets)
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((num_targets, _NUM_BARS), np.float32)
  targets = rng.standard_normal(num_targets, np.float32)
  borders = np.linspace(-3.0, 3.0, _NUM_BARS + 1, dtype=np.float32)

  def forward(logits, targets):
    return losses.bar_nll(logits, targets, borders)

  def gradient(logits, targets):
    return jax.grad(lambda x: forward(x, targets).sum())(logits)

  # Bytes that must move: logits are read once, and one loss per target or one gradient per logit is
  # written once. A program that reads its input twice or stores intermediates is slower.
  moved = {
    "forward": logits.nbytes + 2 * targets.nbytes,
    "gradient": 2 * logits.nbytes + targets.nbytes,
    "jitted copy": 2 * logits.nbytes,
    "np.copyto": 2 * logits.nbytes,
  }
  destination = np.zeros_like(logits)
  for group in _GROUPS:
    if group == "one device":
      inputs = jax.device_put((logits, targets))
      compiled = jax.jit
    else:
      inputs = training.shard_batch((logits, targets), mesh)

      def compiled(fn):
        return training.data_parallel(fn, mesh, replicated_argnums=(), sharded_outputs=True)

    functions = {
      "forward": functools.partial(compiled(forward), *inputs),
      "gradient": functools.partial(compiled(gradient), *inputs),
      "jitted copy": functools.partial(compiled(lambda x, _: jnp.copy(x)), *inputs),
      "np.copyto": lambda: np.copyto(destination, logits),
    }
    times = measure.interleave(
      {name: Timed(fn, moved[name]) for name, fn in functions.items()}, quick=quick
    )
    for row in ROWS:
      if row.group.endswith(group):
        yield measure.result(row, times)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
