"""FixMatch: a step beside a supervised step on as many images."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import algorithms, losses, models, training
from jaxlab.algorithms import SemiSupervisedBatch, SemiSupervisedLoss, SemiSupervisedMethod, Views

PACKAGES = ()
_LABELED, _UNLABELED, _CLASSES = 16, 64, 10
_IMAGES = _LABELED + 2 * _UNLABELED
_METHOD, _ONE, _SUPERVISED = "fixmatch_method", "all views in one forward pass", "supervised"
_STEP = f"training step, convolutions on {_IMAGES} 8 x 8 images"
ROWS = tuple(
  Row(_STEP, ours, _SUPERVISED, "cost", goal=1.1, unit="step") for ours in (_METHOD, _ONE)
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  times = measure.interleave(_steps(5 if quick else 50), quick=quick)
  for row in ROWS:
    yield measure.result(row, times)


def _steps(num_steps: int) -> dict[str, Timed]:
  """The three trainings, on views that were drawn before."""
  network = models.ConvEncoder(num_classes=_CLASSES)
  keys = jax.random.split(jax.random.key(0), 3)
  images = jax.random.uniform(keys[0], (num_steps, _IMAGES, 8, 8, 1))
  labels = jax.random.randint(keys[1], (num_steps, _IMAGES), 0, _CLASSES)
  params = network.init(keys[2], images[0])["params"]

  def apply_fn(params, inputs):
    return network.apply({"params": params}, inputs).logits

  def semi_supervised(method: SemiSupervisedMethod) -> Callable[[], Any]:
    trainer = algorithms.semi_supervised_training(apply_fn, method, optax.sgd(0.1))

    def step(state, batch):
      return trainer.update(keys[0], state, _as_batch(*batch))

    fit = jax.jit(lambda *batches: jax.lax.scan(step, trainer.init(params), batches)[1].loss)
    return functools.partial(fit, images, labels)

  def loss_fn(params, model_state, batch, key):
    del key
    scores = apply_fn(params, batch["images"])
    values = optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"])
    return training.LossOutput(values, model_state=model_state)

  optimizer = optax.sgd(0.1)
  update = training.build_update(loss_fn, optimizer, steps_per_call=num_steps)

  def supervised():
    # The update donates its state, so each call makes a new one.
    state = training.init_state(keys[0], jax.tree.map(jnp.copy, params), optimizer)
    return update(state, {"images": images, "labels": labels})[1]

  calls = {
    _METHOD: semi_supervised(algorithms.fixmatch_method()),
    _ONE: semi_supervised(SemiSupervisedMethod(_in_one_pass)),
    _SUPERVISED: supervised,
  }
  return {name: Timed(call, num_steps) for name, call in calls.items()}


def _as_batch(images: jax.Array, labels: jax.Array) -> SemiSupervisedBatch:
  """The first rows are labeled, the others weak and strong views of unlabeled rows."""
  labeled, weak, strong = jnp.split(images, [_LABELED, _LABELED + _UNLABELED])
  targets = jax.nn.one_hot(labels[:_LABELED], _CLASSES)
  views = Views(labeled, labeled[None], labeled[None])
  return SemiSupervisedBatch(views, targets, Views(weak, weak[None], strong[None]))


def _in_one_pass(key, step) -> SemiSupervisedLoss:
  """FixMatch that concatenates all views, as networks with batch statistics need it."""
  del key
  batch = step.batch
  inputs = batch.labeled.weak[0], batch.unlabeled.weak[0], batch.unlabeled.strong[0]
  logits = step.forward(jnp.concatenate(inputs))
  labeled, weak, strong = jnp.split(logits, [_LABELED, _LABELED + _UNLABELED])
  supervised = jnp.mean(losses.soft_cross_entropy(labeled, batch.targets))
  unlabeled = jnp.mean(losses.fixmatch_loss(strong, weak))
  return SemiSupervisedLoss(supervised, unlabeled, jax.lax.stop_gradient(weak))


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
