"""Win rates and calibrated rewards of 10,000 prompts in one call, beside NumPy prompt by prompt."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import losses, metrics, training

PACKAGES = ()
_PROMPTS, _SAMPLES, _BEST_OF = 10_000, 100, 4
_GROUP = f"{_PROMPTS:,} prompts x {_SAMPLES} samples"
_CALIBRATED, _WINS = "calibrate_rewards, jitted", f"pool_win_rate of the best of {_BEST_OF}, jitted"
_NUMPY = {_CALIBRATED: "calibrated by NumPy", _WINS: "win rates by NumPy"}
ROWS = tuple(Row(_GROUP, ours, peer, goal=5.0, unit="prompt") for ours, peer in _NUMPY.items())


def run(quick: bool) -> Iterator[dict[str, Any]]:
  num_prompts = 100 if quick else _PROMPTS
  mesh = measure.start(divides=num_prompts)
  rng = np.random.default_rng(0)
  # Rewards of a few digits, so that there are ties.
  pools = [
    rng.normal(size=(num_prompts, _SAMPLES)).round(2).astype(np.float32) + shift
    for shift in (np.float32(0.5), np.float32(0))
  ]
  on_devices = training.shard_batch(tuple(pools), mesh)
  win_rate = functools.partial(metrics.pool_win_rate, num_samples=_BEST_OF)
  programs = {_CALIBRATED: jax.jit(losses.calibrate_rewards), _WINS: jax.jit(win_rate)}
  loops = {_CALIBRATED: _calibrate, _WINS: _win_rate}
  functions = {name: functools.partial(f, *on_devices) for name, f in programs.items()}
  for name, peer in _NUMPY.items():
    functions[peer] = functools.partial(_by_prompt, loops[name], *pools)
  times = measure.interleave(
    {name: Timed(call, num_prompts) for name, call in functions.items()}, quick=quick
  )
  for row in ROWS:
    found, expected = (np.asarray(functions[name]()) for name in (row.ours, row.peer))
    checks = {"as NumPy, to 1e-5": bool(np.allclose(found, expected, atol=1e-5))}
    held = programs[row.ours].lower(*on_devices).compile().memory_analysis().temp_size_in_bytes
    notes = {"bytes a prompt beside arguments and results": held / num_prompts}
    yield measure.result(row, times, checks=checks, notes=notes)


def _by_prompt(function, policy, reference):
  return np.stack([function(ours, theirs) for ours, theirs in zip(policy, reference)])


def _shares(values, pool):
  """Which shares of a pool are below values, and not above them."""
  pool = np.sort(pool)
  return [np.searchsorted(pool, values, side) / len(pool) for side in ("left", "right")]


def _calibrate(policy, reference):
  below, at_most = _shares(policy, reference)
  return 0.5 * (below + at_most)


def _win_rate(policy, reference):
  values = np.unique(policy)
  lower, upper = _shares(values, policy)
  below, at_most = _shares(values, reference)
  wins = 0.5 * (below**_BEST_OF + at_most**_BEST_OF)
  return np.sum((upper**_BEST_OF - lower**_BEST_OF) * wins)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
