"""Losses of a million rows: bytes per second beside a copy, and beside what no loss can save."""

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
from jaxlab import losses

PACKAGES = ()
_NUM_ROWS, _NUM_CLASSES = 1_000_000, 100
_COPY = "jitted copy"
_PARTS = ("forward", "gradient")
# Name -> the loss, and which of `_arguments` it takes after the logits.
_OBJECTIVES = {
  "bar_nll": (
    lambda logits, targets: losses.bar_nll(logits, targets, jnp.linspace(-3, 3, _NUM_CLASSES + 1)),
    ("targets",),
  ),
  "mixup_cross_entropy": (losses.mixup_cross_entropy, ("labels", "others", "ratio")),
  "decoupled_mixup_loss": (losses.decoupled_mixup_loss, ("labels", "others", "ratio")),
  "decoupled_mixup_binary_loss": (
    losses.decoupled_mixup_binary_loss,
    ("labels", "others", "ratio"),
  ),
}


def _least(part: str) -> str:
  return f"the bytes and exponentials of the {part}"


ROWS = tuple(
  row
  for name in _OBJECTIVES
  for part in _PARTS
  for row in (
    Row(f"{name} of 1e6 x 100 logits", part, _least(part), goal=0.5, unit="byte"),
    Row(f"{name} of 1e6 x 100 logits", part, _COPY, unit="byte"),
  )
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  num_rows = 10_000 if quick else _NUM_ROWS
  measure.start(divides=1)
  rng = np.random.default_rng(0)
  logits = jax.device_put(rng.standard_normal((num_rows, _NUM_CLASSES), np.float32))
  arguments = jax.device_put(
    {
      "targets": rng.standard_normal(num_rows, np.float32),
      "labels": rng.integers(_NUM_CLASSES, size=num_rows, dtype=np.int32),
      "others": rng.integers(_NUM_CLASSES, size=num_rows, dtype=np.int32),
      "ratio": rng.random(num_rows, np.float32),
    }
  )
  for name, (objective, names) in _OBJECTIVES.items():
    inputs = (logits, *(arguments[name] for name in names))
    gradient = jax.grad(lambda z, *others, f=objective: f(z, *others).sum())
    # Bytes that must move: every input is read once, and one loss per row or one gradient per logit
    # is written once.
    read = sum(x.nbytes for x in inputs)
    moved = {"forward": read + 4 * num_rows, "gradient": read + logits.nbytes}
    functions = {_COPY: Timed(functools.partial(jax.jit(jnp.copy), logits), 2 * logits.nbytes)}
    for part, function in zip(_PARTS, (objective, gradient)):
      compiled = functools.partial(jax.jit(function), *inputs)
      functions[part] = Timed(compiled, moved[part])
      work = least_work(function, *inputs, moved=moved[part])
      functions[_least(part)] = Timed(work, moved[part])
    times = measure.interleave(functions, quick=quick)
    for row in (row for row in ROWS if row.group.startswith(f"{name} of")):
      yield measure.result(row, times)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
