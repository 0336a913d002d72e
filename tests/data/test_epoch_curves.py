"""Epoch curves of small networks."""

import jax
import numpy as np
import pytest

from jaxlab import data
from jaxlab.data import epoch_curves

SMALL = dict(datasets=("iris", "wine"), num_networks=4, num_epochs=6, num_rows=64)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  return directory, data.load_epoch_curves(**SMALL, data_dir=directory)


def test_one_curve_per_network_and_data_set(small):
  curves = small[1]
  assert curves.values.shape == curves.anchors.shape == (8, 6)
  assert curves.dataset_ids.tolist() == [0] * 4 + [1] * 4
  assert len(set(curves.learners)) == 8 and curves.lengths.tolist() == [6] * 8
  # Shares of 64 rows, and networks that are better than the largest class, of 40%.
  np.testing.assert_array_equal(curves.values * 64, np.round(curves.values * 64))
  assert curves.values.max() > 0.7


def test_stored_curves_are_not_trained_again(small, monkeypatch):
  directory, curves = small
  monkeypatch.setattr(epoch_curves, "train_networks", None)
  again = data.load_epoch_curves(**SMALL, data_dir=directory)
  np.testing.assert_array_equal(again.values, curves.values)
  np.testing.assert_array_equal(again.learners, curves.learners)
  with pytest.raises(TypeError):  # Another seed defines other curves.
    data.load_epoch_curves(**SMALL, seed=1, data_dir=directory)


def test_settings_act():
  """A learning rate of 0 gives a flat curve; features of 0 and absent classes are no part of it."""
  rng = np.random.default_rng(0)
  labels = np.arange(128, dtype=np.int32) % 3
  features = np.eye(13, dtype=np.float32)[labels] + rng.normal(0, 0.1, (128, 13))
  parts = [
    epoch_curves.TableSplit(features[half].astype(np.float32), labels[half])
    for half in (slice(64), slice(64, None))
  ]
  settings = epoch_curves.NetworkSettings(
    *(np.float32(row) for row in ([0, 0.3, 0.3, 0.3], [0.5] * 4, [0.0] * 4, [0, 0, 0, 0.9])),
    width=np.array([64, 64, 4, 64], np.int32),
    cosine=np.zeros(4, np.int32),
  )
  values = np.asarray(
    epoch_curves.train_networks(jax.random.key(0), *parts, settings, 3, num_epochs=6)
  )
  assert np.ptp(values[0]) == 0
  assert values[1, -1] > 0.95 and values[1, -1] >= values[2, -1]
  assert values[3, 0] < values[1, 0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_networks": 0}, "num_networks must be at least 1, got 0"),
    ({"num_rows": 90}, "iris has 150 rows, fewer than two parts of num_rows=90"),
  ],
)
def test_bad_arguments(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    data.load_epoch_curves(**(SMALL | arguments), data_dir=tmp_path)
