"""Endless batches that are functions of a seed and a position, and so go on after a kill."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlab import samplers
from jaxlab._checks import check_at_least


class SeededBatches:
  """An endless iterator of `draw(rng)`.

  The generator is that of (seed, position) alone, so the position is all that a checkpoint must
  hold, and the batches do not depend on the number of devices.
  """

  def __init__(self, draw: Callable[[np.random.Generator], Any], *, seed: int):
    """Keeps how a batch is drawn; the first is at position 0."""
    self._draw, self._seed, self._position = draw, seed, 0

  def __iter__(self):
    return self

  def __next__(self) -> Any:
    batch = self._draw(np.random.default_rng((self._seed, self._position)))
    self._position += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """The position, as a checkpoint holds it."""
    return {"position": self._position}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on from a position."""
    self._position = int(state["position"])


def draw_key_data(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Draws raw random keys for `jax.random.wrap_key_data`.

  Args:
    rng: the generator.
    shape: of the array of keys.

  Returns:
    uint32 `[*shape, 2]`.
  """
  return rng.integers(0, 2**32, size=(*shape, 2), dtype=np.uint32)


def prior_batches(
  *,
  seed: int,
  batch_size: int,
  max_context: int,
  scheme: str = "uniform",
  min_context: int = 0,
  group_size: int = 1,
  steps_per_call: int = 1,
) -> SeededBatches:
  """Batches of what a prior needs to draw data sets: keys, and a context size.

  The data sets themselves are drawn inside the training step, where each device draws its own
  share.

  Args:
    seed: of the batches.
    batch_size: data sets of a step.
    max_context: the context size, shared by all data sets of a step, is below it.
    scheme: see `jaxlab.samplers.context_size_probs`.
    min_context: smallest context size.
    group_size: data sets that the prior draws from one key; divides `batch_size`.
    steps_per_call: steps of a batch; above 1 they are its leading axis.

  Returns:
    An endless iterator of dicts of arrays with k = `batch_size / group_size` rows: `key`, uint32
    `[k, 2]`, and `num_context`, int32 `[k]`, the same number in each.

  Raises:
    ValueError: if a size is below 1, `group_size` does not divide `batch_size`, `scheme` is
      unknown, or `min_context` lies outside `[0, max_context - 1]`.
  """
  check_at_least(1, batch_size=batch_size, group_size=group_size, steps_per_call=steps_per_call)
  if batch_size % group_size:
    raise ValueError(f"batch_size {batch_size} is not a multiple of group_size {group_size}.")
  if not 0 <= min_context < max(max_context, 1):
    raise ValueError(f"min_context must lie in [0, {max_context - 1}], got {min_context}.")
  probs = np.array(samplers.context_size_probs(max_context, scheme=scheme), np.float64)
  probs[:min_context] = 0.0
  probs /= probs.sum()
  shape = (steps_per_call, batch_size // group_size)

  def draw(rng):
    num_context = rng.choice(len(probs), size=(steps_per_call, 1), p=probs)
    batch = {
      "key": draw_key_data(rng, shape),
      "num_context": np.broadcast_to(num_context, shape).astype(np.int32),
    }
    return batch if steps_per_call > 1 else {name: value[0] for name, value in batch.items()}

  return SeededBatches(draw, seed=seed)
