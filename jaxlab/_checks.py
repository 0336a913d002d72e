"""Checks and casts of arguments that every room shares.

A check of values looks at Python numbers and NumPy arrays alone. A traced value cannot be looked
at, so that one may `vmap` over temperatures, and reading a device's array would wait for the device
in every eager call.
"""

from collections.abc import Collection

import chex
import jax
import jax.numpy as jnp
import numpy as np


def is_known(value: chex.ArrayTree) -> bool:
  """Whether a value is made of Python numbers and NumPy arrays, and so may be looked at."""
  return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def as_accumulator(*arrays: chex.ArrayTree) -> jax.Array | tuple[jax.Array, ...]:
  """Casts to float32, or to the widest type given if that is wider.

  Reductions of half-precision inputs run in what this gives; float64 stays float64.

  Args:
    *arrays: arrays, numbers or lists of numbers.

  Returns:
    The one array, or a tuple of all, in one type.
  """
  dtype = jnp.promote_types(jnp.result_type(*map(jnp.asarray, arrays)), jnp.float32)
  cast = tuple(jnp.asarray(array, dtype) for array in arrays)
  return cast if len(cast) > 1 else cast[0]


def as_classes(name: str, labels: chex.Array, num_classes: int) -> jax.Array:
  """Casts labels to int32 or wider, and raises if known ones are no classes.

  Args:
    name: what the caller calls them.
    labels: classes, int `[...]`.
    num_classes: number k of classes.

  Returns:
    The labels. Negative ones, which would index from the end, become k: `take_along_axis` gives NaN
    for them as for all that are too large.

  Raises:
    ValueError: naming the argument, the interval and the extremes.
  """
  classes = jnp.asarray(labels)
  chex.assert_type(classes, int)
  if is_known(labels) and np.size(labels):
    low, high = np.min(labels), np.max(labels)
    if low < 0 or high >= num_classes:
      raise ValueError(f"{name} must lie in [0, {num_classes}), got {low} to {high}.")
  classes = classes.astype(jnp.promote_types(classes.dtype, jnp.int32))
  return jnp.where(classes < 0, num_classes, classes)


def check_range(name: str, value: chex.Numeric, interval: str) -> None:
  """Raises if a known number, or one of a known array, lies outside an interval.

  Args:
    name: what the caller calls it.
    value: a number or an array of numbers.
    interval: as mathematics writes it, "[0, 1)" or "(0, inf)"; NaN lies in none.

  Raises:
    ValueError: naming the argument, the interval and the value.
  """
  if not is_known(value):
    return
  low, high = (float(end) for end in interval[1:-1].split(","))
  array = np.asarray(value, np.float64)
  above = array >= low if interval[0] == "[" else array > low
  below = array <= high if interval[-1] == "]" else array < high
  if not np.all(above & below):
    raise ValueError(f"{name} must lie in {interval}, got {value}.")


def check_at_least(minimum: int, **counts: int | None) -> None:
  """Raises if a count is too small.

  Args:
    minimum: the least that is allowed.
    **counts: by the names that the caller has for them; None is an option that is off.

  Raises:
    ValueError: naming the count, the minimum and the value.
  """
  for name, count in counts.items():
    if count is not None and count < minimum:
      raise ValueError(f"{name} must be at least {minimum}, got {count}.")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
  """Raises if a mode is none of those there are.

  Args:
    name: what the caller calls it.
    value: the mode.
    choices: what it may be.

  Raises:
    ValueError: naming the argument, the choices and the value.
  """
  if value not in choices:
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be one of {listed}, got {value!r}.")
