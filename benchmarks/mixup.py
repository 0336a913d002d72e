"""Mixup: what the decoupled loss adds to a training step."""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import augment, losses, models, training

PACKAGES = ()
_OBJECTIVES = {
  "decoupled_mixup_loss": losses.decoupled_mixup_loss,
  "mixup_cross_entropy": losses.mixup_cross_entropy,
}
_STEP = "training step, convolutions on 100 8 x 8 images"
ROWS = (Row(_STEP, *_OBJECTIVES, "cost", goal=1.15, unit="step"),)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  yield measure.result(ROWS[0], measure.interleave(_steps(5 if quick else 50), quick=quick))


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

  return {name: Timed(build(fn), num_steps) for name, fn in _OBJECTIVES.items()}


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
