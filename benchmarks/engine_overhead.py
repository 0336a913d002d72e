"""Engine: what the training loop adds to the bare update, and the startup time of an experiment."""

import itertools
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import training

PACKAGES = ()
_LOOP, _START = "a training loop, steps of about 5 ms", "starting experiments.bayes.pfn"
_HELP, _IMPORTS = "--help", "import jax, flax, optax"
_WARM, _COLD = "smoke, task gp, compiled before", "smoke, task gp, empty compilation cache"
ROWS = (
  Row(_LOOP, "fit, a row every 50 steps", "bare update", kind="cost", goal=1.02, unit="step"),
  Row(_START, _HELP, _IMPORTS, kind="cost", unit="process"),
  Row(_START, _WARM, _COLD, unit="process"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  row = ROWS[0]
  times = measure.interleave(
    _loops(row, num_steps=4 if quick else 100), quick=quick, repetitions=41, min_seconds=0.0
  )
  added = np.median(times[row.ours] - times[row.peer])
  yield measure.result(row, times, notes={"added to a step, µs": 1e6 * added})

  with tempfile.TemporaryDirectory() as scratch:
    directories = (pathlib.Path(scratch) / str(i) for i in itertools.count())
    cache = next(directories)
    functions = {
      _HELP: lambda: _experiment("--help"),
      _IMPORTS: lambda: _python("-c", _IMPORTS),
      _COLD: lambda: _smoke(next(directories), next(directories)),
      # Called once before it is timed, so its programs are compiled.
      _WARM: lambda: _smoke(next(directories), cache),
    }
    times = measure.interleave(
      functions, quick=quick, repetitions=1 if quick else 5, min_seconds=0.0
    )
  for row in ROWS[1:]:
    yield measure.result(row, times)


def _loops(row: Row, num_steps: int) -> dict[str, Timed]:
  """`fit` and the bare update, each with its own state, on one repeated batch."""
  width, batch_size = 512, 256
  mesh = measure.start(divides=batch_size)
  network = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)])
  optimizer = optax.sgd(1e-3)

  def loss_fn(params, model_state, batch, key):
    logits = network.apply({"params": params}, batch["x"])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return training.LossOutput(values)

  rng = np.random.default_rng(0)
  batch = {
    "x": rng.standard_normal((batch_size, width), np.float32),
    "y": rng.integers(0, 10, batch_size),
  }
  params = network.init(jax.random.key(0), jnp.zeros((1, width)))["params"]
  update = training.build_update(loss_fn, optimizer, mesh=mesh)
  states = {
    name: training.init_state(jax.random.key(1), params, optimizer) for name in (row.ours, row.peer)
  }

  def fit():
    state = states[row.ours]
    end = int(state.step) + num_steps
    states[row.ours] = training.fit(state, update, itertools.repeat(batch), num_steps=end).state
    return states[row.ours]

  def bare():
    for _ in range(num_steps):
      states[row.peer], metrics = update(states[row.peer], batch)
    return states[row.peer], metrics

  return {row.ours: Timed(fit, num_steps), row.peer: Timed(bare, num_steps)}


def _smoke(workdir: pathlib.Path, cache: pathlib.Path) -> None:
  _experiment("--preset=smoke", "--task=gp", f"--workdir={workdir}", f"--compilation_cache={cache}")


def _experiment(*flags: str) -> None:
  _python("-m", "experiments.bayes.pfn", *flags)


def _python(*arguments: str) -> None:
  root = pathlib.Path(__file__).parent.parent
  subprocess.run([sys.executable, *arguments], check=True, cwd=root, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
