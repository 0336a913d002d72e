import jax
import numpy as np
import pytest

from experiments.mixing_adaptation import open_set_tta
from experiments.mixing_adaptation import open_set_tta_task as tasks


def test_paper_data_that_are_not_there_are_named(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLAB_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
    tasks.load_task(open_set_tta.PRESETS["paper"])


def test_known_and_unknown_rows_are_apart():
  config = open_set_tta.PRESETS["smoke"]
  task = tasks.load_task(config)
  assert [len(part.labels) for part in task] == [60, 20, 20]
  assert set(task.train.labels) <= set(range(7)) and set(task.unknown.labels) == {-1}
  np.testing.assert_allclose(task.train.inputs.std(), 1.0, atol=1e-5)
  rows = np.concatenate([part.inputs[..., 0] for part in task])
  assert len(np.unique(rows, axis=0)) == 100


def test_half_of_every_batch_is_unknown():
  config = open_set_tta.PRESETS["smoke"]
  task = tasks.load_task(config)
  stream = tasks.open_set_stream(jax.random.key(0), config, task)
  assert stream.inputs.shape == (2, 2, 20, 40, 1)
  np.testing.assert_array_equal(stream.labels[..., 10:], -1)
  assert stream.labels[..., :10].min() >= 0
