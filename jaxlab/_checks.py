"""Checks and casts of arguments, and a product without NaN, that every room shares.

Checks read the values of Python numbers and NumPy arrays only; these values are "known". Traced
arrays have no values to read, and reading an array on a device would block every eager call.
"""

import functools
import re
from collections.abc import Collection, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np


def is_known(value: chex.ArrayTree) -> bool:
  """Whether a value consists of Python numbers and NumPy arrays only, so that it may be read."""
  return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def as_accumulator(*arrays: chex.ArrayTree) -> jax.Array | tuple[jax.Array, ...]:
  """Casts to float32, or to the widest of the given types if that is wider.

  Reductions of half-precision inputs run in this type; float64 stays float64.

  Args:
    *arrays: arrays, numbers or lists of numbers.

  Returns:
    The array if one is given, else a tuple of all arrays, in one common type.
  """
  dtype = jnp.promote_types(jnp.result_type(*map(jnp.asarray, arrays)), jnp.float32)
  cast = tuple(jnp.asarray(array, dtype) for array in arrays)
  return cast if len(cast) > 1 else cast[0]


def as_classes(name: str, labels: chex.Array, num_classes: int) -> jax.Array:
  """Casts labels to int32 or wider, and raises if known labels lie outside the classes.

  Args:
    name: the caller's name for the labels.
    labels: classes, int `[...]`.
    num_classes: number k of classes.

  Returns:
    The labels. Negative labels, which would index from the end, become k, so that `take_along_axis`
    gives NaN for them as it does for labels that are too large.

  Raises:
    ValueError: naming the argument, the interval, the smallest and largest label, and where the
      first of those outside stands.
    TypeError: if the labels are no integers.
  """
  check_arrays(**{name: (labels, "int [...]")})
  classes = jnp.asarray(labels)
  if is_known(labels) and np.size(labels):
    low, high = np.min(labels), np.max(labels)
    if low < 0 or high >= num_classes:
      values = np.asarray(labels)
      at = np.argwhere((values < 0) | (values >= num_classes))[0].tolist()
      where = f"; the first outside is {name}{at}" if at else ""
      raise ValueError(f"{name} must lie in [0, {num_classes}), got {low} to {high}{where}.")
  classes = classes.astype(jnp.promote_types(classes.dtype, jnp.int32))
  return jnp.where(classes < 0, num_classes, classes)


def as_flags(name: str, flags: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Reads truth values that may be given as numbers.

  Args:
    name: the caller's name for the flags.
    flags: bool or 0 and 1, `[...]`.

  Returns:
    Which are set, bool `[...]`, and which are flags at all: neither NaN nor another number.

  Raises:
    ValueError: if a known flag is neither 0 nor 1, naming the argument and the values.
  """
  if is_known(flags):
    values = np.unique(flags)
    if not np.isin(values, (0, 1)).all():
      raise ValueError(f"{name} must be 0 or 1, got the values {values}.")
  flags = jnp.asarray(flags)
  return flags == 1, (flags == 0) | (flags == 1)


@jax.jit
def reaches(values: chex.Numeric, threshold: chex.Numeric) -> jax.Array:
  """Which values are at least a threshold: 1.0, 0.0, or NaN where either is NaN.

  `jnp.heaviside` is 0 or 1 for NaN in older versions of JAX.

  Args:
    values: floats.
    threshold: broadcasts with the values.

  Returns:
    Floats of their common type, without a gradient.
  """
  distance = jax.lax.stop_gradient(jnp.subtract(values, threshold))
  return jnp.where(jnp.isnan(distance), distance, (distance >= 0).astype(distance.dtype))


def weighted(weight: chex.Numeric, values: jax.Array) -> jax.Array:
  """Products, in which a weight of 0 leaves out infinite values.

  A class that is masked by a logit of -inf has an infinite cost, and 0 times infinity is NaN.

  Args:
    weight: a number, or an array that broadcasts with the values.
    values: `[...]`; NaN stays NaN.

  Returns:
    `weight * values`, and 0 with gradient 0 where the weight is 0 and the value infinite.
  """
  return weight * jnp.where((weight == 0) & jnp.isinf(values), 0.0, values)


def check_arrays(**arguments: tuple[chex.ArrayTree | None, str]) -> None:
  """Raises if arrays do not have the types and shapes that are written as in docstrings.

  `check_arrays(logits=(logits, "float [..., k]"), labels=(labels, "int [...]"))` wants logits of
  floats, labels of integers, and the same leading axes.

  Args:
    **arguments: array (or number, or list of numbers) and form by the caller's names for them. A
      form is an axis list, behind "float ", "int " or "bool " if the type matters. An axis is a
      name, which has one size in all arguments; a number; "*", of any size; or, once per list,
      "...", which stands for any number of axes, the same in all arguments. Arguments are held to
      the forms from left to right; None is not checked.

  Raises:
    ValueError: naming the first argument of another shape, its form, the sizes that earlier
      arguments gave, and the shape.
    TypeError: naming the first argument of another type, the type wanted, and the type.
  """
  sizes: dict[str, object] = {}
  for name, (array, form) in arguments.items():
    if array is None:
      continue
    if not hasattr(array, "shape"):
      array = jnp.asarray(array)
    shape = array.shape
    kind, axes = _parse_form(form)
    if kind is not None and not jnp.issubdtype(array.dtype, _KINDS[kind]):
      raise TypeError(f"{name} must be of type {kind}, got {array.dtype}{list(shape)}.")
    bound = _bind(axes, shape, sizes)
    if bound is None:
      shown = form.removeprefix(f"{kind} ")
      known = ", ".join(f"{k} = {v}" for k, v in sizes.items() if k in axes)
      raise ValueError(
        f"{name} must have shape {shown}{' with ' * bool(known)}{known}, got {list(shape)}."
      )
    sizes.update(bound)


_KINDS = {"float": jnp.floating, "int": jnp.integer, "bool": jnp.bool_}


@functools.cache
def _parse_form(form: str) -> tuple[str | None, tuple[str, ...]]:
  """The type, or None, and the axes of a form."""
  match = re.fullmatch(r"(?:(float|int|bool) )?\[(.*)\]", form)
  if match is None:
    raise ValueError(f"a form must look like 'float [..., k]', got {form!r}.")
  return match[1], tuple(axis.strip() for axis in match[2].split(",") if axis.strip())


def _bind(axes: tuple[str, ...], shape: tuple[int, ...], sizes: dict) -> dict | None:
  """Names of axes -> sizes, or None if the shape does not fit the axes and the known sizes."""
  bound = {}
  if "..." in axes:
    at, extra = axes.index("..."), len(shape) - len(axes) + 1
    if extra < 0:
      return None
    bound["..."] = list(shape[at : at + extra])
    axes, shape = axes[:at] + axes[at + 1 :], shape[:at] + shape[at + extra :]
  if len(axes) != len(shape):
    return None
  for axis, size in zip(axes, shape):
    if axis.isdigit():
      if size != int(axis):
        return None
    elif axis != "*" and bound.setdefault(axis, size) != size:
      return None
  return bound if all(sizes.get(k, v) == v for k, v in bound.items()) else None


def check_broadcast(**arrays: chex.Array) -> None:
  """Raises if arrays have shapes that do not broadcast against each other.

  Args:
    **arrays: arrays by the caller's names for them.

  Raises:
    ValueError: naming the arrays and their shapes.
  """
  shapes = [np.shape(array) for array in arrays.values()]
  try:
    np.broadcast_shapes(*shapes)
  except ValueError:
    shown = " and ".join(str(list(shape)) for shape in shapes)
    names = " and ".join(arrays)
    raise ValueError(f"{names} must have shapes that broadcast, got {shown}.") from None


def check_increasing(name: str, values: chex.Array) -> None:
  """Raises if a known list of numbers does not increase strictly.

  Args:
    name: the caller's name for the numbers.
    values: `[n]`.

  Raises:
    ValueError: naming the argument and the first two numbers that do not increase.
  """
  if not is_known(values):
    return
  array = np.asarray(values, np.float64)
  bad = np.flatnonzero(~(np.diff(array) > 0))
  if bad.size:
    low, high = array[bad[0] : bad[0] + 2]
    raise ValueError(f"{name} must increase strictly, got {high} after {low}.")


def check_range(name: str, value: chex.Numeric, interval: str) -> None:
  """Raises if a known number, or an entry of a known array, lies outside an interval.

  Args:
    name: the caller's name for the value.
    value: a number or an array of numbers.
    interval: in mathematical notation, "[0, 1)" or "(0, inf)"; NaN lies in no interval.

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


def check_pair(name: str, values: Sequence[chex.Numeric], interval: str) -> None:
  """Raises if the ends of a range are known and not two numbers in order.

  Args:
    name: the caller's name for the two.
    values: the lower and the upper end, which may be equal.
    interval: where both must lie, as for `check_range`.

  Raises:
    ValueError: naming the argument and the values.
  """
  if len(values) != 2:
    raise ValueError(f"{name} must be two numbers, got {values}.")
  for value in values:
    check_range(name, value, interval)
  low, high = values
  if is_known(low) and is_known(high) and not low <= high:
    raise ValueError(f"{name} must be two numbers in order, got {values}.")


def check_probabilities(name: str, probs: chex.Array) -> None:
  """Raises if known probabilities are negative, or do not sum to 1 along the last axis.

  Args:
    name: the caller's name for the probabilities.
    probs: `[n, k]`; sums may miss 1 by 0.01, for half floats and for rounded texts.

  Raises:
    ValueError: naming the argument, the first such row, and its sum or smallest entry.
  """
  if not is_known(probs) or not np.size(probs):
    return
  # Sums and minima of a row need no second array of the size of the first.
  probs = np.asarray(probs)
  sums = probs.sum(axis=-1, dtype=np.promote_types(probs.dtype, np.float32))
  wrong = np.flatnonzero(~(np.abs(sums - 1) <= 0.01))
  if wrong.size:
    raise ValueError(f"{name} must sum to 1, got {sums[wrong[0]]} in row {wrong[0]}.")
  least = probs.min(axis=-1)
  wrong = np.flatnonzero(least < 0)
  if wrong.size:
    raise ValueError(f"{name} must not be negative, got {least[wrong[0]]} in row {wrong[0]}.")


def check_at_least(minimum: int, **counts: int | None) -> None:
  """Raises if a count is too small.

  Args:
    minimum: the smallest allowed count.
    **counts: counts by the caller's names for them; None is not checked.

  Raises:
    ValueError: naming the count, the minimum and the value.
  """
  for name, count in counts.items():
    if count is not None and count < minimum:
      raise ValueError(f"{name} must be at least {minimum}, got {count}.")


def check_filled(**arrays: chex.Array) -> None:
  """Raises if an array has no entries.

  Args:
    **arrays: arrays by the caller's names for them.

  Raises:
    ValueError: naming the array and its shape.
  """
  for name, array in arrays.items():
    if 0 in np.shape(array):
      raise ValueError(f"{name} must not be empty, got shape {list(np.shape(array))}.")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
  """Raises if a value is not one of the choices.

  Args:
    name: the caller's name for the value.
    value: the value.
    choices: the allowed values.

  Raises:
    ValueError: naming the argument, the choices and the value.
  """
  if value not in choices:
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be one of {listed}, got {value!r}.")
