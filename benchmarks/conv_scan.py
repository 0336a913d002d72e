"""Convolutions in a loop: a scan of 20 training steps beside 20 calls of one."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import models

PACKAGES = ()
_NUM_STEPS = 20
_GROUP = "three convolutions, batch 32 of 16 x 16, Adam"
_LAYERS = {"jaxlab.models.Conv": models.Conv, "flax nn.Conv": nn.Conv}
_OURS, _FLAX = _LAYERS
_SCAN, _CALLS = f"a scan of {_NUM_STEPS}", f"{_NUM_STEPS} calls"
ROWS = (
  Row(_GROUP, f"{_OURS}, {_SCAN}", f"{_OURS}, {_CALLS}", goal=1.0, unit="step"),
  Row(_GROUP, f"{_FLAX}, {_SCAN}", f"{_FLAX}, {_CALLS}", unit="step"),
  Row(_GROUP, f"{_OURS}, {_SCAN}", f"{_FLAX}, {_SCAN}", unit="step"),
  Row(_GROUP, f"{_OURS}, {_CALLS}", f"{_FLAX}, {_CALLS}", unit="step"),
  Row(_GROUP, f"{_OURS}, {_SCAN}", f"{_FLAX}, {_CALLS}", unit="step"),
)


class _Network(nn.Module):
  conv: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x):
    for i, (features, stride) in enumerate(((16, 1), (32, 2), (32, 2))):
      # By name, so that either network takes the other's parameters.
      x = nn.relu(self.conv(features, (3, 3), strides=stride, name=f"conv_{i}")(x))
    return nn.Dense(10)(x.mean((1, 2)))


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  rng = np.random.default_rng(0)
  batch_size = 4 if quick else 32
  x = jnp.asarray(rng.standard_normal((batch_size, 16, 16, 3), np.float32))
  y = jnp.asarray(rng.integers(0, 10, batch_size))
  params = _Network(models.Conv).init(jax.random.key(0), x)
  optimizer = optax.adam(1e-3)
  start = params, optimizer.init(params)
  functions = {}
  for name, layer in _LAYERS.items():
    step = _training_step(_Network(layer), optimizer, x, y)
    functions[f"{name}, {_SCAN}"] = _scan(step, start)
    functions[f"{name}, {_CALLS}"] = _calls(step, start)
  ends = {name: ravel_pytree(fn()[0])[0] for name, fn in functions.items()}
  times = measure.interleave(
    {name: Timed(fn, _NUM_STEPS) for name, fn in functions.items()}, quick=quick, repetitions=9
  )
  for row in ROWS:
    same = np.allclose(ends[row.ours], ends[row.peer], atol=1e-3)
    yield measure.result(row, times, checks={"the same parameters in the end": same})


def _training_step(network, optimizer, x, y):
  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()

  def step(state):
    params, opt_state = state
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step


def _scan(step, start):
  steps = jax.jit(
    lambda state: jax.lax.scan(lambda s, _: (step(s), None), state, length=_NUM_STEPS)[0]
  )
  return lambda: steps(start)


def _calls(step, start):
  jitted = jax.jit(step)

  def run():
    state = start
    for _ in range(_NUM_STEPS):
      state = jitted(state)
    return state

  return run


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
