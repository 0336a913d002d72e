"""Loops as programs: compiled once for all eager calls, and legal inside `jax.shard_map`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

_ARRAY = object()
# Numbers, or pairs of them, that a block has in memory at once: they fit into a cache.
_PAIRS = 2**18


def compiled_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes eager calls of a function one program, which later calls with equal arguments reuse.

  JAX recognizes a loop by the function that is its body. A body that is defined inside the function
  is a new one at every call, and would be compiled again.

  In place of names of static arguments as for `jax.jit`, an array (or a key) is traced wherever it
  stands in the arguments, and everything else is static: numbers, strings, and callables, which are
  the same if they are one object or compare equal. Values of arrays cannot be checked inside. Under
  a transformation, where nothing is compiled, the function runs as it is.

  Args:
    function: takes pytrees of arrays, numbers, strings and callables; returns a pytree of arrays.

  Returns:
    The function with the same arguments. It keeps its last programs, and what is static in them.
  """

  @functools.lru_cache(maxsize=16, typed=True)
  def program(structure, *static):
    def run(arrays):
      arrays = iter(arrays)
      leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in static]
      args, kwargs = jax.tree.unflatten(structure, leaves)
      return function(*args, **kwargs)

    return jax.jit(run)

  @functools.wraps(function)
  def call(*args, **kwargs):
    leaves, structure = jax.tree.flatten((args, kwargs))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return function(*args, **kwargs)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    static = [_ARRAY if _is_array(leaf) else leaf for leaf in leaves]
    try:
      run = program(structure, *static)
    except TypeError:  # A callable that has no hash cannot be recognized.
      return function(*args, **kwargs)
    return run(arrays)

  return call


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array | np.ndarray)


def varying_carry(
  body: Callable[..., Any], carry: chex.ArrayTree, rows: chex.ArrayTree | None = None
) -> chex.ArrayTree:
  """The first carry of a loop, in the type that the body gives it inside `jax.shard_map`.

  There the type of an array says over which axes of the mesh it varies, and a loop must not change
  the type of its carry. A carry that starts as zeros varies over none until data are added.

  Args:
    body: `(carry) -> carry` of a `while_loop`, or `(carry, row) -> (carry, output)` of a `scan`.
    carry: the first carry.
    rows: what a scan runs over, stacked; at least one row.

  Returns:
    The carry, which varies over all axes over which an array in it or in the body's results does.
    Outside `jax.shard_map` it is returned as it is.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return carry
  row = [] if rows is None else [jax.tree.map(lambda leaf: leaf[0], rows)]
  results = jax.make_jaxpr(body)(carry, *row).out_avals
  types = (*results, *map(jax.typeof, jax.tree.leaves(carry)))
  axes = frozenset().union(*map(_varying_axes, types))

  def vary(leaf):
    missing = tuple(axes - _varying_axes(jax.typeof(leaf)))
    if hasattr(jax.lax, "pcast"):
      return jax.lax.pcast(leaf, missing, to="varying")
    return jax.lax.pvary(leaf, missing)  # The name in JAX 0.8.

  return jax.tree.map(vary, carry)


def _varying_axes(aval: Any) -> frozenset[str]:
  # JAX renamed `vma` in version 0.10.
  return aval.vma if hasattr(aval, "vma") else aval.manual_axis_type.varying


def sum_over_pairs(
  fn: Callable[..., chex.ArrayTree], ours: Sequence[chex.Array], theirs: Sequence[chex.Array]
) -> chex.ArrayTree:
  """Sums a function of pairs over the second of each pair, without an array of all pairs.

  XLA on CPU keeps such an array, which takes longer to write and read than to compute.

  Args:
    fn: elementwise, takes all arrays and returns a pytree of arrays.
    ours: arrays `[..., m]`.
    theirs: arrays `[..., k]`, k >= 1.

  Returns:
    The sums over k of `fn(*ours, *theirs)`, `[..., m]` each; sums of booleans are counts.
  """
  ours = [x[..., None] for x in ours]
  num_pairs, total = max(ours[0].size, 1), theirs[0].shape[-1]

  def of_block(start, size):
    block = (jax.lax.dynamic_slice_in_dim(x, start, size, -1)[..., None, :] for x in theirs)
    return jax.tree.map(lambda x: jnp.sum(x, axis=-1), fn(*ours, *block))

  return _sum_of_blocks(of_block, total, max(1, _PAIRS // num_pairs))


def sum_over_rows(
  fn: Callable[..., chex.ArrayTree], *arrays: chex.Array, width: int
) -> chex.ArrayTree:
  """Sums what a function makes of blocks of rows, so that no array of all rows is made.

  Args:
    fn: takes a block of every array, `[b, ...]` with any b, and returns a pytree of arrays whose
      shapes do not depend on b.
    *arrays: `[n, ...]`, n >= 1.
    width: numbers that `fn` has in memory for a row.

  Returns:
    The sums over the blocks.
  """
  return _sum_of_blocks(lambda *at: fn(*_rows(arrays, *at)), *_block_sizes(arrays, width))


def map_over_rows(
  fn: Callable[..., chex.ArrayTree], *arrays: chex.Array, width: int
) -> chex.ArrayTree:
  """Applies a function of rows block by block, so that only its results exist for all rows.

  Args:
    fn: takes a block of every array, `[b, ...]` with any b, and returns a pytree of arrays with b
      rows, each of which depends on its own row.
    *arrays: `[n, ...]`.
    width: numbers that `fn` has in memory for a row.

  Returns:
    The pytree of `fn(*arrays)`.
  """
  total, size = _block_sizes(arrays, width)
  if total <= size:
    return fn(*arrays)
  whole, rest = divmod(total, size)
  parts = jax.lax.map(lambda i: fn(*_rows(arrays, i * size, size)), jnp.arange(whole))
  parts = jax.tree.map(lambda x: x.reshape(whole * size, *x.shape[2:]), parts)
  if rest:
    last = fn(*_rows(arrays, whole * size, rest))
    parts = jax.tree.map(lambda *x: jnp.concatenate(x), parts, last)
  return parts


def _rows(arrays: Sequence[chex.Array], start: chex.Numeric, size: int) -> list[jax.Array]:
  return [jax.lax.dynamic_slice_in_dim(x, start, size) for x in arrays]


def _block_sizes(arrays: Sequence[chex.Array], width: int) -> tuple[int, int]:
  """Number of rows, and of those of a block."""
  return arrays[0].shape[0], max(1, _PAIRS // max(width, 1))


def _sum_of_blocks(of_block: Callable[..., chex.ArrayTree], total: int, size: int):
  """Sums `of_block(start, size)` over blocks of one size, and what is left over."""
  size = min(total, size)
  whole, rest = divmod(total, size)
  sums = of_block(0, size)
  if whole > 1:

    def add(i, sums):
      return jax.tree.map(jnp.add, sums, of_block(i * size, size))

    sums = jax.lax.fori_loop(1, whole, add, sums)
  if rest:
    sums = jax.tree.map(jnp.add, sums, of_block(whole * size, rest))
  return sums


@jax.jit
def num_earlier_equal(values: chex.Array, counted: chex.Array) -> jax.Array:
  """How many earlier entries of a row that count have the same value.

  Args:
    values: numbers, `[..., n]`, n >= 1.
    counted: which entries count, bool `[..., n]`.

  Returns:
    Integers, `[..., n]`; 0 at the first occurrence of a value, if it counts.
  """
  places = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)

  def is_earlier(ours, here, theirs, there, counted):
    return counted & (ours == theirs) & (there < here)

  return sum_over_pairs(is_earlier, (values, places), (values, places, counted))
