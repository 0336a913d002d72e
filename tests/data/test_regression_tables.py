import numpy as np
import pytest

from jaxlab import data
from jaxlab.data import regression_tables

# Rows, columns, and the mean and range of the target, from the tables' descriptions.
TABLES = {
  "auto": (392, 9, 23.446, (9.0, 46.6)),
  "boston": (506, 13, 22.533, (5.0, 50.0)),
  "computers": (6259, 12, 7.672, (np.log(949.0), np.log(5399.0))),
  "hitters": (263, 22, 5.927, (np.log(67.5), np.log(2460.0))),
  "diamonds": (53_940, 26, 7.787, (np.log(326.0), np.log(18_823.0))),
  "nox": (8088, 3, 4.379, (np.log(0.9), np.log(717.75))),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_match_their_descriptions(name):
  rows, columns, mean, ends = TABLES[name]
  table = data.load_regression_table(name)
  assert table.features.shape == (rows, columns) and table.targets.shape == (rows,)
  assert table.features.dtype == table.targets.dtype == np.float32
  assert len(table.feature_names) == columns
  np.testing.assert_allclose(table.targets.mean(), mean, rtol=1e-3)
  np.testing.assert_allclose([table.targets.min(), table.targets.max()], ends, rtol=1e-5)
  assert np.all(np.isfinite(table.features))


def test_levels_have_separate_columns():
  table = data.load_regression_table("auto")
  levels = [i for i, name in enumerate(table.feature_names) if name.startswith("origin=")]
  assert len(levels) == 3
  np.testing.assert_array_equal(table.features[:, levels].sum(axis=1), 1.0)
  np.testing.assert_array_equal(np.unique(table.features[:, levels]), [0.0, 1.0])


def test_bad_names_and_missing_packages(monkeypatch):
  with pytest.raises(
    ValueError, match="'airfoil'.*auto, boston, computers, diamonds, hitters, nox"
  ):
    data.load_regression_table("airfoil")
  monkeypatch.setattr(regression_tables, "package_directory", lambda package: None)
  with pytest.raises(ImportError, match=r"jaxlab\[tables\]"):
    data.load_regression_table("boston")
