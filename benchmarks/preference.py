"""Preference losses: value and gradient beside the same formula in PyTorch and their least work."""

import functools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Row, Timed
from benchmarks.roofline import least_work
from jaxlab import losses

PACKAGES = ("torch",)
_BATCH, _LIST, _LENGTH = 4096, 8, 128


class _Objective(NamedTuple):
  """A loss, its name among the peer's, its arguments, and how many of them get a gradient."""

  ours: Any
  peer: str
  arguments: tuple[str, ...]
  trained: int


_REFERENCED = ("chosen", "rejected", "ref_chosen", "ref_rejected")
_OBJECTIVES = {
  "dpo_loss": _Objective(losses.dpo_loss, "dpo", _REFERENCED, 2),
  "robust_dpo_loss": _Objective(losses.robust_dpo_loss, "robust_dpo", _REFERENCED, 2),
  "ipo_loss": _Objective(losses.ipo_loss, "ipo", _REFERENCED, 2),
  "hinge_loss": _Objective(losses.hinge_loss, "hinge", _REFERENCED, 2),
  "slic_loss": _Objective(losses.slic_loss, "slic", ("chosen", "rejected"), 2),
  "simpo_loss": _Objective(
    losses.simpo_loss, "simpo", ("chosen", "rejected", "lengths", "other_lengths"), 2
  ),
  "orpo_loss": _Objective(losses.orpo_loss, "orpo", ("chosen_mean", "rejected_mean"), 2),
  "kto_loss": _Objective(
    losses.kto_loss, "kto", ("chosen", "ref_chosen", "desirable", "kl_estimate"), 1
  ),
  "rrhf_loss": _Objective(
    lambda means, totals, rewards: losses.rrhf_loss(means, rewards, sequence_log_probs=totals),
    "rrhf",
    ("list_means", "list_totals", "rewards"),
    2,
  ),
  "plackett_luce_loss": _Objective(losses.plackett_luce_loss, "plackett_luce", ("list_means",), 1),
  "bradley_terry_loss": _Objective(
    functools.partial(losses.bradley_terry_loss, center_coefficient=0.01),
    "bradley_terry",
    ("chosen", "rejected"),
    2,
  ),
  "coverage_loss": _Objective(
    lambda log_prob, num_samples: losses.coverage_loss(log_prob, num_samples=num_samples),
    "coverage",
    ("answers", "num_samples"),
    1,
  ),
  "clipped_policy_loss": _Objective(
    lambda lp, old, ref, advantages, mask: losses.clipped_policy_loss(
      lp, old, advantages, mask, reference_log_probs=ref, kl_coefficient=0.04
    ),
    "clipped_policy",
    ("tokens", "old_tokens", "ref_tokens", "chosen_mean", "mask"),
    1,
  ),
}
_PEERS = ("PyTorch, all cores", "PyTorch, one thread")
_OURS, _LEAST = "jaxlab, jitted", "the bytes and exponentials alone"
ROWS = tuple(
  row
  for name in _OBJECTIVES
  for row in (
    Row(f"{name}, batch {_BATCH}", _OURS, _PEERS[0], goal=1.0, unit="value and gradient"),
    Row(f"{name}, batch {_BATCH}", _OURS, _PEERS[1], unit="value and gradient"),
    Row(f"{name}, batch {_BATCH}", _OURS, _LEAST, "cost", goal=2.0),
  )
)


def run(quick: bool) -> Iterator[dict[str, Any]]:
  measure.start(divides=1)
  arrays = _arrays(64 if quick else _BATCH)
  for name, objective in _OBJECTIVES.items():
    group = f"{name}, batch {_BATCH}"
    inputs = [arrays[argument] for argument in objective.arguments]
    times = measure.interleave(_functions(objective, inputs), quick=quick)
    checks = {"same values and gradients to 1e-3": _agree(objective, inputs)}
    for row in ROWS:
      if row.group == group:
        yield measure.result(row, times, checks=checks if row.peer in _PEERS else None)


def _arrays(batch: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)

  def log_probs(*shape, scale=1.0):
    return (-scale * rng.random(shape) - 0.1).astype(np.float32)

  lists, tokens = (batch, _LIST), (batch, _LENGTH)
  return {
    "chosen": log_probs(batch, scale=50.0),
    "rejected": log_probs(batch, scale=50.0),
    "ref_chosen": log_probs(batch, scale=50.0),
    "ref_rejected": log_probs(batch, scale=50.0),
    "chosen_mean": log_probs(batch),
    "rejected_mean": log_probs(batch),
    "lengths": rng.integers(1, 200, batch).astype(np.float32),
    "other_lengths": rng.integers(1, 200, batch).astype(np.float32),
    # Likely enough for the peer's plain formula to be finite.
    "answers": log_probs(batch, scale=10.0),
    "desirable": rng.random(batch) < 0.5,
    "kl_estimate": np.float32(0.3),
    "num_samples": np.float32(16.0),
    "list_means": log_probs(*lists),
    "list_totals": log_probs(*lists, scale=50.0),
    "rewards": rng.integers(0, 5, lists).astype(np.float32),
    "tokens": log_probs(*tokens),
    "old_tokens": log_probs(*tokens),
    "ref_tokens": log_probs(*tokens),
    "mask": rng.random(tokens) < 0.8,
  }


def _functions(objective: _Objective, inputs: list[np.ndarray]) -> dict[str, Timed]:
  import torch

  compiled, arguments = _compiled(objective), jax.device_put(inputs)
  # Bytes that must move: every argument is read once, one loss per row and the gradients written
  # once.
  moved = sum(x.nbytes for x in inputs) + inputs[0].shape[0] * 4
  moved += sum(x.nbytes for x in inputs[: objective.trained])
  peer = _peer(objective, inputs)

  def with_threads(threads):
    def call():
      before = torch.get_num_threads()
      torch.set_num_threads(threads)
      peer()
      torch.set_num_threads(before)

    return call

  return {
    _OURS: Timed(functools.partial(compiled, *arguments)),
    _PEERS[0]: Timed(with_threads(measure.num_cores())),
    _PEERS[1]: Timed(with_threads(1)),
    _LEAST: Timed(least_work(compiled, *arguments, moved=moved)),
  }


def _compiled(objective: _Objective):
  def total(*arguments):
    losses = objective.ours(*arguments)
    return losses.sum(), losses

  argnums = tuple(range(objective.trained))
  return jax.jit(jax.value_and_grad(total, argnums=argnums, has_aux=True))


def _peer(objective: _Objective, inputs: list[np.ndarray]):
  """Value and gradient in eager PyTorch."""
  import torch

  from benchmarks.peers import preference as formulas

  tensors = [torch.tensor(x) for x in inputs]
  trained = tensors[: objective.trained]
  for tensor in trained:
    tensor.requires_grad_()
  loss = getattr(formulas, objective.peer)

  def call():
    losses = loss(*tensors)
    return losses, torch.autograd.grad(losses.sum(), trained)

  return call


def _agree(objective: _Objective, inputs: list[np.ndarray]) -> bool:
  (_, ours), our_slopes = _compiled(objective)(*inputs)
  peers, peer_slopes = _peer(objective, inputs)()
  pairs = zip((ours, *our_slopes), (peers, *peer_slopes))
  return all(np.allclose(a, b.detach().numpy(), rtol=1e-3, atol=1e-3) for a, b in pairs)


if __name__ == "__main__":
  measure.main(sys.modules[__name__])
