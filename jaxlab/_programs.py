"""Loops as programs: compiled once for all eager calls, and legal inside `jax.shard_map`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

_ARRAY = object()
# Pairs that `sum_over_pairs` has in memory at once: they fit into a cache.
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
  # Blocks of one size, and what is left over.
  size = min(total, max(1, _PAIRS // num_pairs))

  def of_block(start, size):
    block = (jax.lax.dynamic_slice_in_dim(x, start, size, -1)[..., None, :] for x in theirs)
    return jax.tree.map(lambda x: jnp.sum(x, axis=-1), fn(*ours, *block))

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
