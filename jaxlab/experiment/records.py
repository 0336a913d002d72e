"""What an experiment measured: records, and how one number per seed is read from them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Setting = str | int | float | bool | None


class Record(NamedTuple):
  """One quantity of one method in one setting.

  Attributes:
    method: what was measured.
    quantity: what was measured of it, for example "test/accuracy".
    setting: name -> value of whatever else tells records apart, for example the data set.
    values: one number per seed, `[seeds]`, or fewer, of the first seeds; or a single number `[]`
      that no seed changes.
  """

  method: str
  quantity: str
  setting: Mapping[str, Setting]
  values: np.ndarray

  def field(self, name: str) -> Setting:
    """The method, the quantity, or the value of a setting; None if the record lacks it."""
    if name in ("method", "quantity"):
      return getattr(self, name)
    return self.setting.get(name)


class Results:
  """The measurements of one experiment, as records.

  Example::

      results = Results()
      results.add({"mixup": {"test/accuracy": [0.81, 0.83]}}, dataset="digits")
      results.select("test/accuracy", method="mixup", dataset="digits")  # [0.81, 0.83]

  Attributes:
    records: all records, in the order in which they were added.
    extras: name -> array; what the figure needs that is no measurement, such as an example image.
      Only the figure of the same run sees them.
  """

  def __init__(
    self, records: Iterable[Record] = (), *, extras: Mapping[str, np.ndarray] | None = None
  ):
    """Holds the records; most callers begin with none."""
    self.records: list[Record] = []
    self.extras: dict[str, np.ndarray] = dict(extras or {})
    self._known: set[tuple] = set()
    for record in records:
      self._append(record)

  def add(self, measured: Mapping[str, Mapping[str, Any]], **setting: Setting) -> None:
    """Adds records of one setting.

    Args:
      measured: method -> quantity -> one number per seed, `[seeds]`, or one number in all.
      **setting: what tells these records from others, for example `dataset="digits"`.

    Raises:
      ValueError: if values have more than one axis or none at all, a setting is not text, number or
        None, or there is such a record already.
    """
    for name, value in setting.items():
      if name in ("method", "quantity", "values"):
        raise ValueError(f"setting must not be named {name!r}, which every record has.")
      if not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"setting {name} must be text, a number or None, got {value!r}.")
    for method, quantities in measured.items():
      for quantity, values in quantities.items():
        self._append(Record(method, quantity, dict(setting), np.asarray(values, np.float64)))

  def select(self, quantity: str, *, average: Sequence[str] = (), **where: Setting) -> np.ndarray:
    """One quantity of one method in one setting: a number per seed.

    Args:
      quantity: its name.
      average: settings to take the mean over, for example `("dataset",)`.
      **where: what the records must have, for example `method="mixup", dataset="digits"`.

    Returns:
      `[seeds]`; `[]` if no seed changes the quantity.

    Raises:
      ValueError: if no record matches, or if records match that differ in something that stands
        neither in `where` nor in `average`.
    """
    chosen = self.matching(quantity=quantity, **where)
    if not chosen:
      raise ValueError(f"no record has {self._describe(quantity=quantity, **where)}.")
    names = dict.fromkeys(name for record in chosen for name in ("method", *record.setting))
    for name in names:
      options = list(dict.fromkeys(record.field(name) for record in chosen))
      if len(options) > 1 and name not in average:
        raise ValueError(
          f"{quantity!r} has {len(options)} values of {name} ({_listed(options)}): name one of "
          f"them, or average over {name}."
        )
    return np.mean([record.values for record in chosen], axis=0)

  def matching(self, **where: Setting) -> list[Record]:
    """The records whose method, quantity and settings are those given."""
    return [r for r in self.records if all(r.field(n) == value for n, value in where.items())]

  def distinct(self, name: str, **where: Setting) -> list[Setting]:
    """The values of "method", "quantity" or a setting, in order, among the records that match.

    Args:
      name: "method", "quantity" or the name of a setting; records without it are left out.
      **where: what the records must have.
    """
    values = dict.fromkeys(record.field(name) for record in self.matching(**where))
    return [value for value in values if value is not None]

  def diverged(self) -> dict[str, list[str]]:
    """The methods that were not finite in some seed, and their quantities that were not."""
    found: dict[str, dict[str, None]] = {}
    for record in self.records:
      if not np.isfinite(record.values).all():
        found.setdefault(record.method, {})[record.quantity] = None
    return {method: list(quantities) for method, quantities in found.items()}

  def __iter__(self) -> Iterator[Record]:
    return iter(self.records)

  def __len__(self) -> int:
    return len(self.records)

  def _append(self, record: Record) -> None:
    what = self._describe(method=record.method, quantity=record.quantity, **record.setting)
    if record.values.ndim > 1 or record.values.size == 0:
      raise ValueError(
        f"the record with {what} must hold one number per seed, got an array of shape "
        f"{record.values.shape}."
      )
    key = (record.method, record.quantity, frozenset(record.setting.items()))
    if key in self._known:
      raise ValueError(f"there are two records with {what}.")
    self._known.add(key)
    self.records.append(record)

  @staticmethod
  def _describe(**fields: Setting) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in fields.items())


class Quantity(NamedTuple):
  """A mean over seeds.

  Attributes:
    mean: the mean.
    standard_error: standard deviation (n - 1) over the root of n; NaN for fewer than two seeds.
  """

  mean: float
  standard_error: float


def quantity(values: Any) -> Quantity:
  """Mean and standard error over seeds.

  Args:
    values: one number per seed, `[seeds]`, or a single number that has no spread.

  Returns:
    Their `Quantity`.

  Raises:
    ValueError: if `values` is empty or has more than one axis.
  """
  values = per_seed(values, "values")
  error = float(np.std(values, ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
  return Quantity(float(np.mean(values)), error)


def per_seed(values: Any, name: str) -> np.ndarray:
  """The values as float64 `[seeds]` or `[]`.

  Args:
    values: numbers.
    name: what an error calls them.

  Raises:
    ValueError: if `values` is empty or has more than one axis.
  """
  values = np.asarray(values, np.float64)
  if values.ndim > 1 or values.size == 0:
    raise ValueError(f"{name} must hold one number per seed, got an array of shape {values.shape}.")
  return values


def to_stored(results: Results) -> list[dict[str, Any]]:
  """The records as JSON holds them: one object per record, its settings as further fields."""
  return [
    {"method": r.method, "quantity": r.quantity, **r.setting, "values": r.values.tolist()}
    for r in results
  ]


def from_stored(
  stored: Iterable[Mapping[str, Any]], extras: Mapping[str, np.ndarray] | None = None
) -> Results:
  """Results out of what `to_stored` made, and the arrays that stand beside it."""
  records = []
  for row in stored:
    setting = {n: v for n, v in row.items() if n not in ("method", "quantity", "values")}
    values = np.asarray(row["values"], np.float64)
    records.append(Record(row["method"], row["quantity"], setting, values))
  return Results(records, extras=extras)


def _listed(options: Sequence[Setting]) -> str:
  shown = ", ".join(map(repr, options[:4]))
  return f"{shown}, ..." if len(options) > 4 else shown
