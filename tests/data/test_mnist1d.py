"""MNIST-1D by the package's generator."""

import mnist1d.data
import numpy as np
import pytest

from jaxlab import data


def test_equals_the_generator_with_other_arguments():
  signals = data.generate_mnist1d(20, seed=3, iid_noise_scale=0.5)
  settings = mnist1d.data.get_dataset_args()
  settings.num_samples, settings.seed, settings.iid_noise_scale = 20, 3, 0.5
  made = mnist1d.data.make_dataset(settings)
  np.testing.assert_array_equal(
    signals.series[..., 0], np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
  )
  np.testing.assert_array_equal(signals.labels, np.concatenate([made["y"], made["y_test"]]))
  assert signals.series.dtype == np.float32 and signals.labels.dtype == np.int32


def test_any_number_of_samples():
  assert data.generate_mnist1d(13).series.shape == (13, 40, 1)


def test_stored_samples_are_not_generated_again(tmp_path, monkeypatch):
  made = data.load_mnist1d(20, data_dir=tmp_path, shear_scale=0.1)
  monkeypatch.setattr(mnist1d.data, "make_dataset", None)
  again = data.load_mnist1d(20, data_dir=tmp_path, shear_scale=0.1)
  np.testing.assert_array_equal(made.series, again.series)
  np.testing.assert_array_equal(made.labels, again.labels)
  with pytest.raises(TypeError):  # Other arguments define another set.
    data.load_mnist1d(20, data_dir=tmp_path, shear_scale=0.2)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ({"num_samples": 10, "shear": 1.0}, "shear=1.0 is not an argument"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    data.generate_mnist1d(**arguments)
