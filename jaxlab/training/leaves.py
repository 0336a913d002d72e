"""Leaves of a checkpoint: their names, how they are stored, and how they come back."""

from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def descriptions(state: chex.ArrayTree) -> dict[str, str]:
  """Maps the path of every leaf to its dtype and shape, as in `float32[3,4]`."""
  return {
    leaf_name(path): f"{dtype_of(leaf)}[{','.join(map(str, np.shape(leaf)))}]"
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def leaf_name(path: tuple[Any, ...]) -> str:
  """The path of a leaf, as errors and records of checkpoints name it."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def dtype_of(leaf: Any) -> Any:
  """The type of an array, or that of the array that a number becomes."""
  return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_key(leaf: Any) -> bool:
  """Whether a leaf is a typed random key."""
  return jnp.issubdtype(dtype_of(leaf), jax.dtypes.prng_key)


def storable(leaf: Any) -> jax.Array | np.ndarray:
  """The array that is stored of a leaf: of a random key its data."""
  if is_key(leaf):
    leaf = jax.random.key_data(leaf)
  # An array held by one process alone is its copy of values that are equal in all processes.
  local = jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True)
  return leaf if isinstance(leaf, jax.Array) and not local else np.asarray(leaf)


def target(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
  """How to restore a leaf: onto its devices, or, if it is bound to none, into host memory."""
  sharding = getattr(leaf, "sharding", None)
  bound = sharding is not None and getattr(leaf, "committed", True)
  if jax.process_count() > 1 and bound:
    bound = not sharding.is_fully_addressable
  if is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  if bound:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return np.empty(np.shape(leaf), dtype_of(leaf))


def like(leaf: Any, data: jax.Array | np.ndarray, key_impls: Iterator[str]) -> Any:
  """What was stored as a leaf of the kind of the given one: a key, an array or a number."""
  if is_key(leaf):
    return jax.random.wrap_key_data(data, impl=next(key_impls))
  if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
    return jnp.asarray(data)
  return data if isinstance(leaf, np.ndarray) else data.item()


def fingerprints(tree: chex.ArrayTree) -> list[int]:
  """One number per leaf, which another value in any place changes."""
  return [int(x) for x in jax.device_get([_fingerprint(leaf) for leaf in jax.tree.leaves(tree)])]


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
  """Sums an array's words modulo 2^32, each times an odd factor that depends on its position.

  Any change of one word changes the sum, since odd factors are invertible. An integer sum does not
  depend on the sharding, and each device needs only its part.
  """
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], axis=-1)
  bits = x.dtype.itemsize * 8
  if bits == 64:
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
  elif jnp.issubdtype(x.dtype, jnp.floating):
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
  else:
    words = x.astype(jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
