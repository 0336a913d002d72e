"""PFN training step, prior draw included: one host device per core beside PyTorch on all cores."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.prior_fitting import init_state, prior_loss
from benchmarks.roofline import roof
from jaxlab import algorithms, data, losses, models, samplers, training
from jaxlab.experiment import count_flops

PACKAGES = ("torch",)
_STEPS = 10  # Per call, on either side.
_LEARNING_RATE, _LENGTHSCALE, _NOISE, _NUM_HEADS = 1e-3, 0.2, 0.01, 4
_OURS, _SINGLE = "one device per core", "one device"
_PEER, _PEER_SINGLE = "PyTorch, all cores", "PyTorch, one thread"
_PARTS = ("drawing the prior", "... and the forward pass", "... and the backward pass")


class Size(NamedTuple):
  """One problem."""

  embed_dim: int
  num_layers: int
  num_points: int
  batch_size: int = 64
  num_bars: int = 100

  @property
  def group(self) -> str:
    """Its name."""
    return f"D {self.embed_dim}, {self.num_layers} layers, T {self.num_points}"


SIZES = (Size(64, 3, 40), Size(128, 6, 60))
ROWS = tuple(
  row
  for size in SIZES
  for row in (
    Row(size.group, _OURS, _PEER, goal=1.3, stretch=1.5, unit="step"),
    # On a busy machine PyTorch's threads wait for each other, and a single one is faster.
    Row(size.group, _OURS, _PEER_SINGLE, unit="step"),
    Row(size.group, _SINGLE, _PEER_SINGLE, unit="step"),
    # The parts of a step: the time of a step that ends there.
    *(Row(size.group, part, _OURS, kind="cost", unit="step") for part in _PARTS),
  )
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from benchmarks.peers.pfn import TorchPFN  # Imported here: PyTorch needs an extra.

  mesh = measure.start(divides=SIZES[0].batch_size)
  machine = roof(mesh, quick=quick)
  for size in SIZES:
    problem = size._replace(num_layers=1, batch_size=8 * mesh.size) if quick else size
    ours = _Ours(problem)
    peer = TorchPFN(
      **problem._asdict(),
      num_heads=_NUM_HEADS,
      lengthscale=_LENGTHSCALE,
      noise=_NOISE,
      learning_rate=_LEARNING_RATE,
      borders=np.array(ours.borders),
    )
    functions = {
      _OURS: ours.training(mesh),
      _SINGLE: ours.training(None),
      _PEER: functools.partial(peer.train, _STEPS, num_threads=measure.num_cores()),
      _PEER_SINGLE: functools.partial(peer.train, _STEPS, num_threads=1),
      **dict(zip(_PARTS, ours.parts(mesh))),
    }
    same = {"the same network: outputs agree to 1e-4": ours.largest_difference(peer) < 1e-4}
    times = measure.interleave(
      {name: Timed(call, _STEPS) for name, call in functions.items()}, quick=quick
    )
    notes = machine.of_flops(ours.flops(), float(np.median(times[_OURS])))
    for row in (row for row in ROWS if row.group == size.group):
      yield measure.result(
        row,
        times,
        checks={} if row.peer == _OURS else same,
        notes=notes if row.goal else None,
      )


class _Ours:
  """Our side of one problem."""

  def __init__(self, size: Size):
    self.size = size
    self.module = models.PFN(
      size.num_bars,
      embed_dim=size.embed_dim,
      num_layers=size.num_layers,
      num_heads=_NUM_HEADS,
    )
    self.prior_fn = functools.partial(
      samplers.gp_prior,
      batch_size=1,
      num_points=size.num_points,
      lengthscale=_LENGTHSCALE,
      noise=_NOISE,
    )
    borders = functools.partial(
      algorithms.prior_bar_borders, prior_fn=self.prior_fn, num_bars=size.num_bars
    )
    self.borders = jax.jit(borders)(jax.random.key(0))
    self.optimizer = algorithms.prior_fitting_optimizer(_LEARNING_RATE, 100_000)
    self.params = self._state().params

  def _state(self) -> training.TrainState:
    return init_state(jax.random.key(1), self.module, self.prior_fn, self.optimizer)

  def _nll(self, logits, targets):
    return losses.bar_nll(logits, targets, self.borders)

  def training(self, mesh) -> Callable[[], Any]:
    """A function that makes the next steps of a training run."""
    loss = prior_loss(self.module, self.prior_fn, self._nll)
    update = training.build_update(loss, self.optimizer, mesh=mesh, steps_per_call=_STEPS)
    state, batches = self._state(), self._batches()

    def train():
      nonlocal state
      state, metrics = update(state, next(batches))
      return metrics

    return train

  def _batches(self) -> data.SeededBatches:
    size = self.size
    return data.prior_batches(
      seed=0,
      batch_size=size.batch_size,
      max_context=size.num_points,
      steps_per_call=_STEPS,
    )

  def flops(self) -> float:
    """Floating point operations of the passes of a step."""
    return count_flops(jax.grad(self._total), self.params, _first(next(self._batches())))

  def _total(self, params, batch):
    loss = prior_loss(self.module, self.prior_fn, self._nll)
    output = loss(params, None, batch, jax.random.key(0))
    return (output.values * output.weights).sum()

  def parts(self, mesh) -> Iterator[Callable[[], Any]]:
    """Functions that make the same steps up to a point, without all-reduce and optimizer."""

    def draw(params, batch):
      keys = jax.random.wrap_key_data(batch["key"])
      return samplers.draw_data_sets(keys, self.prior_fn).y.sum()

    rows_first = jax.tree.map(lambda x: x.swapaxes(0, 1), next(self._batches()))
    for part in (draw, self._total, jax.grad(self._total)):

      def steps(params, batch, part=part):
        def step(total, batch):
          return jax.tree.map(jnp.add, total, part(params, batch)), None

        batch = jax.tree.map(lambda x: x.swapaxes(0, 1), batch)
        zeros = jax.tree.map(
          lambda x: jnp.zeros(x.shape), jax.eval_shape(part, params, _first(batch))
        )
        return jax.tree.map(lambda x: x[None], jax.lax.scan(step, zeros, batch)[0])

      run = training.data_parallel(steps, mesh, sharded_outputs=True)
      inputs = training.replicate(self.params, mesh), training.shard_batch(rows_first, mesh)
      yield functools.partial(run, *inputs)

  def largest_difference(self, peer) -> float:
    """Between outputs for the queries of a data set, with the peer's parameters set to ours."""
    rng = np.random.default_rng(0)
    # The branches of a new network are zero, which would hide differences in them.
    params = jax.tree.map(
      lambda p: np.asarray(p) + 0.05 * rng.standard_normal(p.shape, np.float32), self.params
    )
    x = rng.random((2, self.size.num_points, 1), np.float32)
    y = rng.standard_normal(x.shape[:2], np.float32)
    ours = self.module.apply({"params": params}, x, y, 7)[:, 7:]
    return float(np.abs(np.asarray(ours) - peer.outputs_with(params, x, y, 7)[:, 7:]).max())


def _first(batch):
  return jax.tree.map(lambda x: x[0], batch)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
