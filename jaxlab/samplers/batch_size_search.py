"""The largest batch that fits into memory, by trying sizes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_range

_LARGEST = 2**31


class BatchSizeSearch(NamedTuple):
  """What a search found.

  Attributes:
    batch_size: the largest size that was seen to fit; 0 if none does.
    num_trials: sizes that were tried.
  """

  batch_size: int
  num_trials: int


def search_batch_size(
  fits_fn: Callable[[int], bool], *, start_batch_size: int = 32, relative_gap: float = 0.05
) -> BatchSizeSearch:
  """Doubles or halves a batch size until one fits and one does not, and then bisects.

  For buckets, search from the longest to the shortest, and start at twice the last result.

  Args:
    fits_fn: whether a batch size fits, such as whether a training step runs without running out of
      memory, or `compiled_memory_bytes` of it stays below a budget. What fits at a size must fit at
      all smaller ones.
    start_batch_size: the first size, at least 1.
    relative_gap: the search ends when the smallest size that failed exceeds the largest that fitted
      by at most this share of itself, or by 1; in (0, 1).

  Returns:
    The `BatchSizeSearch`.

  Raises:
    ValueError: if `start_batch_size` < 1, `relative_gap` lies outside (0, 1), or every size fits.

  Reference: Żelasko et al., Training and Inference Efficiency of Encoder-Decoder Speech Models,
  2025, section 3, https://arxiv.org/abs/2503.05931: OOMptimizer, as in the package NeMo.
  """
  check_at_least(1, start_batch_size=start_batch_size)
  check_range("relative_gap", relative_gap, "(0, 1)")
  current, largest_fit, smallest_miss, num_trials = start_batch_size, 0, None, 0
  while True:
    num_trials += 1
    if fits_fn(current):
      largest_fit = current
    else:
      smallest_miss = current
    if smallest_miss is None:
      if current > _LARGEST:
        raise ValueError(f"fits_fn must fail for some batch size, but {current} fits.")
      current = 2 * current
      continue
    gap = smallest_miss - largest_fit
    if gap <= 1 or gap / smallest_miss <= relative_gap:
      return BatchSizeSearch(largest_fit, num_trials)
    current = round((largest_fit + smallest_miss) / 2)


def search_batch_size_linear(
  *,
  cost_per_example: float,
  budget: float,
  start_batch_size: int = 32,
  relative_gap: float = 0.05,
) -> BatchSizeSearch:
  """`search_batch_size` where the cost of a batch is its size times that of one example.

  Args:
    cost_per_example: what an example costs, > 0.
    budget: what a batch may cost, > 0, in the same unit.
    start_batch_size: the first size, at least 1.
    relative_gap: as in `search_batch_size`.

  Returns:
    The `BatchSizeSearch`.

  Raises:
    ValueError: if a number lies outside its range, or every size fits.
  """
  check_range("cost_per_example", cost_per_example, "(0, inf)")
  check_range("budget", budget, "(0, inf)")
  return search_batch_size(
    lambda size: size * cost_per_example <= budget,
    start_batch_size=start_batch_size,
    relative_gap=relative_gap,
  )


def compiled_memory_bytes(fn: Callable[..., Any], *args: Any) -> int:
  """Memory that a compiled function needs, without running it or allocating its arguments.

  Args:
    fn: a function that `jax.jit` can compile.
    *args: its arguments, arrays or `jax.ShapeDtypeStruct`.

  Returns:
    Bytes of the temporary buffers, the arguments and the results, as the compiler of the default
    backend plans them.

  Raises:
    RuntimeError: if the backend does not say.
  """
  memory = jax.jit(fn).lower(*args).compile().memory_analysis()
  if memory is None:
    raise RuntimeError(f"backend {jax.default_backend()} does not analyze memory.")
  sizes = (memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes)
  return int(sum(sizes))


def merge_equal_buckets(
  bounds: chex.Array, batch_sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Joins neighboring buckets of equal batch size into one.

  Args:
    bounds: upper bounds in ascending order, `[m]`.
    batch_sizes: batch size of each bucket, `[m]`.

  Returns:
    The bounds, of joined buckets the largest, and the batch sizes, `[k]` each, k <= m.

  Raises:
    ValueError: if shapes differ.

  Reference: Żelasko et al., 2025, section 3, https://arxiv.org/abs/2503.05931.
  """
  bounds, batch_sizes = np.asarray(bounds), np.asarray(batch_sizes)
  check_arrays(bounds=(bounds, "[m]"), batch_sizes=(batch_sizes, "int [m]"))
  last = np.append(batch_sizes[1:] != batch_sizes[:-1], True)[: len(bounds)]
  return bounds[last], batch_sizes[last]
