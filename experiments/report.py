"""What an experiment measured, the claims made from it, and how both are shown and stored."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table

MIN_SEEDS = 3
_MAX_COLUMNS = 6


class Quantity(NamedTuple):
  """A mean over seeds.

  Attributes:
    mean: the mean.
    standard_error: standard deviation (n - 1) over the root of n; NaN for fewer than two seeds.
  """

  mean: float
  standard_error: float


@dataclasses.dataclass(frozen=True)
class Results:
  """The measurements of one experiment.

  `results["PFN", "nll"]` are the values of one quantity of one method, one a seed. Quantities that
  share a name before a slash, as in "gp/nll", are shown together.

  A quantity whose name ends in "seconds" or "speedup" depends on the machine's load: two runs of
  the same command agree on all others (`reproducible`).

  Attributes:
    quantities: method -> quantity -> values, one a seed in the seeds' order, or a single number for
      what does not depend on the seed.
    extras: name -> array; what the figure needs beside the quantities.
  """

  quantities: Mapping[str, Mapping[str, Any]]
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    quantities = {
      method: {name: np.asarray(values, np.float64) for name, values in row.items()}
      for method, row in self.quantities.items()
    }
    for method, row in quantities.items():
      for name, values in row.items():
        if values.ndim > 1 or values.size == 0:
          raise ValueError(
            f"{method}/{name} must hold one number a seed, got an array of shape {values.shape}."
          )
    object.__setattr__(self, "quantities", quantities)
    extras = {name: np.asarray(value) for name, value in self.extras.items()}
    for name, array in extras.items():
      if array.dtype == object:
        raise ValueError(f"extras {name!r} must be an array of numbers or text.")
    object.__setattr__(self, "extras", extras)

  def __getitem__(self, method_and_quantity: tuple[str, str]) -> np.ndarray:
    method, name = method_and_quantity
    return self.quantities[method][name]


@dataclasses.dataclass(frozen=True)
class Claim:
  """One statement of the paper, held against what was measured.

  Attributes:
    text: the statement, in one line.
    holds: whether it does; None if it was not judged.
    measured: what was measured of the method.
    baseline: what it was compared with.
    paper: the paper's own figure, where it gives one.
  """

  text: str
  holds: bool | None
  measured: float
  baseline: float
  paper: float | str | None = None


def quantity(values: Any) -> Quantity:
  """Mean and standard error over seeds.

  Args:
    values: one number a seed, `[seeds]`, or a single number that has no spread.

  Returns:
    Their `Quantity`.

  Raises:
    ValueError: if `values` is empty or has more than one axis.
  """
  values = _per_seed(values, "values")
  count = values.size
  error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
  return Quantity(float(np.mean(values)), error)


def compare(
  text: str,
  method: Any,
  baseline: Any,
  *,
  better: str = "higher",
  margin: float = 0.0,
  paper: float | str | None = None,
) -> Claim:
  """A claim that a method beats a baseline, judged on the paired differences of the seeds.

  With d = method - baseline (its sign turned round where lower is better), the claim holds iff
  mean(d) - standard_error(d) > margin. Pairing takes out what a seed does to both.

  Args:
    text: the claim; end it in "seconds" or "speedup" if it compares times (see `Results`).
    method: one number a seed, `[seeds]`, or one number that no seed changes.
    baseline: likewise; one number may be a threshold.
    better: "higher" or "lower".
    margin: by how much the method must win, in the quantity's units; negative for "at most that
      much worse".
    paper: the paper's own figure.

  Returns:
    A `Claim` with the means of both sides; `holds` is None for fewer than three seeds.

  Raises:
    ValueError: if `better` is neither word, a side has more than one axis, or the two have
      different numbers of seeds.
  """
  if better not in ("higher", "lower"):
    raise ValueError(f"better must be 'higher' or 'lower', got {better!r}.")
  method, baseline = _per_seed(method, "method"), _per_seed(baseline, "baseline")
  if method.ndim == baseline.ndim == 1 and baseline.shape != method.shape:
    raise ValueError(
      f"method and baseline must have the same seeds, got shapes {method.shape} and "
      f"{baseline.shape}."
    )
  difference = method - baseline if better == "higher" else baseline - method
  holds = None
  if difference.size >= MIN_SEEDS:
    mean, error = quantity(difference)
    holds = bool(mean - error > margin)
  return Claim(text, holds, float(np.mean(method)), float(np.mean(baseline)), paper)


def is_timing(label: str) -> bool:
  """Whether a quantity's name or a claim's text ends in "seconds" or "speedup"."""
  return label.rstrip(" .)").lower().endswith(("seconds", "speedup"))


def to_stored(results: Results, claims: list[Claim]) -> dict[str, Any]:
  """The part of `results.json` that holds measurements and claims."""
  return {
    "quantities": {
      method: {name: _entry(values) for name, values in row.items()}
      for method, row in results.quantities.items()
    },
    "claims": [dataclasses.asdict(claim) for claim in claims],
  }


def from_stored(
  stored: Mapping[str, Any], extras: Mapping[str, Any] | None = None
) -> tuple[Results, list[Claim]]:
  """Results and claims out of a `results.json`.

  Args:
    stored: the parsed file.
    extras: the arrays that stand beside it.

  Returns:
    The two arguments of `to_stored`.
  """
  quantities = {
    method: {name: np.asarray(entry["values"], np.float64) for name, entry in row.items()}
    for method, row in stored["quantities"].items()
  }
  claims = [
    Claim(**{**claim, "measured": float(claim["measured"]), "baseline": float(claim["baseline"])})
    for claim in stored["claims"]
  ]
  return Results(quantities, extras or {}), claims


def reproducible(stored: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a `results.json` that a second run of the same command repeats exactly.

  Args:
    stored: the parsed file.

  Returns:
    A copy without wall seconds, and without the quantities and claims that are times.
  """
  kept = {name: value for name, value in stored.items() if name != "wall_seconds"}
  kept["quantities"] = {
    method: {name: entry for name, entry in row.items() if not is_timing(name)}
    for method, row in stored["quantities"].items()
  }
  kept["claims"] = [claim for claim in stored["claims"] if not is_timing(claim["text"])]
  return kept


def print_report(title: str, results: Results, claims: list[Claim]) -> None:
  """Prints a table, method by quantity, and one line a claim.

  Quantities named group/name get a table a group. More columns than a terminal holds are turned
  into rows.

  Args:
    title: stands above the table.
    results: what was measured.
    claims: what was made of it.
  """
  for group in dict.fromkeys(map(_group, _names(results.quantities.values()))):
    rows = {
      method: {_label(name): row[name] for name in row if _group(name) == group}
      for method, row in results.quantities.items()
    }
    rows = {method: row for method, row in rows.items() if row}
    _print_table(f"{title}: {group}" if group else title, rows)
  for claim in claims:
    print(format_claim(claim))


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  return list(dict.fromkeys(name for row in rows for name in row))


def _group(name: str) -> str:
  return name.rpartition("/")[0]


def _label(name: str) -> str:
  return name.rpartition("/")[2]


def _print_table(title: str, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  columns, corner = _names(rows.values()), "method"
  if len(columns) > _MAX_COLUMNS:
    turned = {name: {m: row[name] for m, row in rows.items() if name in row} for name in columns}
    rows, columns, corner = turned, list(rows), "quantity"
  table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
  table.add_column(corner)
  for name in columns:
    table.add_column(name, justify="right")
  for label, row in rows.items():
    table.add_row(label, *(format_quantity(row[name]) if name in row else "" for name in columns))
  console().print(table)


def console() -> rich.console.Console:
  """Where tables go: the terminal, or a pipe, whose assumed width would cut numbers off."""
  terminal = rich.console.Console(markup=False, highlight=False)
  return terminal if terminal.is_terminal else rich.console.Console(width=200, markup=False)


def format_quantity(values: Any) -> str:
  """Mean ± standard error, with as many digits as the error has to say."""
  mean, error = quantity(values)
  if not (math.isfinite(error) and math.isfinite(mean)) or error == 0.0:
    return f"{mean:.4g}"
  digits = 1 - math.floor(math.log10(error))
  if not 0 <= digits <= 6:
    return f"{mean:.4g} ± {error:.2g}"
  return f"{mean:.{digits}f} ± {error:.{digits}f}"


def format_claim(claim: Claim) -> str:
  """The verdict, the claim, and the numbers it rests on, in one line."""
  numbers = f"measured {claim.measured:.4g}, baseline {claim.baseline:.4g}"
  if claim.paper is not None:
    figure = claim.paper if isinstance(claim.paper, str) else f"{claim.paper:.4g}"
    numbers += f", paper {figure}"
  return f"{verdict(claim.holds)}: {claim.text} ({numbers})"


def verdict(holds: bool | None) -> str:
  """The words for a claim's state."""
  return {True: "holds", False: "does not hold", None: "not judged"}[holds]


def _entry(values: np.ndarray) -> dict[str, Any]:
  mean, error = quantity(values)
  error = None if math.isnan(error) else error
  return {"values": values.tolist(), "mean": mean, "standard_error": error}


def _per_seed(values: Any, name: str) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim > 1 or values.size == 0:
    raise ValueError(f"{name} must hold one number a seed, got an array of shape {values.shape}.")
  return values
