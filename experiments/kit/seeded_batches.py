"""Endless batches that are functions of a seed and a position, and so go on after a kill."""

from collections.abc import Callable
from typing import Any

import numpy as np


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


def key_data(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Raw random keys for `jax.random.wrap_key_data`, uint32 `[*shape, 2]`."""
  return rng.integers(0, 2**32, size=(*shape, 2), dtype=np.uint32)
