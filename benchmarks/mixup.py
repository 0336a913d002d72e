"""Mixup: what the decoupled loss adds to a training step, and bytes per second of the losses."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import augment, losses, models, training

PACKAGES = ()
_NUM_ROWS, _NUM_CLASSES = 1_000_000, 100
_OBJECTIVES = {
  "mixup_cross_entropy": losses.mixup_cross_entropy,
  "decoupled_mixup_loss": losses.decoupled_mixup_loss,
  "decoupled_mixup_binary_loss": losses.decoupled_mixup_binary_loss,
}
_STEP = "training step, convolutions on 100 8 x 8 images"
_SIZE = "1e6 x 100 logits"
ROWS = (
  Row(_STEP, "decoupled_mixup_loss", "mixup_cross_entropy", "cost", goal=1.15, unit="step"),
  *(
    Row(f"{name} of {_SIZE}", ours, "jitted copy", goal=0.5, unit="byte")
    for name in _OBJECTIVES
    for ours in ("forward", "gradient")
  ),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  num_rows = 10_000 if quick else _NUM_ROWS
  measure.start(divides=1)
  yield measure.result(ROWS[0], measure.interleave(_steps(5 if quick else 50), quick=quick))
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((num_rows, _NUM_CLASSES), np.float32)
  labels = rng.integers(_NUM_CLASSES, size=(2, num_rows), dtype=np.int32)
  ratio = rng.random(num_rows, np.float32)
  inputs = jax.device_put((logits, *labels, ratio))
  rest = 3 * ratio.nbytes
  # Bytes that must move: logits and labels are read once, and one loss per row or one gradient per
  # logit is written once.
  moved = {
    "forward": logits.nbytes + rest + ratio.nbytes,
    "gradient": 2 * logits.nbytes + rest,
    "jitted copy": 2 * logits.nbytes,
  }
  for name, objective in _OBJECTIVES.items():
    gradient = jax.grad(lambda z, *others, f=objective: f(z, *others).sum())
    functions = {
      "forward": functools.partial(jax.jit(objective), *inputs),
      "gradient": functools.partial(jax.jit(gradient), *inputs),
      "jitted copy": functools.partial(jax.jit(jnp.copy), inputs[0]),
    }
    times = measure.interleave(
      {key: Timed(fn, moved[key]) for key, fn in functions.items()}, quick=quick
    )
    for row in ROWS:
      if row.group.startswith(f"{name} of"):
        yield measure.result(row, times)


def _steps(num_steps: int) -> dict[str, Timed]:
  """The same training with either loss."""
  network, optimizer = models.ConvNet(10, (32, 64), (3, 3), (1, 1), pool_after=0), optax.sgd(0.1)
  key = jax.random.key(0)
  batch = {
    "images": jax.random.uniform(key, (num_steps, 100, 8, 8, 1)),
    "labels": jax.random.randint(key, (num_steps, 100), 0, 10),
  }
  variables = dict(network.init(key, batch["images"][0]))
  params = variables.pop("params")

  def build(objective):
    def loss_fn(params, model_state, batch, key):
      mixed = augment.mixup(key, batch["images"], batch["labels"])
      outputs, updated = network.apply(
        {"params": params, **model_state}, mixed.inputs, train=True, mutable=["batch_stats"]
      )
      values = objective(outputs.logits, mixed.labels_a, mixed.labels_b, mixed.ratio)
      return training.LossOutput(values, model_state=jax.lax.stop_gradient(dict(updated)))

    update = training.build_update(loss_fn, optimizer, steps_per_call=num_steps)
    # The update donates its state, so each call makes a new one.
    return lambda: update(
      training.init_state(key, params, optimizer, model_state=variables), batch
    )[1]

  names = ("mixup_cross_entropy", "decoupled_mixup_loss")
  return {name: Timed(build(_OBJECTIVES[name]), num_steps) for name in names}


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
