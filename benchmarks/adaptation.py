"""Test-time adaptation: a step beside its passes alone and beside PyTorch, and streams in a scan.

The network is the signal network of the experiments: three convolutions with batch statistics. Each
adapter is compared with the bare forward and backward passes of its step, augmentations included,
and with the same step in eager PyTorch.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Row, Timed
from jaxlab import algorithms, augment, models

PACKAGES = ("torch",)
_RATE, _DECAY, _NUM_AUGMENTATIONS = 1e-3, 0.99, 32
_STEP, _PASSES = "one step", "its passes alone"
_TORCH, _TORCH_SINGLE = "eager PyTorch, all cores", "eager PyTorch, one thread"
# Name of our adapter -> its name in the peer.
_ADAPTERS = {
  "norm adaptation": "norm",
  "entropy minimization": "tent",
  "filtered entropy minimization": "filtered",
  "robust mean teacher": "robust",
  f"continual mean teacher, {_NUM_AUGMENTATIONS} augmentations": "cotta",
}
_EXACT = ("norm", "tent", "filtered")  # Those without randomness.
_NUM_BATCHES = 1000
_STREAM = f"entropy minimization over {_NUM_BATCHES:,} batches"
_SCAN, _CALLS = "one scan", "step by step"
ROWS = (
  *(
    row
    for name in _ADAPTERS
    for row in (
      Row(name, _STEP, _PASSES, kind="cost", goal=1.15, unit="step"),
      Row(name, _STEP, _TORCH, goal=1.0, unit="step"),
      Row(name, _STEP, _TORCH_SINGLE, unit="step"),
    )
  ),
  Row(_STREAM, _SCAN, _CALLS, goal=1.0, unit="step"),
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  from benchmarks.peers.adaptation import TorchAdapters  # Imported here: PyTorch needs an extra.

  measure.start(divides=1)
  ours = _Ours(batch_size=8 if quick else 100)
  make_peer = functools.partial(
    TorchAdapters,
    ours.params,
    ours.prototypes,
    ours.projector,
    learning_rate=_RATE,
    decay=_DECAY,
    num_augmentations=_NUM_AUGMENTATIONS,
  )
  for name, short in _ADAPTERS.items():
    functions = {
      _STEP: ours.step(short),
      _PASSES: ours.passes(short),
      **_torch_steps(make_peer(), short, ours.inputs),
    }
    checks = {}
    if short in _EXACT:
      gap = _largest_gap(ours.step(short), functools.partial(_torch_step, make_peer(), short, ours))
      checks = {"the same predictions for three steps, to 1e-3": gap < 1e-3}
    times = measure.interleave(functions, quick=quick)
    for row in (row for row in ROWS if row.group == name):
      yield measure.result(row, times, checks={} if row.peer == _PASSES else checks)
  yield _stream(ours, num_batches=10 if quick else _NUM_BATCHES, quick=quick)


class _Ours:
  """Our side: a network, a batch and the adapters."""

  def __init__(self, batch_size: int):
    keys = jax.random.split(jax.random.key(0), 6)
    self.inputs = jax.random.normal(keys[0], (batch_size, 40, 1))
    self.network = models.ConvNet(10)
    variables = self.network.init(keys[1], self.inputs)
    self.params, self.stats = variables["params"], variables["batch_stats"]
    self.prototypes = jax.random.normal(keys[2], (10, 64))
    self.projector = {
      name: dict(nn.Dense(128).init(key, jnp.zeros((1, size)))["params"])
      for name, key, size in (("in", keys[3], 64), ("out", keys[4], 128))
    }
    self.key = keys[5]

  def forward(self, params, inputs):
    variables = {"params": params, "batch_stats": self.stats}
    return self.network.apply(variables, inputs, train=True)

  def project(self, params, features):
    hidden = nn.relu(nn.Dense(128).apply({"params": params["in"]}, features))
    return nn.Dense(128).apply({"params": params["out"]}, hidden)

  def adapter(self, short: str) -> tuple[algorithms.OnlineAdapter, Any]:
    """An adapter and its first state."""
    optimizer = optax.adam(_RATE)
    match short:
      case "norm":
        adapter = algorithms.norm_adaptation(self.forward)
      case "tent":
        adapter = algorithms.entropy_minimization(self.forward, optimizer)
      case "filtered":
        adapter = algorithms.filtered_entropy_minimization(self.forward, optimizer)
      case "cotta":
        adapter = algorithms.continual_mean_teacher(
          self.forward,
          augment.jitter_signals,
          optimizer,
          decay=_DECAY,
          num_augmentations=_NUM_AUGMENTATIONS,
          confidence_threshold=1.0,
        )
      case "robust":
        adapter = algorithms.robust_mean_teacher(
          self.forward,
          augment.jitter_signals,
          optimizer,
          prototypes=self.prototypes,
          project_fn=self.project,
          decay=_DECAY,
        )
        return adapter, adapter.init(self.params, self.projector)
    return adapter, adapter.init(self.params)

  def step(self, short: str) -> Callable[[], Any]:
    """A function that makes the next step, and returns its predictions."""
    adapter, state = self.adapter(short)
    update = jax.jit(adapter.update, donate_argnums=1)
    # The first state shares its arrays between members, and a donated array may be passed only
    # once.
    state = jax.tree.map(jnp.copy, state)

    def step():
      nonlocal state
      state, info = update(self.key, state, self.inputs)
      return info.logits

    return step

  def passes(self, short: str) -> Callable[[], Any]:
    """A function that makes the passes of a step: no loss, no optimizer, no averages."""
    forward = self.forward
    run = jax.jit(getattr(self, f"_{short}_passes"))
    weights = jax.random.normal(self.key, forward(self.params, self.inputs).logits.shape)
    # Arguments of their own: the compiler would merge passes of one array.
    frozen = jax.tree.map(jnp.copy, {"source": self.params, "teacher": self.params})
    return lambda: run(self.key, self.params, self.projector, self.inputs, weights, **frozen)

  def _norm_passes(self, key, params, projector, inputs, weights, **frozen):
    return self.forward(params, inputs).logits

  def _tent_passes(self, key, params, projector, inputs, weights, **frozen):
    affine = {name: leaf for name, leaf in params.items() if name.startswith("norm")}

    def objective(affine):
      logits = self.forward(params | affine, inputs).logits
      return jnp.vdot(logits, weights), logits

    return jax.grad(objective, has_aux=True)(affine)

  def _filtered_passes(self, key, params, projector, inputs, weights, *, source, teacher):
    adapted = self._tent_passes(key, params, projector, inputs, weights)
    return adapted, self.forward(source, inputs).logits

  def _robust_passes(self, key, params, projector, inputs, weights, *, source, teacher):
    target = self.forward(teacher, inputs).logits
    augmented = augment.jitter_signals(key, inputs)

    def objective(trained):
      params, projector = trained
      outputs, other = self.forward(params, inputs), self.forward(params, augmented)
      fixed = jax.lax.stop_gradient(outputs.features)
      views = jnp.concatenate([fixed, outputs.features, other.features])
      projected = self.project(projector, views)
      return jnp.vdot(outputs.logits + other.logits, weights) + projected.sum(), outputs.logits

    return target, jax.grad(objective, has_aux=True)((params, projector))

  def _cotta_passes(self, key, params, projector, inputs, weights, *, source, teacher):
    anchor = self.forward(source, inputs).logits

    def add(total, key):
      return total + self.forward(teacher, augment.jitter_signals(key, inputs)).logits, None

    keys = jax.random.split(key, _NUM_AUGMENTATIONS)
    target, _ = jax.lax.scan(add, jnp.zeros_like(weights), keys)
    grads = jax.grad(lambda p: jnp.vdot(self.forward(p, inputs).logits, weights))(params)
    return anchor, target, grads


def _torch_step(peer, short, ours):
  import torch

  return getattr(peer, short)(torch.tensor(np.array(ours.inputs))).detach().numpy()


def _torch_steps(peer, short: str, inputs) -> dict[str, Callable[[], Any]]:
  """The peer's next step with as many threads as there are cores, and with one."""
  import torch

  batch, step = torch.tensor(np.array(inputs)), getattr(peer, short)

  def with_threads(num):
    torch.set_num_threads(num)
    step(batch)

  return {
    _TORCH: functools.partial(with_threads, measure.num_cores()),
    _TORCH_SINGLE: functools.partial(with_threads, 1),
  }


def _largest_gap(ours: Callable[[], Any], peer: Callable[[], Any]) -> float:
  """Between the predictions of both sides, over three steps."""
  return max(float(np.abs(np.asarray(ours()) - peer()).max()) for _ in range(3))


def _stream(ours: _Ours, *, num_batches: int, quick: bool) -> dict[str, Any]:
  """A whole stream as one program, and as calls of one compiled step."""
  adapter, start = ours.adapter("tent")
  batches = jax.random.normal(jax.random.key(1), (num_batches, *ours.inputs.shape))
  keys = jax.random.split(ours.key, num_batches)
  whole = jax.jit(functools.partial(algorithms.adapt_stream, adapter=adapter))
  update = jax.jit(adapter.update)

  def scan():
    state, infos = whole(ours.key, state=start, batches=batches)
    return state.params, infos.logits

  def calls():
    state, logits = start, []
    for i in range(num_batches):
      state, info = update(keys[i], state, batches[i])
      logits.append(info.logits)
    return state.params, logits

  ends = [jax.tree.leaves(function()[0]) for function in (scan, calls)]
  same = all(np.allclose(a, b, atol=1e-3) for a, b in zip(*ends))
  functions = {_SCAN: Timed(scan, num_batches), _CALLS: Timed(calls, num_batches)}
  times = measure.interleave(functions, quick=quick, repetitions=9)
  checks = {
    "the same parameters in the end": same,
    "each compiles once": whole._cache_size() == update._cache_size() == 1,
  }
  return measure.result(ROWS[-1], times, checks=checks)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
