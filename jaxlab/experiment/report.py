"""How results and verdicts are shown on a terminal, and what a `results.json` holds of them."""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table

from jaxlab.experiment.claims import Claim
from jaxlab.experiment.records import Results, quantity

_MAX_COLUMNS = 6
_MAX_ROWS = 64


def reproducible(stored: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a `results.json` that a second run of the same command repeats exactly.

  Args:
    stored: the parsed file.

  Returns:
    A copy without wall seconds, and without records whose quantity ends in "seconds".
  """
  kept = {name: value for name, value in stored.items() if name != "wall_seconds"}
  kept["records"] = [r for r in stored["records"] if not r["quantity"].endswith("seconds")]
  return kept


def print_report(title: str, results: Results, claims: Sequence[Claim]) -> None:
  """Prints one row per method and setting, and one line per claim.

  A quantity of more records than a table should have, such as a curve over steps, is counted.

  Args:
    title: stands above the tables.
    results: what was measured.
    claims: the verdicts.
  """
  count = collections.Counter(record.quantity for record in results)
  rows: dict[tuple, dict[str, np.ndarray]] = {}
  for record in results:
    if count[record.quantity] <= _MAX_ROWS:
      key = (record.method, tuple(record.setting.items()))
      rows.setdefault(key, {})[record.quantity] = record.values
  print(title)
  # Rows that measure the same quantities stand in one table.
  for _, keys in _grouped(rows, lambda key: tuple(rows[key])).items():
    _print_table({key: rows[key] for key in keys})
  for name, number in count.items():
    if number > _MAX_ROWS:
      print(f"{name}: {number} records, in results.json")
  diverged = results.diverged()
  for method, quantities in diverged.items():
    print(f"{method} diverged, or had nothing to measure: {', '.join(quantities)}")
  for claim in claims:
    print(format_claim(claim, diverged))


def _grouped(items: Iterable[Any], group: Callable[[Any], Any]) -> dict[Any, list[Any]]:
  groups: dict[Any, list[Any]] = {}
  for item in items:
    groups.setdefault(group(item), []).append(item)
  return groups


def _print_table(rows: Mapping[tuple, Mapping[str, np.ndarray]]) -> None:
  """Method, settings and quantities as columns; wide tables are cut into several."""
  settings = list(dict.fromkeys(name for _, setting in rows for name, _ in setting))
  quantities = list(next(iter(rows.values())))
  for start in range(0, len(quantities), _MAX_COLUMNS):
    shown = quantities[start : start + _MAX_COLUMNS]
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in ("method", *settings):
      table.add_column(name)
    for name in shown:
      table.add_column(name, justify="right")
    for (method, setting), row in rows.items():
      values = (dict(setting).get(name) for name in settings)
      texts = ("" if value is None else f"{value}" for value in values)
      table.add_row(method, *texts, *(format_quantity(row[name]) for name in shown))
    console().print(table)


def console() -> rich.console.Console:
  """Where tables go: the terminal, or a pipe, whose assumed width would cut numbers off."""
  terminal = rich.console.Console(markup=False, highlight=False)
  return terminal if terminal.is_terminal else rich.console.Console(width=200, markup=False)


def format_quantity(values: Any) -> str:
  """Mean ± standard error, with as many digits as the error has to say; or that there is none."""
  finite = np.isfinite(values)
  if not finite.all():
    seeds = f" in {np.sum(~finite)} of {finite.size} seeds" if finite.ndim else ""
    return f"not finite{seeds}"
  mean, error = quantity(values)
  if not math.isfinite(error) or error == 0.0:
    return f"{mean:.4g}"
  digits = 1 - math.floor(math.log10(error))
  if not 0 <= digits <= 6:
    return f"{mean:.4g} ± {error:.2g}"
  return f"{mean:.{digits}f} ± {error:.{digits}f}"


def format_claim(claim: Claim, diverged: Iterable[str] = ()) -> str:
  """The verdict, the claim, and the numbers it rests on; why it was not tested on own lines.

  Args:
    claim: the claim.
    diverged: the methods with values that are not finite.
  """
  text = f"{claim.verdict}: {claim.text} ({format_numbers(claim)})"
  if claim.paper is not None:
    text += f"; paper: {format_paper(claim)}"
  failed = [condition for condition in claim.requires if not condition.met]
  lines = [text, *(f"  not met: {c.text} (measured {c.measured:.4g})" for c in failed)]
  if not claim.is_finite:
    lines.append(f"  not judged: no finite values of {', '.join(diverged) or 'a side'}")
  return "\n".join(lines)


def format_numbers(claim: Claim) -> str:
  """The numbers of a claim: both sides, the difference with its interval, margin and seeds."""
  low, high = claim.interval
  return (
    f"{claim.measured:.4g} against {claim.baseline:.4g}, difference {claim.difference:+.3g} "
    f"[{low:+.3g}, {high:+.3g}], margin {claim.margin:g}, n = {claim.seeds}"
  )


def format_paper(claim: Claim) -> str:
  """The paper's own figure, or nothing."""
  if claim.paper is None:
    return ""
  return claim.paper if isinstance(claim.paper, str) else f"{claim.paper:.4g}"
