"""Label issues of confident learning: `find_label_issues` beside cleanlab's."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import metrics

PACKAGES = ("cleanlab",)
_SIZES = ((1_000_000, 10), (100_000, 1000))
_ARRAYS, _DEVICE = "arrays of NumPy, checked", "arrays on the device"
_PEER = "cleanlab, n_jobs 1"  # It would fork a process that runs JAX.
_GROUPS = {size: "{:,} examples x {:,} classes".format(*size) for size in _SIZES}
ROWS = tuple(
  Row(group, ours, _PEER, goal=5.0, unit="example")
  for group in _GROUPS.values()
  for ours in (_ARRAYS, _DEVICE)
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from cleanlab.filter import find_label_issues

  measure.start(divides=1)
  for (num_rows, num_classes), group in _GROUPS.items():
    probs, labels = _draw(num_rows // 1000 if quick else num_rows, num_classes)
    on_device = jax.device_put((probs, labels))
    functions = {
      _ARRAYS: functools.partial(metrics.find_label_issues, probs, labels),
      _DEVICE: functools.partial(metrics.find_label_issues, *on_device),
      _PEER: functools.partial(find_label_issues, labels, probs, n_jobs=1),
    }
    timed = {name: Timed(call, len(labels)) for name, call in functions.items()}
    times = measure.interleave(timed, quick=quick, repetitions=5)
    ours, theirs = (np.asarray(functions[name]()) for name in (_ARRAYS, _PEER))
    alike = np.mean(ours == theirs)
    # cleanlab rounds ties of its counts by an order that depends on the machine.
    checks = {"the same for 99.9% of the examples": alike >= 0.999}
    program = jax.jit(metrics.find_label_issues).lower(*on_device).compile()
    held = program.memory_analysis().temp_size_in_bytes / len(labels)
    notes = {"flagged": ours.sum(), "alike": alike, "bytes an example beside arguments": held}
    for row in (row for row in ROWS if row.group == group):
      yield measure.result(row, times, checks=checks, notes=notes)


def _draw(num_rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Probabilities of a good model, and labels of which a tenth is wrong."""
  rng = np.random.default_rng(0)
  true = rng.integers(0, num_classes, num_rows)
  probs = rng.standard_normal((num_rows, num_classes), np.float32)
  probs[np.arange(num_rows), true] += np.float32(np.log(num_classes) + 2)
  np.exp(probs, out=probs)
  probs /= probs.sum(axis=1, keepdims=True)
  wrong = rng.random(num_rows) < 0.1
  labels = np.where(wrong, (true + rng.integers(1, 4, num_rows)) % num_classes, true)
  return probs, labels.astype(np.int32)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
