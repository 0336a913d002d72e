"""Seeds: four runs of a small dense network as one program, and one after the other."""

import sys
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
_NUM_SEEDS = 4
_GROUP = f"{_NUM_SEEDS} seeds, 64-128-128-10, batch 64"
_OURS, _LOOP, _VMAP = "over_seeds", "one after the other", "vmapped"
_MAP, _SPREAD = "in sequence, one program", "spread over devices, vmapped there"
ROWS = (
  Row(_GROUP, _OURS, _LOOP, goal=1.0, unit="step of all seeds"),
  Row(_GROUP, _OURS, _VMAP, unit="step of all seeds"),
  Row(_GROUP, _OURS, _SPREAD, unit="step of all seeds"),
  Row(_GROUP, _MAP, _VMAP, unit="step of all seeds"),
)


class _Network(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (128, 128):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  mesh = measure.start(divides=_NUM_SEEDS)
  train = _experiment(num_steps=5 if quick else 200)
  key = jax.random.key(0)
  keys = jax.random.split(key, _NUM_SEEDS)
  one, vmapped = jax.jit(train), jax.jit(jax.vmap(train))
  in_sequence = jax.jit(lambda keys: jax.lax.map(train, keys))
  spread = training.data_parallel(
    jax.vmap(train), mesh, replicated_argnums=(), sharded_outputs=True
  )
  functions = {
    _OURS: lambda: training.over_seeds(key, train, num_seeds=_NUM_SEEDS, mesh=mesh),
    _LOOP: lambda: [jax.block_until_ready(one(k)) for k in keys],
    _VMAP: lambda: vmapped(keys),
    _MAP: lambda: in_sequence(keys),
    _SPREAD: lambda: spread(keys),
  }
  losses = {name: np.asarray(fn()) for name, fn in functions.items()}
  num_steps = losses[_OURS].shape[1]
  times = measure.interleave(
    {name: Timed(fn, num_steps) for name, fn in functions.items()}, quick=quick
  )
  for row in ROWS:
    same = np.allclose(losses[row.ours], losses[row.peer], rtol=1e-3, atol=1e-4)
    yield measure.result(row, times, checks={"the same losses": same})


def _experiment(num_steps: int):
  """`key -> losses [num_steps]`: one seed, its data included."""
  network, optimizer = _Network(), optax.adam(1e-3)

  def loss_fn(params, model_state, batch, key):
    logits = network.apply({"params": params}, batch["x"])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return training.LossOutput(values)

  update = training.build_update(loss_fn, optimizer, steps_per_call=num_steps)

  def train(key):
    init_key, x_key, y_key, state_key = jax.random.split(key, 4)
    params = network.init(init_key, jnp.zeros((1, 64)))["params"]
    batches = {
      "x": jax.random.normal(x_key, (num_steps, 64, 64)),
      "y": jax.random.randint(y_key, (num_steps, 64), 0, 10),
    }
    _, metrics = update(training.init_state(state_key, params, optimizer), batches)
    return metrics["loss"]

  return train


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
