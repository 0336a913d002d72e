"""What a machine can do at most: the honest bound of a program that no peer bounds."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from jaxlab import training

_SIZE, _BYTES = 2048, 2**28
_REPETITIONS = 5
_ROW = 64


class Roof(NamedTuple):
  """The rates of a machine, measured in float32 on all its cores.

  Attributes:
    flops: floating point operations per second of a matrix product.
    reading: bytes per second of a sum over an array that no cache holds.
  """

  flops: float
  reading: float

  def of_flops(self, flops: float, seconds: float) -> dict[str, float]:
    """How near to the matrix product a program is, for the notes of a row."""
    share = flops / seconds / self.flops
    return {"GFLOP": flops / 1e9, "share of the matrix product's GFLOP/s": share}

  def of_reading(self, read: float, seconds: float) -> dict[str, float]:
    """How near to a sum a program is that must read some bytes, for the notes of a row."""
    share = read / seconds / self.reading
    return {"MB to read": read / 1e6, "share of a sum's GB/s": share}


def roof(mesh: jax.sharding.Mesh, *, quick: bool) -> Roof:
  """Measures the rates of the machine: the best of a few turns, each device with its part."""
  size, count = (64, 2**12) if quick else (_SIZE, _BYTES // 4)
  left = training.shard_batch(np.ones((size, size), np.float32), mesh)
  right = training.replicate(np.ones((size, size), np.float32), mesh)
  values = training.shard_batch(np.ones(count, np.float32), mesh)
  functions = {
    "product": functools.partial(jax.jit(jnp.matmul), left, right),
    "sum": functools.partial(jax.jit(jnp.sum), values),
  }
  times = measure.interleave(functions, quick=quick, repetitions=_REPETITIONS)
  return Roof(2 * size**3 / times["product"].min(), 4 * count / times["sum"].min())


def least_work(function: Callable[..., Any], *inputs: Any, moved: int) -> Callable[[], Any]:
  """A compiled program that does only what a function cannot do without.

  It copies as many bytes as the function must move, and evaluates as many exponentials as the
  function evaluates transcendental functions, most of which cost more. Additions, comparisons and
  sorts are free. A function that takes as long as this cannot be made faster.

  Args:
    function: what is compiled for the inputs.
    *inputs: its arguments.
    moved: bytes that are read or written at least once.

  Returns:
    The program, as `measure.interleave` takes it.
  """
  cost = jax.jit(function).lower(*inputs).compile().cost_analysis()
  rows = math.ceil(cost.get("transcendentals", 0.0) / _ROW)
  exponents = np.zeros((rows, _ROW), np.float32)
  block = np.zeros(moved // 8, np.float32)  # A copy reads and writes every byte.

  def work(block, exponents):
    return jnp.copy(block), jnp.sum(jnp.exp(exponents), axis=-1)

  return functools.partial(jax.jit(work), *jax.device_put((block, exponents)))
