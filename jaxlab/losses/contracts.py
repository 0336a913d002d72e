"""What every function of the house keeps: sums in float32 or wider, loud hyper-parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


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


def check_range(name: str, value: chex.Numeric, interval: str) -> None:
  """Raises if a hyper-parameter is known and lies outside its interval.

  A traced value cannot be looked at and passes, so that one may `vmap` over temperatures.

  Args:
    name: what the caller calls it.
    value: a number or an array of numbers.
    interval: as mathematics writes it, "[0, 1)" or "(0, inf)"; NaN lies in none.

  Raises:
    ValueError: naming the argument, the interval and the value.
  """
  if isinstance(value, jax.core.Tracer):
    return
  low, high = (float(end) for end in interval[1:-1].split(","))
  array = np.asarray(value, np.float64)
  above = array >= low if interval[0] == "[" else array > low
  below = array <= high if interval[-1] == "]" else array < high
  if not np.all(above & below):
    raise ValueError(f"{name} must lie in {interval}, got {value}.")
