"""The k largest of each row, without moving rows between devices."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab._programs import compiled_once


@compiled_once
def row_top_k(values: chex.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`jax.lax.top_k` that keeps a batch sharded; no gradient flows through it.

  For a plain `top_k` the compiler gathers all rows on every device, although rows are independent.

  Args:
    values: numbers, `[..., n]`; the last axis is not sharded.
    k: how many, in [1, n].

  Returns:
    The k largest in descending order and their indices, i32, both `[..., k]`; on ties the lowest
    index comes first.

  Raises:
    ValueError: if k lies outside [1, n].
  """
  values = jnp.asarray(values)
  if not 1 <= k <= values.shape[-1]:
    raise ValueError(f"k must lie in [1, {values.shape[-1]}], got {k}.")

  @jax.custom_batching.custom_vmap
  def call(values):
    return _top_k(values, k)

  @call.def_vmap
  def _(axis_size, in_batched, values):
    del axis_size, in_batched
    return call(values), (True, True)

  return call(jax.lax.stop_gradient(values))


@partial(custom_partitioning, static_argnums=(1,))
def _top_k(values, k):
  return tuple(jax.lax.top_k(values, k))


def _partition(k, mesh, operands, results):
  del results
  (operand,) = operands
  spec = tuple(operand.sharding.spec)
  rows = (spec + (None,) * len(operand.shape))[: len(operand.shape) - 1]
  sharding = NamedSharding(mesh, PartitionSpec(*rows, None))
  return mesh, lambda values: tuple(jax.lax.top_k(values, k)), (sharding, sharding), (sharding,)


_top_k.def_partition(
  partition=_partition,
  sharding_rule="... n -> ... k, ... k",
  need_replication_factors=("n", "k"),
)
