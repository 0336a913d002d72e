"""Many small trainings that differ in numbers alone, as one program."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec


def stack(trees: Iterable[Any]):
  """Stacks pytrees of equal structure along a new leading axis, in float32."""
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(x, np.float32) for x in leaves]), *trees)


def over_members(fn: Callable[[Any], Any], members, mesh: jax.sharding.Mesh):
  """`[fn(member) for member in members]`, stacked: spread over devices, one after the other there.

  So small a network is done sooner alone, in cache, than with others beside it.
  """
  num, devices = jax.tree.leaves(members)[0].shape[0], mesh.shape["data"]
  rows = np.arange(-(-num // devices) * devices) % num
  spec = PartitionSpec("data")
  run = jax.shard_map(
    lambda members: jax.lax.map(fn, members),
    mesh=mesh,
    in_specs=spec,
    out_specs=spec,
    check_vma=False,
  )
  results = jax.jit(run)(jax.tree.map(lambda x: x[rows], members))
  return jax.tree.map(lambda x: np.asarray(x)[:num], results)
