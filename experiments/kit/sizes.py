"""Checks of an experiment's sizes, for its `validate`: what is impossible is refused by name."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlab._checks import check_at_least, check_range

_MOST = 2**31 - 1  # Of the integers that index arrays.


def check_sizes(
  config: Any,
  *,
  zero: Sequence[str] = (),
  empty: Sequence[str] = (),
  shares: Sequence[str] = (),
) -> None:
  """Raises unless all numbers of a configuration, also those in tuples, can be sizes and rates.

  Args:
    config: a dataclass. Whole numbers are at least 1, other ones are finite and not negative.
    zero: the whole numbers that may be 0.
    empty: the tuples that may be empty.
    shares: the numbers that are at most 1.

  Raises:
    ValueError: naming the field and its value.
  """
  for field in dataclasses.fields(config):
    name, value = field.name, getattr(config, field.name)
    if value == () and name not in empty:
      raise ValueError(f"{name} must not be empty.")
    for item in value if isinstance(value, tuple) else (value,):
      if isinstance(item, float):
        check_range(name, item, "[0, 1]" if name in shares else "[0, inf)")
      elif isinstance(item, int) and not isinstance(item, bool):
        check_at_least(0 if name in zero else 1, **{name: item})
        check_at_most(_MOST, **{name: item})


def check_at_most(limit: int, /, **counts: int) -> None:
  """Raises if a count exceeds what there is; name batches and the rows they are drawn from.

  Args:
    limit: the largest allowed count.
    **counts: counts by the names of their fields.

  Raises:
    ValueError: naming the field, the limit and the value.
  """
  for name, count in counts.items():
    if count > limit:
      raise ValueError(f"{name} must be at most {limit}, got {count}.")


def check_divides(part: int, /, **wholes: int) -> None:
  """Raises unless a number of steps, rows or channels consists of whole parts.

  Args:
    part: the size of a part.
    **wholes: what is cut into parts, by the names of their fields.

  Raises:
    ValueError: naming the field, the part and the value.
  """
  for name, whole in wholes.items():
    if whole % part:
      raise ValueError(f"{name} must be a multiple of {part}, got {whole}.")


def check_known(known: Sequence[str], /, **chosen: Sequence[str]) -> None:
  """Raises if a name is none of those that there are.

  Args:
    known: the names.
    **chosen: names by the names of their fields.

  Raises:
    ValueError: naming the field, the name and those that there are.
  """
  for field, names in chosen.items():
    for name in names:
      if name not in known:
        raise ValueError(f"{field} must be among {', '.join(known)}, got {name!r}.")


def check_lengths(**fields: Sequence[Any]) -> None:
  """Raises unless fields that belong together have equally many entries.

  Args:
    **fields: tuples by the names of their fields.

  Raises:
    ValueError: naming the fields and their lengths.
  """
  lengths = {name: len(values) for name, values in fields.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"{', '.join(fields)} must have equally many entries, got {lengths}.")
