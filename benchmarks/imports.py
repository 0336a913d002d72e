"""Imports: what `import jaxlab` costs beside what any JAX program imports."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import measure
from benchmarks.measure import Row

PACKAGES = ()
_PEER = "import jax, flax, optax"
_STATEMENTS = (
  "import jaxlab",
  "from jaxlab import augment, losses, metrics, samplers, uncertainty, weights",
  "from jaxlab import algorithms, data, losses, models, training",
)
ROWS = tuple(
  Row("a fresh process", statement, _PEER, kind="cost", goal=1.5, unit="process")
  for statement in _STATEMENTS
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  times = measure.interleave(
    {statement: lambda s=statement: _start(s) for statement in (*_STATEMENTS, _PEER)},
    quick=quick,
    repetitions=11,
  )
  for row in ROWS:
    yield measure.result(row, times)


def _start(statement: str) -> None:
  subprocess.run([sys.executable, "-c", statement], check=True)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
