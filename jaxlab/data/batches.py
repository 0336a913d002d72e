"""Batches from a source: shuffled, sharded over processes, resumable."""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxlab._checks import check_at_least
from jaxlab._extras import import_extra
from jaxlab.data.sources import Example, Source, read_examples, stack_examples


class BatchIterator(Protocol):
  """An iterator over batches whose position can be saved and restored."""

  def __iter__(self) -> Iterator[Example]:
    """Itself."""

  def __next__(self) -> Example:
    """The next batch."""

  def get_state(self) -> dict[str, Any]:
    """The position: the next batch is the first one not returned yet."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Moves to a position."""


def batch_iterator(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  num_epochs: int | None = None,
  shuffle: bool = True,
  drop_remainder: bool = True,
  transforms: Sequence[Callable[[Example], Example]] = (),
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Iterates over a source in batches.

  Every epoch is a fresh permutation of the whole source, split over the processes, so together they
  see every example once per epoch. Batches never straddle two epochs. The batch at step n depends
  on the arguments and n alone, so the state is one number and resuming costs nothing. Threads read
  a few batches ahead. A permutation takes 8 bytes per example.

  Args:
    source: the examples: `len(source)`, `source[i]` -> dict of arrays of equal shapes.
    batch_size: examples per batch of this process.
    seed: of the permutations, in [0, 2^32); the same in all processes.
    num_epochs: passes over the source; None repeats forever.
    shuffle: False keeps the source's order, in every epoch.
    drop_remainder: True: full batches only, and as many in each process (which examples of an
      epoch are left out changes with the permutation). False: an epoch's last batch is short, it
      is not padded, and one process may get a batch more than another.
    transforms: functions dict -> dict, applied in order to each example before batching.
    process_index: which share of every epoch this process gets, in [0, process_count).
    process_count: number of shares.

  Returns:
    An iterator over dicts of NumPy arrays with a leading axis b, with `get_state()`, which gives
    a small dict that JSON can hold, and `set_state(state)`.

  Raises:
    ValueError: if an argument is out of range, the source is empty, or it is too small to give
      each process one batch.
  """
  grain = import_extra("grain", extra="data")

  num = len(source)
  _check_arguments(num, batch_size, seed, num_epochs, drop_remainder, process_index, process_count)
  if drop_remainder:
    batches_an_epoch = num // process_count // batch_size
  else:
    batches_an_epoch = math.ceil(len(range(process_index, num, process_count)) / batch_size)

  # Keeps two epochs, since reading ahead crosses their border. RandomState's streams are frozen;
  # those of NumPy's newer generators may change between versions.
  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    if not shuffle:
      return np.arange(num)
    return np.random.RandomState([seed, epoch]).permutation(num)

  def read(step: int) -> Example:
    epoch, position = divmod(step, batches_an_epoch)
    share = order(epoch)[process_index::process_count]
    indices = share[position * batch_size : (position + 1) * batch_size]
    examples = read_examples(source, indices.tolist())
    for transform in transforms:
      examples = [transform(example) for example in examples]
    return stack_examples(examples)

  # The pipeline is over steps: shuffling in grain would cost most where the source is smallest.
  num_steps = sys.maxsize if num_epochs is None else num_epochs * batches_an_epoch
  threads = min(4, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  return iter(grain.MapDataset.range(num_steps).map(read).to_iter_dataset(options))


def stack_batches(iterator: BatchIterator, steps: int) -> BatchIterator:
  """Groups batches for an update that runs several steps per call.

  Args:
    iterator: over batches of equal shapes (`drop_remainder=True`), as of `batch_iterator`.
    steps: batches per group.

  Returns:
    An iterator over dicts of arrays `[steps, b, ...]`; its state is that of `iterator`. Batches
    at the end that do not fill a group are left out.

  Raises:
    ValueError: if `steps` < 1; on iteration, if the shapes of the batches differ.
  """
  check_at_least(1, steps=steps)
  return _StackedBatches(iterator, steps)


class _StackedBatches:
  def __init__(self, iterator: BatchIterator, steps: int):
    self._iterator = iterator
    self._steps = steps

  def __iter__(self) -> "_StackedBatches":
    return self

  def __next__(self) -> Example:
    return stack_examples([next(self._iterator) for _ in range(self._steps)])

  def get_state(self) -> dict[str, Any]:
    return self._iterator.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._iterator.set_state(state)


def _check_arguments(
  num_examples: int,
  batch_size: int,
  seed: int,
  num_epochs: int | None,
  drop_remainder: bool,
  process_index: int,
  process_count: int,
) -> None:
  if num_examples == 0:
    raise ValueError("source is empty: there is nothing to batch.")
  check_at_least(1, batch_size=batch_size, num_epochs=num_epochs, process_count=process_count)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed must lie in [0, 2^32), got {seed}.")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index must lie in [0, process_count={process_count}), got {process_index}."
    )
  share = num_examples // process_count
  needed = batch_size if drop_remainder else 1
  if share < needed:
    raise ValueError(
      f"a source of {num_examples} examples is too small for batch_size={batch_size} with "
      f"drop_remainder={drop_remainder} in process_count={process_count} processes: "
      f"{share} examples each."
    )
